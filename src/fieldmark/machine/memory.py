"""Memory: how much is free on the machine and in its container, and when it runs out.

A GPU that is full, or a limit of the address space, gives an error. A container's limit does not:
the kernel kills the process. So training looks at the container's memory after every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NEAR = 0.9
"""Share of a container's memory above which the next step may be killed."""
GROWN = 0.05
"""Share of a container's memory that a step must have added before steps are made smaller: they
save no memory that other programs take."""

_WORDS = (
    "out of memory",  # CUDA, MPS, oneDNN
    "can't allocate memory",  # torch's allocator on a processor
    "not enough memory",  # the same on Windows
    "could not create a memory",  # oneDNN
    "could not create a primitive",  # the same, when there is no room for the code it generates
    "bad_alloc",  # the C++ library, within torch's own functions
    "alloc_failed",  # cuBLAS and cuDNN, whose workspaces are not torch's
)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


@dataclass(frozen=True)
class Container:
    """The memory limit of a control group, and the files that say how much of it is used."""

    limit: int
    """Bytes."""
    usage: Path
    stat: Path

    @classmethod
    def find(cls, root: Path = Path("/")) -> Container | None:
        """Find this process's control group, version 2 or 1; None where nothing limits its memory.

        Args:
            root: Folder that contains ``proc`` and ``sys``.
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
        """Share of the limit that is used, not counting cached files that the kernel can drop."""
        return self._used_bytes() / self.limit

    def free(self) -> int:
        """Bytes up to the limit."""
        return max(0, self.limit - self._used_bytes())

    def _used_bytes(self) -> int:
        try:
            usage = int(self.usage.read_text(encoding="ascii"))
            dropped = _numbers(self.stat)
        except (OSError, ValueError):
            return 0
        old = "total_" if "total_inactive_file" in dropped else ""  # version 1 has both
        return usage - sum(dropped.get(f"{old}{kind}_file", 0) for kind in ("inactive", "active"))


_UNKNOWN = 4 * 2**30
"""Bytes assumed to be free where the system does not say."""


def free(root: Path = Path("/")) -> int:
    """Bytes that this process can still use without swapping, in its container if it is in one.

    Args:
        root: Folder that contains ``proc`` and ``sys``.
    """
    container = Container.find(root)
    machine = _available(root / "proc/meminfo")
    return machine if container is None else min(machine, container.free())


def _available(meminfo: Path) -> int:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:")) * 1024
    except (OSError, ValueError, IndexError, StopIteration):
        return _UNKNOWN


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
