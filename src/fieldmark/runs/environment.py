"""The machine and the versions that a run was made with; nothing personal.

No absolute path, user name, host name or value of the environment is written into a run.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fieldmark.files.json_text import FORMAT
from fieldmark.machine.device import Device
from fieldmark.runs.directory import timestamp
from fieldmark.version import __version__

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
        "argv": [_anonymous(word) for word in _words()],
    }


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
