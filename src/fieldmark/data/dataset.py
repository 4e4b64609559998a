"""What every reader returns, and the data set that training gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fieldmark.errors import DataError
from fieldmark.names import shown
from fieldmark.pictures.picture import U8, PictureSource
from fieldmark.seeding import I64, permutation, stream
from fieldmark.settings.config import DataFacts


@dataclass(frozen=True)
class Entry:
    """One picture as a reader found it, not yet opened."""

    key: str
    """Unique name in the data set: a relative path with '/', such as ``train/cat/1.jpg``."""
    label: int
    """Index into the class names."""
    part: str | None = None
    """Split: train, val, test, or None where the data set does not say."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader found: names, labels, and a function that reads the pixels."""

    name: str
    """Short name of the data set (the folder's name)."""
    class_names: tuple[str, ...]
    """Class names in label order."""
    entries: tuple[Entry, ...]
    """Entries sorted by key."""
    load: Callable[[str], PictureSource]
    """Reads a picture by its key; raises BadPicture. Several threads call it."""
    notes: tuple[str, ...] = ()
    """Facts for the plan: what was read as what, and what was ignored."""
    warnings: tuple[str, ...] = ()
    """Things that the user should look at."""

    def in_order_of(self, names: Sequence[str]) -> Found:
        """Put the classes into another order; classes that it does not name come behind.

        Raises:
            DataError: if one of the names is no class here.
        """
        missing = [name for name in names if name not in self.class_names]
        if missing:
            raise DataError(
                f"{shown(self.name)} has no class {', '.join(map(shown, missing[:5]))}, which the "
                "run knows; put pictures of it there, or train anew without --from"
            )
        ordered = (*names, *(name for name in self.class_names if name not in names))
        place = [ordered.index(name) for name in self.class_names]
        entries = tuple(dataclasses.replace(e, label=place[e.label]) for e in self.entries)
        return dataclasses.replace(self, class_names=ordered, entries=entries)


@dataclass(frozen=True)
class BadFile:
    """A picture that was left out, and why."""

    key: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Part:
    """The pictures of one split: train, val or test."""

    keys: tuple[str, ...]
    labels: I64
    """[N]"""
    digests: tuple[str, ...]
    """[N] identity of each picture (:class:`Picture`)."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def ids(self) -> npt.NDArray[np.uint64]:
        """First 64 bits of the digests, [N]: a picture's identity for every random draw."""
        return np.array([int(d[:16], 16) for d in self.digests], dtype=np.uint64)

    def counts(self, num_classes: int) -> I64:
        """Number of pictures of each class, [num_classes]."""
        return np.bincount(self.labels, minlength=num_classes).astype(np.int64)

    def sample(self, count: int, purpose: str) -> Part:
        """Choose ``count`` pictures by their content, and by what they are for; all for 0."""
        if not 0 < count < len(self):
            return self
        return self.take(np.sort(permutation(self.ids, stream(purpose))[:count]))

    def take(self, places: I64) -> Part:
        """The pictures at these places, [M], in their order."""
        return Part(
            keys=tuple(self.keys[i] for i in places),
            labels=self.labels[places],
            digests=tuple(self.digests[i] for i in places),
        )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Checked pictures in their splits; ``read`` gives the pixels."""

    name: str
    class_names: tuple[str, ...]
    parts: Mapping[str, Part]
    """The splits by name: train and val always; test where there is one."""
    read: Callable[[str], U8]
    """Reads a picture by its key: uint8 [H, W, 3]. Thread-safe."""
    facts: DataFacts
    fingerprint: str
    """Hash of the splits: keys, labels and digests."""
    scale: str = "type"
    """Scale of samples of more than 8 bits (``pictures/samples.py``)."""
    bad: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())
