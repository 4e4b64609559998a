"""Writing a file so that it is whole or absent, whatever happens to the disk or the program.

A file is written as ``.NAME.part`` in the folder where it belongs, flushed to the disk, read back
and compared, renamed over the old one, and then the folder is flushed. A kill or a power cut at any
moment leaves the old content or the new. Reading back finds a write that was cut short or went
elsewhere. What a disk loses later, the checksums of ``checksum.py`` find when the file is read.

A folder may come from a stranger, with links in place of the names that we write. Nothing is ever
written through one: a part is made new, a rename puts the file in the link's place, and what is
written in place is opened by :func:`open_own`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fieldmark.errors import ResourceError, RunError

PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each further try of a write that failed in a way that may pass."""
MARGIN = 65_536
"""Bytes that must stay free beside a file: a folder grows, too."""

_PASSING = {
    getattr(errno, name)
    for name in ("EIO", "EAGAIN", "EBUSY", "EINTR", "ENOLCK", "ESTALE", "ETIMEDOUT", "EREMOTEIO")
    if hasattr(errno, name)
} | ({errno.EACCES} if os.name == "nt" else set())  # a virus scanner has the file open
"""Errors of a network drive or a busy disk that may pass within a second."""
_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
_CHUNK = 1 << 20


def write_atomic(path: Path, data: bytes | memoryview, *, keep: Path | None = None) -> None:
    """Replace a file's content at once, and have it on the disk before returning.

    Args:
        path: The file.
        data: Its new content.
        keep: Where the old content goes, once the new one is verified; None for nowhere.

    Raises:
        ResourceError: if the disk refuses; the old content is still there.
    """
    tries = iter(PAUSES)
    while True:
        try:
            with _replacing(path, keep=keep) as part:
                _write_part(part, data)
        except OSError as error:
            pause = next(tries, None) if error.errno in _PASSING else None
            if pause is None:
                raise ResourceError(_refusal(path, len(data), error)) from error
            time.sleep(pause)
        else:
            sync_folder(path.parent)
            return


def write_again(path: Path, *pieces: bytes | memoryview) -> None:
    """Replace a file that can be made again: at once, but not flushed, and tried only once.

    Other threads and processes may write the same file. The folder is made where there is none.

    Raises:
        OSError: if the disk refuses; the old content is still there.
    """
    folder = path.parent
    if not folder.is_dir():  # half the time that making what is there takes
        folder.mkdir(parents=True, exist_ok=True)
    writer = f".{os.getpid()}.{threading.get_ident()}"
    with _replacing(path, writer=writer) as part, _new(part) as file:
        file.writelines(pieces)


@contextlib.contextmanager
def _replacing(path: Path, *, writer: str = "", keep: Path | None = None) -> Iterator[Path]:
    """Where to write what replaces the file at the end of the block; else nothing is left of it."""
    part = path.with_name(f".{path.name}{writer}.part")
    try:
        yield part
        if keep is not None and path.exists():
            path.replace(keep)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _new(part: Path) -> BinaryIO:
    """Open a file that is not there yet; what has its name is removed, and never written to.

    It may be left of a write that was killed, or a link that somebody put there.
    """
    try:
        return part.open("xb")
    except FileExistsError:
        part.unlink()
        return part.open("xb")


