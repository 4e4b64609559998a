"""Decoded pictures on disk: one small file each, found by content, shared by runs and processes.

They lie in the user's cache folder and nowhere else. A file is written under another name and then
renamed, so that two processes may write the same one. Every read checks it, and one that is cut
short or damaged counts as absent and is replaced. Nothing here raises: a disk that is full,
read-only or broken makes decoding slower, and :attr:`Disk.warning` says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.files.writing import write_again
from fieldmark.pictures.picture import Deep, Picture

MARGIN = 2 * 2**30
"""Bytes of the disk that are left free for others."""
_HEAD = struct.Struct("<4sIIIIII32s")
"""Magic, checksum of what follows, height, width, side, whether reducible, bytes of JSON behind the
pixels, identity."""
_MAGIC = b"FMP2"
_CHECKED = 8
"""Bytes before those that the checksum covers."""
_STALE = 3600.0
"""Seconds after which a file that was never renamed counts as abandoned."""


@dataclass(frozen=True)
class Usage:
    """How much the folder holds."""

    pictures: int
    nbytes: int


def _rest(picture: Picture) -> bytes:
    """What is unusual about a picture, as JSON; empty for nearly all."""
    if not picture.notes and picture.deep is None:
        return b""
    value = {"notes": picture.notes, "deep": picture.deep, "scale": picture.scale}
    return json.dumps(value).encode()


def _facts(rest: bytes) -> dict[str, Any]:
    if not rest:
        return {}
    value = json.loads(rest)
    deep = None if value["deep"] is None else Deep(*value["deep"])
    return {"notes": tuple(value["notes"]), "deep": deep, "scale": value["scale"]}


def _checksum(head: bytes, pixels: memoryview, rest: bytes) -> int:
    return zlib.crc32(rest, zlib.crc32(pixels, zlib.crc32(head[_CHECKED:])))


class Disk:
    """A folder of decoded pictures, kept to a number of bytes. Thread-safe.

    Pictures that this object wrote or read are not removed to make room: otherwise an epoch larger
    than the limit would find nothing from the epoch before. Two processes at once may exceed the
    limit by what they write between two counts.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._started = time.time() - 1  # clocks of file systems lag
        self._left: int | None = None
        """Bytes left until the limit; counted when first needed."""
        self._lock = threading.Lock()
        self.is_empty = next(self._files(), None) is None
        """Whether the folder was empty and still is, so that there is nothing to get."""
        self.warning = ""
        """Why nothing is written any more; empty while writing works."""

    def get(self, name: str) -> Picture | None:
        """Return the picture with that name, if it is there and whole."""
        try:
            with self._path(name).open("rb") as file:
                facts = os.fstat(file.fileno())
                head = file.read(_HEAD.size)
                magic, check, height, width, side, reducible, more, identity = _HEAD.unpack(head)
                if magic != _MAGIC or facts.st_size != _HEAD.size + height * width * 3 + more:
                    return None
                pixels = np.empty((height, width, 3), dtype=np.uint8)
                if file.readinto(pixels.reshape(-1).data) != pixels.nbytes:
                    return None
                rest = file.read(more)
            if _checksum(head, pixels.reshape(-1).data, rest) != check:
                return None
            if facts.st_mtime < self._started:
                os.utime(self._path(name))  # used: the last to be removed
            facts_ = _facts(rest)
            return Picture(pixels, identity.decode("ascii"), side, bool(reducible), **facts_)
        except (OSError, struct.error, ValueError, TypeError, MemoryError):
            return None

    def put(self, name: str, picture: Picture) -> None:
        """Write a picture, unless there is no room for it."""
        pixels = np.ascontiguousarray(picture.pixels).reshape(-1).data
        height, width = picture.pixels.shape[:2]
        rest = _rest(picture)
        facts = height, width, picture.side, picture.reducible, len(rest)
        head = _HEAD.pack(_MAGIC, 0, *facts, picture.identity.encode("ascii"))
        check = _checksum(head, pixels, rest)
        head = _MAGIC + struct.pack("<I", check) + head[_CHECKED:]
        if self.warning or not self._room(len(head) + len(pixels) + len(rest)):
            return
        try:
            write_again(self._path(name), head, pixels, rest)
            self.is_empty = False
        except OSError as error:
            self.warning = (
                f"cannot write to the folder for decoded pictures: {error.strerror or error}"
            )

    def usage(self) -> Usage:
        """Count the files and bytes in the folder."""
        sizes = [facts.st_size for _, facts in self._files()]
        return Usage(len(sizes), sum(sizes))

    def prune(self, limit: int, *, before: float = float("inf")) -> Usage:
        """Remove pictures, those used longest ago first, until ``limit`` bytes are left.

        Args:
            limit: Bytes that may stay.
            before: Only pictures last used before this time are removed.
        """
        files = sorted(self._files(), key=lambda item: item[1].st_mtime)
        total = sum(facts.st_size for _, facts in files)
        number = len(files)
        for path, facts in files:
            if total <= limit or facts.st_mtime >= before:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                number, total = number - 1, total - facts.st_size
        return Usage(number, total)

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the files with their facts, and remove leftovers of processes that were killed."""
        for folder in self._folder.glob("[0-9a-f][0-9a-f]"):
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):  # another process may just have removed it
                        facts = entry.stat(follow_symlinks=False)
                        if not entry.name.startswith("."):
                            yield Path(entry.path), facts
                        elif time.time() - facts.st_mtime > _STALE:
                            Path(entry.path).unlink()

    def _room(self, nbytes: int) -> bool:
        """Take so many bytes from what is left, removing old pictures where that helps."""
        with self._lock:
            if self._left is None:
                self._left = self._limit - self.usage().nbytes
            if self._left < nbytes:
                # A little more than is needed, so that not every picture goes through the folder.
                goal = self._limit - max(nbytes, self._limit // 20)
                self._left = self._limit - self.prune(goal, before=self._started).nbytes
            if self._left < nbytes:
                self.warning = (
                    f"the {self._limit / 1e9:g} GB for decoded pictures (disk_gb) are used"
                )
                return False
            if self._free() - nbytes < MARGIN:
                self.warning = f"less than {MARGIN // 2**30} GiB of the disk are free"
                return False
            self._left -= nbytes
            return True

    def _free(self) -> int:
        """Free bytes on the disk of the folder, which need not exist yet."""
        for folder in (self._folder, *self._folder.parents):
            with contextlib.suppress(OSError):
                return shutil.disk_usage(folder).free
        return 0
