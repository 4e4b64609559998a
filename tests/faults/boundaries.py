"""Every change that a process makes to files below some folders, and harm done at one of them.

A *boundary* is a call that changes what another process would find: a file opened for writing, a
write, a flush to the disk, a rename, a removal, a folder made. :class:`Boundaries` counts them and,
at the one that a :class:`Fault` names, kills the process, tears the write, loses what a power cut
would lose, or has the system refuse. It wraps functions of ``os`` and ``open``, so it sees what is
written by Python; an audit hook beside it records what passes it by (:attr:`Boundaries.missed`).
"""

from __future__ import annotations

import builtins
import dataclasses
import errno
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_OF_ONE_PATH = ("mkdir", "rmdir", "unlink", "remove", "truncate")
_OF_TWO_PATHS = ("replace", "rename", "link", "symlink")
_OF_A_HANDLE = ("fsync", "fdatasync", "ftruncate")
_AUDITED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


@dataclasses.dataclass(frozen=True)
class Boundary:
    """One change to the folders, before it happens."""

    number: int
    what: str
    name: str
    """The file's name, of the new place where it is renamed."""

    @property
    def text(self) -> str:
        """As one reads it; numbers of processes are left out, so that two runs say the same."""
        return f"{self.what} {self.name}"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens at which boundary."""

    kind: str
    """kill: before the boundary. torn: after half of a write. power: as kill, and what was not
    flushed to the disk is cut to half. error: the system refuses. vanish: the first of the folders
    is removed, and the process goes on."""
    at: int
    errno: int = 0
    times: int = 1
    """Boundaries in a row that the system refuses; a disk that stays full refuses many."""


class Boundaries:
    """Counts boundaries below the folders and does the harm. Once installed it stays."""

    def __init__(self, folders: Sequence[Path], fault: Fault | None = None) -> None:
        self._folders = [os.path.realpath(folder) for folder in folders]
        self._fault = fault
        self._unflushed: set[str] = set()
        self._inside = False
        self.seen: list[Boundary] = []
        self.missed: list[str] = []
        """Changes below the folders that no wrapper saw."""

    def install(self) -> None:
        """Wrap the functions of this process."""
        for name in _OF_ONE_PATH:
            self._wrap(name, lambda call, args, named: self._path(args[0], named.get("dir_fd")))
        for name in _OF_TWO_PATHS:
            self._wrap(name, lambda call, args, named: self._path(args[1]))
        for name in _OF_A_HANDLE:
            self._wrap(name, lambda call, args, named: _path_of(args[0]))
        self._wrap_os_open()
        self._wrap_os_write()
        self._wrap_open()
        sys.addaudithook(self._audit)

    def reached(self, what: str, path: str, tear: Callable[[], None] | None = None) -> None:
        """Count a boundary, and do what the fault says if it is the one.

        Raises:
            OSError: if the fault is that the system refuses.
        """
        if not self._below(path):
            return
        boundary = Boundary(len(self.seen), what, _steady(Path(path).name))
        self.seen.append(boundary)
        fault = self._fault
        if fault is None or not fault.at <= boundary.number < fault.at + fault.times:
            return
        if fault.kind == "error":
            full = fault.errno in (errno.ENOSPC, errno.EDQUOT)
            if full and what in ("rmdir", "unlink", "remove"):  # what makes room is not refused
                return
            raise OSError(fault.errno, os.strerror(fault.errno), path)
        if fault.kind == "vanish":
            self._fault = None
            shutil.rmtree(self._folders[0])
            return
        if fault.kind == "torn" and tear is not None:
            tear()
        if fault.kind == "power":
            for name in self._unflushed:
                if Path(name).is_file():
                    _TRUNCATE(name, Path(name).stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def _below(self, path: str) -> bool:
        return any(path == f or path.startswith(f + os.sep) for f in self._folders)

    @staticmethod
    def _path(path: Any, folder: int | None = None) -> str:
        """The real path, whose last part may be a link itself."""
        text = os.fsdecode(path)
        base = Path.cwd() if folder is None else Path(_path_of(folder))
        whole = base / text
        return str(Path(os.path.realpath(whole.parent)) / whole.name)

    def _wrap(self, name: str, path_of: Callable[[Any, Any, Any], str]) -> None:
        real = getattr(os, name)

        def wrapped(*args: Any, **named: Any) -> Any:
            path = path_of(real, args, named)
            self.reached(name, path)
            if name in ("fsync", "fdatasync"):
                self._unflushed.discard(path)
            if name in ("replace", "rename"):
                self._moved(self._path(args[0]), path)
            return self._known(real, *args, **named)

        setattr(os, name, wrapped)

    def _moved(self, old: str, new: str) -> None:
        if old in self._unflushed:
            self._unflushed.discard(old)
            self._unflushed.add(new)
        else:
            self._unflushed.discard(new)

    def _known(self, real: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Call the real function, which the audit hook need not record."""
        self._inside = True
        try:
            return real(*args, **named)
        finally:
            self._inside = False

    def _wrap_os_open(self) -> None:
        real = os.open

        def opened(path: Any, flags: int, *args: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.reached("open", self._path(path, named.get("dir_fd")))
            handle: int = self._known(real, path, flags, *args, **named)
            return handle

        os.open = opened

    def _wrap_os_write(self) -> None:
        real = os.write

        def written(handle: int, data: Any) -> int:
            path = _path_of(handle)
            self._unflushed.add(path)
            self.reached(
                "write", path, lambda: real(handle, bytes(data)[: len(data) // 2]) and None
            )
            return real(handle, data)

        os.write = written

    def _wrap_open(self) -> None:
        real = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
            if isinstance(file, int):
                path, writes = _path_of(file), not mode.startswith("r") or "+" in mode
            else:
                path, writes = self._path(file), not mode.startswith("r") or "+" in mode
                if writes:
                    self.reached("open", path)
            made = self._known(real, file, mode, *args, **named)
            return _File(self, made, path) if writes and self._below(path) else made

        io.open = opened
        builtins.open = opened

    def wrote(self, path: str) -> None:
        """Remember that a file has content which a power cut would lose."""
        self._unflushed.add(path)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._inside or not (event in _AUDITED or (event == "open" and _writes(args))):
            return
        if isinstance(args[0], (str, bytes, os.PathLike)) and self._below(self._path(args[0])):
            self.missed.append(f"{event} {Path(os.fsdecode(args[0])).name}")


class _File:
    """A file whose writes and whose closing are boundaries."""

    def __init__(self, boundaries: Boundaries, file: Any, path: str) -> None:
        self._boundaries, self._file, self._path = boundaries, file, path

    def write(self, data: Any) -> Any:
        def tear() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._boundaries.wrote(self._path)
        self._boundaries.reached("write", self._path, tear)
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def close(self) -> None:
        if not self._file.closed:
            self._boundaries.reached("close", self._path)
        self._file.close()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


_TRUNCATE = os.truncate


def _path_of(handle: Any) -> str:
    """The file behind an open handle, from /proc."""
    number = handle if isinstance(handle, int) else handle.fileno()
    try:
        return str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return ""


def _steady(name: str) -> str:
    """A name without what is different in every run: numbers of processes and threads, digests."""
    parts = [
        "N" if part.isdecimal() or (len(part) >= 32 and part.isalnum()) else part
        for part in name.split(".")
    ]
    return ".".join(parts)


def _writes(args: tuple[Any, ...]) -> bool:
    flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
