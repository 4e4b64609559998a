"""What every reader hands over, and the data set that training gets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fieldmark.config import DataFacts
from fieldmark.data.jpeg import reduction

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


class BadPicture(Exception):  # noqa: N818 - it is about a picture, not about the program
    """One picture cannot be used: a short reason to count by, and a detail to read."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def digest(image: U8) -> str:
    """Hash of a picture's size and pixels: its identity, whatever the file is called or contains.

    Only a JPEG has another, see ``jpeg.identity``: its pixels may be decoded at several sizes.

    Shape:
        uint8 [H, W, 3] to 32 hexadecimal digits.
    """
    head = f"{image.shape[0]}x{image.shape[1]}:".encode()
    hasher = hashlib.sha256(head)
    hasher.update(np.ascontiguousarray(image).data)
    return hasher.hexdigest()[:32]


class Decoded(NamedTuple):
    """What a decoder makes of a file."""

    pixels: U8
    """[H, W, 3]"""
    notes: tuple[str, ...]
    """What is unusual about the file."""
    side: int
    """The shorter side before any reduction."""
    orientation: int = 1
    """As EXIF counts them; it is applied already."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, and what is known of it."""

    pixels: U8
    """[H, W, 3]"""
    identity: str
    """32 hexadecimal digits: the same for copies, at whatever size they were decoded."""
    side: int
    """Its shorter side in pixels, before any reduction."""

    reducible: bool = False
    """Whether it is of a format that is decoded at a smaller size where that is enough."""

    def suits(self, at_least: int) -> bool:
        """Whether decoding with this least side gives these pixels."""
        wanted = -(-self.side // reduction(self.side, at_least)) if self.reducible else self.side
        return int(min(self.pixels.shape[:2])) == wanted


class Source(Protocol):
    """A picture that was read, but not decoded."""

    def name(self, at_least: int) -> str:
        """Hash of all that decides its pixels; empty where they cost nothing to have again."""

    def decode(self, at_least: int) -> Picture:
        """Decode it, a JPEG by the rule of ``jpeg.reduction``.

        Raises:
            BadPicture: if it cannot be used.
        """


@dataclass(frozen=True)
class InMemory:
    """A picture whose pixels a reader has anyway."""

    pixels: U8

    def name(self, at_least: int) -> str:
        """Empty: no disk is quicker."""
        return ""

    def decode(self, at_least: int) -> Picture:
        """Hash the pixels, in full size always."""
        return Picture(self.pixels, digest(self.pixels), min(self.pixels.shape[:2]))


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
