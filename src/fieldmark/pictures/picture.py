"""One picture: its pixels, its identity, and why one cannot be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fieldmark.pictures.limits import PictureLimits

U8 = npt.NDArray[np.uint8]


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
    """[H, W, 3]; or [3, S, S], where a decoding process resized them to an input."""
    notes: tuple[str, ...]
    """What is unusual about the file."""
    side: int
    """The shorter side before any reduction."""
    orientation: int = 1
    """As EXIF counts them; it is applied already."""
    preview: U8 | None = None
    """A small version of the whole picture, [h, w, 3], where a decoding process made one."""


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

    def suits(self, limits: PictureLimits) -> bool:
        """Whether decoding with these limits gives these pixels."""
        wanted = -(-self.side // limits.reduction(self.side)) if self.reducible else self.side
        return int(min(self.pixels.shape[:2])) == wanted


class Source(Protocol):
    """A picture that was read, but not decoded."""

    def name(self, limits: PictureLimits) -> str:
        """Hash of all that decides its pixels; empty where they cost nothing to have again."""

    def decode(self, limits: PictureLimits) -> Picture:
        """Decode it, a JPEG by the rule of :meth:`PictureLimits.reduction`.

        Raises:
            BadPicture: if it cannot be used.
        """


@dataclass(frozen=True)
class InMemory:
    """A picture whose pixels a reader has anyway."""

    pixels: U8

    def name(self, limits: PictureLimits) -> str:
        """Empty: no disk is quicker."""
        return ""

    def decode(self, limits: PictureLimits) -> Picture:
        """Hash the pixels, in full size always."""
        return Picture(self.pixels, digest(self.pixels), min(self.pixels.shape[:2]))
