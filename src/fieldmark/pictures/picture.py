"""One picture: its pixels, its identity, and the reason why it cannot be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fieldmark.pictures.limits import PictureLimits

U8 = npt.NDArray[np.uint8]


class BadPicture(Exception):  # noqa: N818 - it is about a picture, not about the program
    """One picture cannot be used: ``reason`` is short, for counting; ``detail`` is for reading."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def digest(image: U8) -> str:
    """Hash of a picture's size and pixels: its identity, whatever the file is called or contains.

    Only a JPEG has another identity (``jpeg.identity``), as it may be decoded at several sizes.

    Shape:
        uint8 [H, W, 3] to 32 hexadecimal digits.
    """
    head = f"{image.shape[0]}x{image.shape[1]}:".encode()
    hasher = hashlib.sha256(head)
    hasher.update(np.ascontiguousarray(image).data)
    return hasher.hexdigest()[:32]


class Deep(NamedTuple):
    """What is known of a picture whose samples have more than 8 bits."""

    identity: str
    """Its identity, whatever the scale is (``samples``)."""
    low: float
    """Least sample, outliers left out."""
    high: float
    """Greatest sample, outliers left out."""
    kind: str
    """Kind of number, for people: '16 bits' or 'floats'."""


class Decoded(NamedTuple):
    """The result of decoding a file."""

    pixels: npt.NDArray[Any]
    """uint8 [H, W, 3]; or [3, S, S], where a decoding process resized them to an input."""
    notes: tuple[str, ...]
    """Notes on what is unusual about the file."""
    side: int
    """Shorter side in pixels, before any reduction."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; the pixels have it applied already."""
    preview: U8 | None = None
    """A small version of the whole picture, [h, w, 3], where a decoding process made one."""
    deep: Deep | None = None
    """What is known of samples of more than 8 bits."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, and what is known about it."""

    pixels: U8
    """[H, W, 3]"""
    identity: str
    """32 hexadecimal digits: the same for copies, at whatever size they were decoded."""
    side: int
    """Shorter side in pixels, before any reduction."""

    reducible: bool = False
    """Whether its format can be decoded at a smaller size (JPEG)."""
    notes: tuple[str, ...] = ()
    """Notes on what is unusual about the file."""
    deep: Deep | None = None
    """What is known of samples of more than 8 bits."""
    scale: str = ""
    """The scale (``samples``) that made bytes of them; empty for a picture of 8 bits."""

    def suits(self, limits: PictureLimits) -> bool:
        """Whether decoding with these limits would give these pixels."""
        if self.scale not in ("", limits.range):
            return False
        wanted = -(-self.side // limits.reduction(self.side)) if self.reducible else self.side
        return int(min(self.pixels.shape[:2])) == wanted


class PictureSource(Protocol):
    """A picture that was read, but not decoded."""

    def name(self, limits: PictureLimits) -> str:
        """Hash of all that decides its pixels; empty where a disk would not save any time."""

    def decode(self, limits: PictureLimits) -> Picture:
        """Decode it, a JPEG by the rule of :meth:`PictureLimits.reduction`.

        Raises:
            BadPicture: if it cannot be used.
        """


@dataclass(frozen=True)
class InMemory:
    """A picture whose pixels a reader holds in memory anyway."""

    pixels: U8

    def name(self, limits: PictureLimits) -> str:
        """Empty, because no disk is faster than memory."""
        return ""

    def decode(self, limits: PictureLimits) -> Picture:
        """Hash the pixels, which are always in full size."""
        return Picture(self.pixels, digest(self.pixels), min(self.pixels.shape[:2]))
