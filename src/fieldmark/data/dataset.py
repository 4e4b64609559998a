"""What every reader hands over, and the data set that training gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fieldmark.pictures.picture import U8, Source
from fieldmark.seeding import I64
from fieldmark.settings.config import DataFacts


@dataclass(frozen=True)
class Entry:
    """One picture as a reader found it, not yet opened."""

    key: str
    """Unique name in the data set, '/' between folders, relative: ``train/cat/1.jpg``."""
    label: int
    """Index into the class names."""
    part: str | None = None
    """train, val, test, or None where the data set does not say."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader found: names and labels, and how to get at the pixels."""

    name: str
    """Short name of the data set (the folder's name)."""
    class_names: tuple[str, ...]
    """In label order."""
    entries: tuple[Entry, ...]
    """Sorted by key."""
    load: Callable[[str], Source]
    """Reads a picture by its key; raises BadPicture. Called from several threads."""
    notes: tuple[str, ...] = ()
    """Facts for the plan: what was taken for what, what was ignored."""
    warnings: tuple[str, ...] = ()
    """Things a user should look at."""


@dataclass(frozen=True)
class BadFile:
    """A picture that was left out."""

    key: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Part:
    """The pictures of train, val or test."""

    keys: tuple[str, ...]
    labels: I64
    """[N]"""
    digests: tuple[str, ...]
    """[N] identity of each picture (:class:`Picture`)."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def ids(self) -> npt.NDArray[np.uint64]:
        """[N] the digests' first 64 bits: a picture's identity for every random draw."""
        return np.array([int(d[:16], 16) for d in self.digests], dtype=np.uint64)

    def counts(self, num_classes: int) -> I64:
        """[num_classes] pictures of each class."""
        return np.bincount(self.labels, minlength=num_classes).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Checked pictures in three parts; ``read`` gives the pixels."""

    name: str
    class_names: tuple[str, ...]
    parts: Mapping[str, Part]
    """train and val always; test where there is one."""
    read: Callable[[str], U8]
    """Key to uint8 [H, W, 3]; thread-safe."""
    facts: DataFacts
    fingerprint: str
    """Hash of the parts: keys, labels and digests."""
    bad: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())
