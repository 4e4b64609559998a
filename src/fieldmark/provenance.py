"""Where a run comes from: its pictures, the machine and the versions; nothing personal.

No absolute path, user name, host name or value of the environment is written into a run.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fieldmark.config import FORMAT
from fieldmark.data import DATASETS, Dataset
from fieldmark.errors import RunError
from fieldmark.fit.device import Device
from fieldmark.names import shown
from fieldmark.run import RunDirectory, timestamp
from fieldmark.version import __version__


def describe_data(dataset: Dataset, *, path: str) -> dict[str, Any]:
    """The content of ``data.json``."""
    k = len(dataset.class_names)
    return {
        "format": FORMAT,
        "name": dataset.name,
        "path": path,
        "class_names": list(dataset.class_names),
        "counts": {name: part.counts(k).tolist() for name, part in dataset.parts.items()},
        "fingerprint": dataset.fingerprint,
        "bad": [{"file": b.key, "reason": b.reason, "detail": b.detail} for b in dataset.bad],
        "notes": list(dataset.notes),
        "warnings": list(dataset.warnings),
        "parts": {
            name: [
                list(row) for row in zip(part.keys, part.labels.tolist(), part.digests, strict=True)
            ]
            for name, part in dataset.parts.items()
        },
    }


def relative_path(data: str, run: RunDirectory) -> str:
    """Where the pictures are as seen from the run; their name alone if that tells the user's."""
    path = Path(data).expanduser()
    if not path.exists():
        return data
    try:
        relative = os.path.relpath(path.resolve(), run.path.resolve())
    except ValueError:  # another drive
        return path.name
    home = Path.home().name
    return path.name if home and home in Path(relative).parts else relative


def locate(run: RunDirectory, stored: Mapping[str, Any]) -> str:
    """Find the pictures of a run again.

    Raises:
        RunError: if they are not where they were.
    """
    name = str(stored["path"])
    if name in DATASETS:
        return name
    for folder in (run.path.resolve() / name, Path(name)):
        if folder.exists():
            return os.path.relpath(folder)
    raise RunError(
        f"the pictures of {run.path} ({shown(str(stored['name']))}) are not where they were; "
        "say where they are with --data DIR"
    )


def check_same_data(run: RunDirectory, stored: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuse to go on with other pictures than the run began with."""
    if stored["fingerprint"] == dataset.fingerprint:
        return
    old = {row[0]: tuple(row[1:]) for rows in stored["parts"].values() for row in rows}
    new = {
        key: (int(label), digest)
        for part in dataset.parts.values()
        for key, label, digest in zip(part.keys, part.labels, part.digests, strict=True)
    }
    added, gone = new.keys() - old.keys(), old.keys() - new.keys()
    changed = [k for k in new.keys() & old.keys() if new[k] != old[k]]
    example = next(iter(sorted([*added, *gone, *changed])), "")
    raise RunError(
        f"the pictures changed since {run.path} began: {len(added)} new, {len(gone)} gone, "
        f"{len(changed)} changed (such as {shown(example)}), so it cannot go on to the same "
        "result; put them back, or train anew"
    )


_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "safetensors")


def environment(device: Device, *, weights: str) -> dict[str, Any]:
    """The content of ``environment.json``: versions and hardware, nothing personal."""
    return {
        "format": FORMAT,
        "fieldmark": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.name,
        "device_name": device.description,
        "precision": device.precision,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "weights": weights,
        "git": _git_commit(),
        "started": timestamp(),
        "argv": [_anonymous(word) for word in sys.argv[1:]],
    }


def _anonymous(word: str) -> str:
    """Keep a path's last part only."""
    return re.sub(r"(?:~|\.{0,2}|[A-Za-z]:)?[/\\](?:[^/\\'\"]*[/\\])*", "", word)


def _git_commit() -> str:
    """Commit of the folder the command was given in; empty if there is none."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
