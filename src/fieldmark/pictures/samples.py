"""Samples of more than 8 bits: which of them is black, and which is white.

A scale is a text, as the setting ``range`` and ``InputSpec`` have it:

    ============= ================================================================================
    ``LOW,HIGH``  LOW becomes black and HIGH white, what lies beyond is cut off: one scale for all
                  pictures of a data set. Chosen on its training pictures by :func:`chosen`.
    ``type``      0 to 65535 for whole numbers (0 to 4095 where a file says that they have 12 bits),
                  0 to 1 for floats
    ``picture``   what models before ``range`` were trained with: each picture by its own largest
                  value, see :func:`_by_picture`
    ============= ================================================================================

Rounded to the nearest of 256 levels. Pictures of 8 bits are the same in every scale.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldmark.pictures.picture import U8, BadPicture, Deep, digest
from fieldmark.settings.config import scale_of

WHITE = 65535.0
"""White of whole numbers, where a file does not say how many bits they have."""
OFF_SCALE = "samples of"
"""How notes begin that say that a picture is nearly black or white in the scale of its type."""
_AT_ONCE = 2**20
"""Samples that are computed with at once."""
_OUTLIERS = 10_000
"""One of so many samples may be a dead or a hot pixel, and does not count for a picture's range."""
_ODD = 100
"""One of so many pictures may have a range of its own; of eight or more, one in any case."""


@dataclass(frozen=True)
class Samples:
    """What a file holds, upright."""

    values: npt.NDArray[Any]
    """[H, W] grey or [H, W, 3]; numbers of any kind."""
    white: float
    """Value that is white in the scale ``type``."""
    opacity: npt.NDArray[Any] | None = None
    """[H, W], 0 to 1; the picture is laid over white."""

    def picture(self, scale: str) -> tuple[U8, Deep | None]:
        """Make bytes of them; samples of 8 bits are bytes already, and not deep.

        Shape:
            uint8 [H, W, 3]

        Raises:
            BadPicture: 'not finite' if there is a NaN or an infinity.
        """
        if self.values.dtype == np.uint8:
            return self._bytes(lambda part: part * (255 / self.white)), None
        with np.errstate(invalid="ignore"):
            low, high = float(self.values.min()), float(self.values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise BadPicture("not finite", "NaN or infinite pixel values")
        if scale == "picture":
            pixels = self._bytes(lambda part: _by_picture(part, low, high))
            return pixels, Deep(digest(pixels), low, high, self._kind)
        black, white = (0.0, self.white) if scale == "type" else scale_of(scale)
        pixels = self._bytes(lambda part: _scaled(part, black, white))
        return pixels, Deep(self._identity(), *_inner(self.values, low, high), self._kind)

    def notes(self, scale: str, found: Deep | None) -> tuple[str, ...]:
        """Say where the scale of the type hardly suits them: 12 bits in 16, floats beyond 1."""
        if found is None or scale != "type" or self.white / 4 < found.high <= self.white:
            return ()
        found_range = f"{found.kind} from {found.low:.6g} to {found.high:.6g}"
        return (f"{OFF_SCALE} {found_range}, where 0 is black and {self.white:g} white",)

    @property
    def _kind(self) -> str:
        kind = self.values.dtype.kind
        return "floats" if kind == "f" else f"{8 * self.values.dtype.itemsize} bits"

    def _bytes(self, scale: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> U8:
        """Scale to levels from 0 to 255, lay over white and round; a few rows at a time."""
        pixels = np.empty((*self.values.shape[:2], 3), np.uint8)
        rows = max(1, _AT_ONCE // max(1, self.values[0].size))
        for top in range(0, len(pixels), rows):
            levels = np.atleast_3d(scale(self.values[top : top + rows]))
            if self.opacity is not None:
                part = self.opacity[top : top + rows, :, None]
                levels = levels * part + 255 * (1 - part)
            pixels[top : top + rows] = np.rint(levels)
        return pixels

    def _identity(self) -> str:
        """Hash of the samples, whatever the scale; of 8 bits stored in 16, that of the 8."""
        values = self.values
        if values.dtype == np.uint16 and self.white == WHITE and not (values % 257).any():
            return digest(self._bytes(lambda part: _scaled(part, 0.0, WHITE)))
        hasher = hashlib.sha256(f"{values.shape}, {values.dtype}:".encode())
        hasher.update(np.ascontiguousarray(values).data)
        if self.opacity is not None:
            hasher.update(np.ascontiguousarray(self.opacity, np.float32).data)
        return hasher.hexdigest()[:32]


def _scaled(values: npt.NDArray[Any], black: float, white: float) -> npt.NDArray[Any]:
    return np.clip((values.astype(np.float64) - black) * (255 / (white - black)), 0, 255)


def _inner(values: npt.NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Least and greatest sample, but for the :data:`_OUTLIERS`."""
    k = values.size // _OUTLIERS
    if not k:
        return low, high
    flat = np.partition(values.reshape(-1), (k, values.size - 1 - k))
    return float(flat[k]), float(flat[-1 - k])


def _by_picture(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[Any]:
    """Scale by the picture's own range, as models before the setting ``range`` were trained.

    0 to 1 (floats only) times 255; 0 to 255 as it is; 0 to 65535 divided by 257; any other from
    its least to its greatest value. 16 bits are always divided by 257, in colour by 256.
    """
    if values.dtype == np.uint16:
        return values >> 8 if values.ndim == 3 else values / np.float32(257)
    if low < 0 or high > WHITE:
        return (values - np.float64(low)) * (255 / (high - low) if high > low else 0.0)
    if values.dtype.kind == "f" and high <= 1:
        return values * np.float32(255)
    return values if high <= 255 else values / np.float64(257)


def chosen(pictures: Iterable[Deep]) -> str:
    """Choose the scale of a data set from its training pictures, of which there is one or more.

    It goes from the least of their samples to the greatest; a picture in a hundred may lie outside.
    """
    lows, highs = zip(*((each.low, each.high) for each in pictures), strict=True)
    n = len(lows)
    odd = n // _ODD + 1 if n >= 8 else 0
    low, high = sorted(lows)[odd], sorted(highs)[-1 - odd]
    if not low < high:  # every picture is of one colour
        low, high = min(lows), max(highs)
    return f"{low:.9g},{high if low < high else low + max(1.0, abs(low)):.9g}"
