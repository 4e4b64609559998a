"""How large a decoded picture may be, how large it has to be, and what of it is black and white."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fieldmark.errors import ConfigError
from fieldmark.settings.config import FULL_SIDE, TrainConfig

MAX_PIXELS = 67_108_864
"""Default of the largest number of pixels: sensors of 50 and 64 megapixels are within it."""


@dataclass(frozen=True)
class PictureLimits:
    """Limits of a picture's size, and its scale, that its reader hands to the decoder."""

    max_pixels: int = MAX_PIXELS
    """Largest number of pixels; a picture with more is bad."""
    decode_side: int = FULL_SIDE
    """Smallest shorter side, in pixels, that a JPEG is decoded to; :data:`FULL_SIDE`: full size."""
    range: str = "type"
    """Scale of samples of more than 8 bits (``samples``)."""

    @classmethod
    def of(cls, config: TrainConfig, *, size: int) -> PictureLimits:
        """Return the limits for settings and an input of this height and width in pixels."""
        scale = "type" if config.range == "data" else config.range  # until the data have chosen one
        return cls(config.max_pixels, config.decode_side or max(512, 2 * size), scale)

    def or_more(self, max_pixels: int) -> PictureLimits:
        """Return these limits with another number of pixels; 0 leaves it.

        Raises:
            ConfigError: if it is below 0.
        """
        if max_pixels < 0:
            raise ConfigError(
                f"max_pixels is {max_pixels}; 1 or more are accepted, 0 as in training"
            )
        return replace(self, max_pixels=max_pixels) if max_pixels else self

    def reduction(self, side: int) -> int:
        """Number that a JPEG's sides are divided by on decoding: one rule for all uses of pixels.

        It is the greatest of 8, 4, 2 and 1 that leaves the shorter side (rounded up, as decoders
        do) at least ``decode_side`` pixels.
        """
        return next((scale for scale in (8, 4, 2) if -(-side // scale) >= self.decode_side), 1)
