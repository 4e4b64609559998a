"""Unpacking archives from strangers: plain files and folders, all of them or nothing."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fieldmark.errors import DataError, ResourceError
from fieldmark.files.cache import cache_errors
from fieldmark.files.writing import new_folder

CHUNK = 1024 * 1024
"""Largest number of bytes read at a time."""

MAX_MEMBERS = 10_000
"""Largest number of files and folders in an archive."""


def extract(archive: Path, *, into: Path, max_bytes: int = 2 * 1024**3) -> Path:
    """Unpack a ``.tar.gz`` of plain files and folders; all of it, or nothing.

    Raises:
        DataError: if the archive is damaged, too large, or holds links, devices or paths that
            lead out of it.
        ResourceError: if it cannot be stored.
    """
    if not archive.is_file():
        raise DataError(f"no archive {archive}")
    if into.exists():
        raise ResourceError(f"{into} exists already; delete it to unpack {archive.name} again")
    with cache_errors(into.parent):
        into.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(into) as half, archive.open("rb") as file:
            _unpack(file, name=archive.name, into=half, max_bytes=max_bytes)
    return into


_BROKEN_TAR = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError),
    *(ValueError, LookupError, RecursionError),  # tarfile lets these through for made-up headers
    *(FileExistsError, NotADirectoryError, IsADirectoryError),  # a file where a folder is needed
)


def _unpack(file: IO[bytes], *, name: str, into: Path, max_bytes: int) -> None:
    try:
        capped: Any = _Capped(gzip.GzipFile(fileobj=file), name=name, max_bytes=max_bytes)
        with tarfile.open(fileobj=capped, mode="r:", errorlevel=2) as tar:  # 2: raise everything
            seen: set[str] = set()
            total = 0
            for member in tar:
                total += member.size
                if total > max_bytes or len(seen) >= MAX_MEMBERS:
                    raise DataError(
                        f"{name} holds more than {max_bytes} bytes or {MAX_MEMBERS} files"
                    )
                _check(member, name=name, seen=seen)
                tar.extract(member, path=into, set_attrs=False, filter="data")
    except _BROKEN_TAR as error:
        raise DataError(
            f"{name} is not a .tar.gz that can be read: {str(error)[:200] or type(error).__name__}"
        ) from None


def _check(member: tarfile.TarInfo, *, name: str, seen: set[str]) -> None:
    shown = member.name[:100]
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise DataError(f"{name} holds {shown!r}, which is a link or a device; none is accepted")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or any(c in member.name for c in "\\:\0"):
        raise DataError(f"{name} holds {shown!r}, whose path leads out of the archive")
    key = str(path).casefold()  # one file where the file system does not tell cases apart
    if key in seen:
        raise DataError(f"{name} holds {shown!r} twice")
    seen.add(key)


class _Capped:
    """A stream for tarfile that stops archive bombs: it limits each read, and the whole.

    Each read has to be limited because tarfile reads a header's extension in one go, however long
    the header says it is.
    """

    def __init__(self, stream: gzip.GzipFile, *, name: str, max_bytes: int) -> None:
        self.stream = stream
        self.name = name
        self.max_bytes = max_bytes + 2048 * MAX_MEMBERS + CHUNK  # what headers and padding take

    def _allow(self, position: int) -> None:
        if position > self.max_bytes:
            raise DataError(f"{self.name} unpacks to more than {self.max_bytes} bytes")

    def read(self, size: int = -1) -> bytes:
        """Read like a file, within the limits."""
        if not 0 <= size <= CHUNK:
            raise DataError(f"{self.name} has a header of {size} bytes; at most {CHUNK} accepted")
        self._allow(self.stream.tell() + size)
        return self.stream.read(size)

    def seek(self, position: int) -> int:
        """Move to a position counted from the start, within the limit."""
        self._allow(position)
        return self.stream.seek(position)

    def tell(self) -> int:
        """Position in the unpacked data."""
        return self.stream.tell()
