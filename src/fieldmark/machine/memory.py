"""Memory that runs out: how an error says so, and how near a container's limit is.

A GPU and a limit of the address space answer with an error. A container's limit does not: the
kernel kills the process. So what the container uses is looked at after every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

NEAR = 0.9
"""Share of a container's memory from which on the next step may be one too many."""
GROWN = 0.05
"""Share by which a step must have raised it: memory that others take is not saved by smaller
steps."""

_WORDS = (
    "out of memory",  # CUDA, MPS, oneDNN
    "can't allocate memory",  # torch's allocator on a processor
    "not enough memory",  # the same on Windows
    "could not create a memory",  # oneDNN
    "could not create a primitive",  # the same, when there is no room for the code it generates
    "alloc_failed",  # cuBLAS and cuDNN, whose workspaces are not torch's
)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


@dataclass(frozen=True)
class Container:
    """The limit of a control group, and the files that say how much of it is used."""

    limit: int
    """Bytes."""
    usage: Path
    stat: Path

    @classmethod
    def find(cls, root: Path = Path("/")) -> Container | None:
        """This process's control group, version 2 or 1; None where nothing limits its memory.

        Args:
            root: Where ``proc`` and ``sys`` are.
        """
        try:
            lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return None
        groups = root / "sys/fs/cgroup"
        for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
            if controllers == "":
                found = _version_2(groups, path)
            elif "memory" in controllers.split(","):
                found = _version_1(groups / "memory", path)
            else:
                continue
            if found is not None:
                return found
        return None

    def used(self) -> float:
        """Share of the limit that is used, without the files' pages that the kernel can drop."""
        try:
            usage = int(self.usage.read_text(encoding="ascii"))
            dropped = _numbers(self.stat)
        except (OSError, ValueError):
            return 0.0
        old = "total_" if "total_inactive_file" in dropped else ""  # version 1 has both
        pages = sum(dropped.get(f"{old}{kind}_file", 0) for kind in ("inactive", "active"))
        return (usage - pages) / self.limit


def _version_2(groups: Path, path: str) -> Container | None:
    """The lowest limit of a group and of those around it."""
    found = []
    for folder in _upwards(groups, path):
        limit = _limit(folder / "memory.max")
        if limit is not None:
            found.append(Container(limit, folder / "memory.current", folder / "memory.stat"))
    return min(found, key=lambda container: container.limit, default=None)


def _version_1(groups: Path, path: str) -> Container | None:
    for folder in _upwards(groups, path):
        limit = _limit(folder / "memory.limit_in_bytes")
        if limit is not None:
            return Container(limit, folder / "memory.usage_in_bytes", folder / "memory.stat")
    return None


def _upwards(groups: Path, path: str) -> list[Path]:
    """A group's folder and those above it; inside a container they may begin further down."""
    here = groups / path.lstrip("/")
    return [folder for folder in (here, *here.parents) if folder.is_relative_to(groups)]


_UNLIMITED = 2**60
"""Version 1 writes no limit as a number of this order."""


def _limit(file: Path) -> int | None:
    try:
        limit = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" in version 2
        return None
    return limit if 0 < limit < _UNLIMITED else None


def _numbers(file: Path) -> dict[str, int]:
    """A file of lines ``name number``."""
    pairs = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
