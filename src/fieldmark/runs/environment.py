"""The machine and the versions that a run was made with; nothing personal.

No absolute path, user name, host name or value of the environment is written into a run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
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
    """The command's words: of paths the last part, of the user's name nothing."""


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
        argv=anonymous(_words()),
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


def anonymous(words: Sequence[str]) -> tuple[str, ...]:
    """A command's words, the command first: of paths the last part, of user names nothing."""
    named = "|".join(sorted(map(re.escape, _user_names()), key=len, reverse=True))

    def of(word: str) -> str:
        flag = found[0] if (found := re.match(r"--?[\w-]+=", word)) else ""
        value = word.removeprefix(flag)
        last = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        if last == value and value.startswith("~"):  # a shell's word for that user's folder
            return f"{flag}~"
        if named and (flag or not word.startswith("-")):
            last = re.sub(rf"(?<![^\W_])(?:{named})(?![^\W_])", "~", last, flags=re.IGNORECASE)
        return flag + last

    return (*words[:1], *map(of, words[1:]))


def _user_names() -> set[str]:
    """The user's names, as far as the system says."""
    names = {os.environ.get(name, "") for name in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    with contextlib.suppress(RuntimeError):
        names.add(Path.home().name)
    return names - {""}


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
