"""Writing a file so that it is whole or absent, whatever happens to the disk or the program.

A file is written as ``.NAME.part`` in the folder where it belongs, flushed to the disk, read back
and compared, renamed over the old one, and then the folder is flushed. A kill or a power cut at any
moment leaves the old content or the new. Reading back finds a write that was cut short or went
elsewhere. What a disk loses later, the checksums of ``checksum.py`` find when the file is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fieldmark.errors import ResourceError

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
    with _replacing(path, writer=writer) as part, part.open("wb") as file:
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


@contextlib.contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A folder to fill, which is at its place, and on the disk, once the block comes to its end.

    Else nothing is left of it. There must be no folder at the place, or an empty one.

    Raises:
        OSError: if the disk refuses.
    """
    part = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
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


def _write_part(part: Path, data: bytes | memoryview) -> None:
    """Write, flush, read back, compare."""
    free = _free(part.parent)
    if free is not None and free < len(data) + MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with part.open("wb") as file:
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
