"""The machine and the versions that a run was made with; nothing personal.

No absolute path, user name, host name or value of the environment is written into a run.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from fieldmark.files.typed import STRICT, Count, Text
from fieldmark.machine.device import Device
from fieldmark.runs.directory import RunDirectory, timestamp
from fieldmark.version import __version__

FILE = "environment.json"
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What ``environment.json`` holds; of programs their versions."""

    __pydantic_config__ = STRICT

    fieldmark: Text
    python: Text
    torch: Text
    torchvision: Text
    timm: Text
    numpy: Text
    pillow: Text
    simplejpeg: Text
    safetensors: Text
    system: Text
    """Operating system and kind of processor."""
    device: Text
    device_name: Text
    precision: Text
    """Number type that training computes in."""
    cores: Count | None
    threads: Count
    """Threads that torch computes with."""
    weights: Text
    """What training started from."""
    git: Text
    """Commit of the folder that the command was given in; empty if there is none."""
    started: Text
    """Time in UTC."""
    argv: tuple[Text, ...]
    """The command's words, paths cut to their last part."""


def environment(device: Device, *, weights: str) -> Environment:
    """Versions and hardware, nothing personal."""
    return Environment(
        fieldmark=__version__,
        python=platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
        system=f"{platform.system()} {platform.machine()}",
        device=device.name,
        device_name=device.description,
        precision=device.precision,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        weights=weights,
        git=_git_commit(),
        started=timestamp(),
        argv=tuple(_anonymous(word) for word in _words()),
    )


def read(run: RunDirectory) -> Environment | None:
    """Read what a run was made with; None if there is no file: an imported run has none.

    Raises:
        RunError: naming the file and the field if it is not what :func:`write` wrote.
    """
    if not run.has(FILE):
        return None
    return run.read_typed(FILE, Environment, remedy="put back the file as it was")


def write(run: RunDirectory, value: Environment) -> None:
    """Write ``environment.json``."""
    run.write_typed(FILE, value)


def _words() -> list[str]:
    """The command's words; another program's are nobody's business."""
    program = Path(sys.argv[0])
    ours = program.stem == "fieldmark" or program.parts[-2:] == ("fieldmark", "__main__.py")
    return sys.argv[1:] if ours else []


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
