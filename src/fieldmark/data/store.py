"""Pictures decoded once: in memory up to a budget, beyond it on disk.

All pixels in memory share one budget: the decoded pictures here, and those resized to a network's
input in ``batches``, for which decoded ones give way. The disk keeps decoded pictures and not
resized ones: a decoded picture serves every size, crop and recipe and the next run's first look at
a folder, while a resized one serves one setting, and memory holds several times as many of those.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

from fieldmark.data.disk import Disk
from fieldmark.errors import DataError
from fieldmark.files.cache import cache_dir
from fieldmark.machine import memory
from fieldmark.names import shown
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture, Picture, PictureSource
from fieldmark.settings.config import TrainConfig

MOST_MEMORY = 2 * 2**30
"""Budget in bytes where ``memory_gb`` is 0, unless a quarter of the free memory is less."""


def disk_folder() -> Path:
    """Return the folder of decoded pictures."""
    return cache_dir() / "pictures"


class Memory:
    """A budget of bytes. Thread-safe."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._left = budget
        self._lock = threading.Lock()

    @classmethod
    def of(cls, memory_gb: float) -> Memory:
        """Make the budget for a setting."""
        if memory_gb:
            return cls(int(memory_gb * 1e9))
        return cls(min(MOST_MEMORY, memory.free() // 4))

    def take(self, nbytes: int, *, giving: int = 0) -> bool:
        """Take so many bytes and give ``giving`` back, if that fits; else change nothing."""
        with self._lock:
            if self._left + giving < nbytes:
                return False
            self._left += giving - nbytes
            return True

    def give(self, nbytes: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._left += nbytes


class Pictures:
    """Reads pictures by key and keeps what it decoded. Thread-safe."""

    def __init__(
        self,
        load: Callable[[str], PictureSource],
        *,
        limits: PictureLimits,
        memory: Memory,
        disk: Disk | None = None,
    ) -> None:
        self.memory = memory
        self.disk = disk
        self._load = load
        self._limits = limits
        self._held: dict[str, Picture] = {}
        self._names: dict[str, str] = {}
        """Names of the pictures on disk by key, so that no file is read again to find out."""
        self._identities: dict[str, str] = {}
        """Identities by key, as each picture was when it was first opened."""
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, load: Callable[[str], PictureSource], config: TrainConfig, *, limits: PictureLimits
    ) -> Pictures:
        """Make a store as the settings ask for."""
        disk = Disk(disk_folder(), int(config.disk_gb * 1e9)) if config.disk_gb else None
        return cls(load, limits=limits, memory=Memory.of(config.memory_gb), disk=disk)

    def at(self, limits: PictureLimits) -> Pictures:
        """Return the same pictures within other limits; both share what is held.

        A picture that was decoded already and is the same within the new limits is kept.
        """
        other = copy.copy(self)
        other._limits, other._names = limits, {}
        return other

    def __call__(self, key: str) -> U8:
        """Read the pixels, uint8 [H, W, 3], of a picture that was good when it was first opened.

        Raises:
            DataError: if it cannot be read any more.
        """
        try:
            return self.picture(key).pixels
        except BadPicture as bad:
            raise DataError(
                f"{shown(key)} could be read before and now cannot: {bad}; put it back as it was, "
                "then resume with fieldmark resume"
            ) from None

    def picture(self, key: str) -> Picture:
        """Get a picture from memory, else from the disk, else by decoding.

        Raises:
            BadPicture: if it cannot be used.
        """
        held = self._held.get(key)
        if held is not None and held.suits(self._limits):
            return held
        stored = self._from_disk(self._names.get(key, ""))
        if stored is not None:
            return stored
        source = self._load(key)
        disk, name = self.disk, ""
        if disk is not None and not disk.is_empty:
            name = source.name(self._limits)
            stored = self._from_disk(name)
        picture = stored or source.decode(self._limits)
        if self._identities.setdefault(key, picture.identity) != picture.identity:
            raise BadPicture("another picture is in its place")
        if self._hold(key, picture) or disk is None:
            return picture
        name = name or source.name(self._limits)
        if name:
            self._names[key] = name
            if stored is None:
                disk.put(name, picture)
        return picture

    def make_room(self, key: str, nbytes: int) -> bool:
        """Take so many bytes of the budget, giving up the decoded picture if they fit only then.

        They are for the resized picture that replaces the decoded one.
        """
        if self.memory.take(nbytes):
            return True
        with self._lock:
            held = self._held.get(key)
            if held is None or not self.memory.take(nbytes, giving=held.pixels.nbytes):
                return False
            del self._held[key]
            return True

    def _from_disk(self, name: str) -> Picture | None:
        return self.disk.get(name) if self.disk is not None and name else None

    def _hold(self, key: str, picture: Picture) -> bool:
        with self._lock:
            old = self._held.get(key)
            given = 0 if old is None else old.pixels.nbytes
            if not self.memory.take(picture.pixels.nbytes, giving=given):
                return False
            self._held[key] = picture
            return True