def open_own(path: Path, flags: int) -> int:
    """Open a file that is written in place, and make it where there is none.

    Raises:
        RunError: if the name is not a file's own: what a link leads to, a second name of another
            file, and a device are never written to.
        OSError: if the system refuses.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_own(path, path.lstat())
    try:
        handle = os.open(path, flags | os.O_CREAT | _NO_LINK, 0o644)
    except OSError as error:
        if error.errno in _IS_LINK:
            raise RunError(_NOT_OWN.format(path=path, what="a link")) from None
        raise
    try:
        _check_own(path, os.fstat(handle))  # it may have been put there meanwhile
    except BaseException:
        os.close(handle)
        raise
    return handle


_NO_LINK = sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)
_IS_LINK = (errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP))
_NOT_OWN = (
    "{path} is {what}, and not a file of its own: fieldmark writes nothing there, as it could "
    "change what lies elsewhere; remove it, then do it again"
)


def _check_own(path: Path, found: os.stat_result) -> None:
    """Refuse all but an ordinary file with one name.

    Raises:
        RunError: saying what it is.
    """
    if stat.S_ISLNK(found.st_mode):
        what = "a link"
    elif not stat.S_ISREG(found.st_mode):
        what = "no ordinary file"
    elif found.st_nlink > 1:
        what = "a second name of another file (a hard link)"
    else:
        return
    raise RunError(_NOT_OWN.format(path=path, what=what))


@contextlib.contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A folder to fill, which is at its place, and on the disk, once the block comes to its end.

    Else nothing is left of it, unless the process is killed; what such a one left is removed by the
    next. There must be no folder at the place, or an empty one.

    Raises:
        OSError: if the disk refuses.
    """
    remove_left(place.parent, f".{place.name}.*.part")
    part, held = _made_and_held(place)
    try:
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        part.chmod(0o755)  # mkdtemp made it for this user alone
        part.replace(place)
        sync_folder(place.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if held is not None:
            os.close(held)


def _made_and_held(place: Path) -> tuple[Path, int | None]:
    """A new folder beside the place, with a lock that ends with this process.

    The lock tells it from one that was left by a process that was killed. It is None where the
    system has no locks on folders.
    """
    while True:
        part = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
        held = _hold(part)
        if held is None or part.is_dir():  # else taken for one that was left, and removed
            return part, held
        os.close(held)


def _hold(folder: Path) -> int | None:
    """Lock a folder; None if another process has it, it is no folder, or there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def remove_left(folder: Path, pattern: str = ".*.part") -> None:
    """Remove what writes that were killed left in a folder: files, and folders nobody holds."""
    for part in sorted(folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if part.is_symlink() or not part.is_dir():
                part.unlink()
            elif (held := _hold(part)) is not None:
                shutil.rmtree(part, ignore_errors=True)
                os.close(held)


def _write_part(part: Path, data: bytes | memoryview) -> None:
    """Write, flush, read back, compare."""
    free = _free(part.parent)
    if free is not None and free < len(data) + MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with _new(part) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if not _holds(part, data):
        raise OSError(errno.EIO, "what was written reads back differently")


def _holds(path: Path, data: bytes | memoryview) -> bool:
    """Whether the file has exactly this content."""
    place = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if chunk != bytes(data[place : place + _CHUNK]):
                return False
            place += len(chunk)
    return place == len(data)


def sync_folder(folder: Path) -> None:
    """Flush a folder so that a rename in it survives a power cut, where the file system can."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refusal(path: Path, size: int, error: OSError) -> str:
    """Describe what went wrong, and what to do about it."""
    why, what_now = error.strerror or str(error), ""
    if error.errno in _FULL:
        free = _free(path.parent)
        known = "how much is free is not known" if free is None else f"{amount(free)} free"
        why += f": {amount(size)} needed, {known}"
        what_now = "; make room on the disk (or in your quota), then do it again"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        what_now = "; make the folder writable, or choose another"
    elif not path.parent.is_dir():
        what_now = "; the folder is gone: bring it back (is the drive connected?)"
    return (
        f"cannot write {path.name} in {path.parent}: {why}; "
        f"what was there before is unchanged{what_now}"
    )


def require_room(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin work that the disk has no room for.

    Args:
        folder: Folder that will be written to; it need not exist yet.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        ResourceError: if fewer are free.
    """
    place = folder.resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    free = _free(place)
    if free is not None and free < needed:
        raise ResourceError(
            f"{what} needs {amount(needed)} on the disk of {folder}, where {amount(free)} are "
            "free; make room, or choose another disk with --out"
        )


def _free(folder: Path) -> int | None:
    """Free bytes; None where the file system does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def amount(size: int) -> str:
    """A number of bytes as text, such as ``1.5 GB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
