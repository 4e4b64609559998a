"""How large a decoded picture may be, and how large it has to be."""

from __future__ import annotations

from dataclasses import dataclass

from fieldmark.settings.config import FULL_SIDE, TrainConfig

MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class PictureLimits:
    """Limits of a picture's size that its reader hands to the decoder."""

    max_pixels: int = MAX_PIXELS
    """Largest number of pixels; a picture with more is bad."""
    decode_side: int = FULL_SIDE
    """Smallest shorter side, in pixels, that a JPEG is decoded to; :data:`FULL_SIDE`: full size."""

    @classmethod
    def of(cls, config: TrainConfig, *, size: int) -> PictureLimits:
        """Return the limits for settings and an input of this height and width in pixels."""
        return cls(config.max_pixels, config.decode_side or max(512, 2 * size))

    def reduction(self, side: int) -> int:
        """Number that a JPEG's sides are divided by on decoding: one rule for all uses of pixels.

        It is the greatest of 8, 4, 2 and 1 that leaves the shorter side (rounded up, as decoders
        do) at least ``decode_side`` pixels.
        """
        return next((scale for scale in (8, 4, 2) if -(-side // scale) >= self.decode_side), 1)
