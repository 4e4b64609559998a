"""One writer at a time: the lock on a run directory, and that on a file of the cache folder.

A run's lock is an operating-system lock on the file ``.lock``. It ends with the process that holds
it, however that process ends, so no stale lock is ever left behind. On file systems without locks
(some network and user-space ones) the content of the file decides: the process's number, when it
started, and a hash of the machine's boot. So neither a later process of the same number nor one on
another machine is taken for the owner. The file holds no name of a user or a machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fieldmark.errors import ConfigError, ResourceError
from fieldmark.files.cache import cache_errors
from fieldmark.files.writing import open_own

FILE = ".lock"


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    pid: int
    start: str
    """When the process started, in ticks since the boot; empty where that is not known."""
    machine: str
    """Hash of the boot and of the process-number namespace; empty where that is not known."""

    @classmethod
    def of(cls, pid: int) -> Owner:
        """Describe a process; ``start`` is empty if there is none with this number."""
        return cls(pid, _start(pid), _machine())

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Read the owner from a lock file; None if it is empty, half written or something else."""
        try:
            value = json.loads(path.read_bytes())
            owner = cls(int(value["pid"]), str(value["start"]), str(value["machine"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return owner if owner.pid > 0 else None

    def may_live(self) -> bool:
        """Whether the process may still be running; always true for one on another machine."""
        here = Owner.of(self.pid)
        if here.machine != self.machine:
            return True
        return _exists(self.pid) and here.start == self.start


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a run directory, or refuse.

    Raises:
        ConfigError: if another process writes there; it is named by its number.
        RunError: if the lock's name is that of a link.
        ResourceError: if the folder cannot be written.
    """
    path = folder / FILE
    handle = _acquire(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(asdict(Owner.of(os.getpid()))).encode())
        yield
    finally:
        # Removed while it is locked, so that no process locks a file that is no longer there.
        # Windows removes no open file.
        if os.name == "nt":
            os.close(handle)
        with contextlib.suppress(OSError):
            path.unlink()
        if os.name != "nt":
            os.close(handle)


@contextlib.contextmanager
def waited_for(file: Path, *, seconds: float = 3600.0) -> Iterator[None]:
    """Hold a lock on a file of the cache folder, waiting while another process has it.

    Raises:
        ResourceError: if the folder cannot be written, its file system knows no locks, or the
            other process does not finish in time.
    """
    with cache_errors(file.parent):
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + seconds
        while not _lock_in_cache(handle, file, late=time.monotonic() > deadline):
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _lock_in_cache(handle: int, file: Path, *, late: bool) -> bool:
    """Try to lock a file of the cache folder; False while another process has it."""
    try:
        if _lock(handle):
            return True
        why = "the file system knows no locks"
    except BlockingIOError as error:
        if not late:
            return False
        why = f"{error.strerror}; another download may hang"
    raise ResourceError(f"cannot lock {file}: {why}; name a local folder with FIELDMARK_CACHE")


def _acquire(path: Path) -> int:
    """Open the lock file and lock it; returns the open file."""
    while True:
        try:
            handle = open_own(path, os.O_RDWR)
        except OSError as error:
            raise ResourceError(
                f"cannot write in {path.parent}: {error.strerror or error}; "
                "make the folder writable, or choose another"
            ) from error
        try:
            _take(handle, path)
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, path):
            return handle
        os.close(handle)  # its owner has removed it meanwhile


def _take(handle: int, path: Path) -> None:
    """Lock the open file, or refuse."""
    try:
        if _lock(handle):
            return
    except BlockingIOError:
        owner = Owner.read(path)
        who = f"process {owner.pid}" if owner else "another process"
        raise ConfigError(
            f"{path.parent} is being written by {who}; wait for it, or stop it"
        ) from None
    owner = Owner.read(path)
    if owner is None or owner.pid == os.getpid() or not owner.may_live():
        return
    raise ConfigError(
        f"{path.parent} is being written by process {owner.pid}; wait for it, or stop it"
        + ("" if owner.machine == _machine() else f"; if nothing writes there, remove {path}")
    )


def _lock(handle: int) -> bool:
    """Take the operating system's lock; False where the file system has none.

    Raises:
        BlockingIOError: if another process has it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 30, os.SEEK_SET)  # behind the content, which stays readable
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            except PermissionError as error:
                raise BlockingIOError from error
            finally:
                os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _exists(pid: int) -> bool:
    """Whether there is a process with this number; sends it nothing."""
    if sys.platform == "win32":
        return True  # os.kill would end it; Windows has locks on every file system it knows
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _start(pid: int) -> str:
    """When a process started, in ticks since the boot; proc(5), fields 3 and 22."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    after_name = stat.rpartition(")")[2].split()
    return "" if after_name[0] in "ZX" else after_name[19]  # a zombie writes no more


def _machine() -> str:
    """Hash of this machine's present boot and of its process-number namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    return hashlib.sha256(f"{boot}{space}".encode()).hexdigest()[:16]
