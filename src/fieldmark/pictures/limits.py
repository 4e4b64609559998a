"""How large a decoded picture may be, and how large it has to be."""

from __future__ import annotations

from dataclasses import dataclass

from fieldmark.settings.config import FULL_SIDE, TrainConfig

MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class PictureLimits:
    """What whoever reads pictures hands to the decoder."""

    max_pixels: int = MAX_PIXELS
    """Pictures with more are bad."""
    decode_side: int = FULL_SIDE
    """Pixels that the shorter side of a JPEG has to keep; :data:`FULL_SIDE` is full size always."""

    @classmethod
    def of(cls, config: TrainConfig, *, size: int) -> PictureLimits:
        """The limits that settings mean for an input of this height and width in pixels."""
        return cls(config.max_pixels, config.decode_side or max(512, 2 * size))

    def reduction(self, side: int) -> int:
        """By what a JPEG is divided when it is decoded: the one rule for every use of pixels.

        Of 8, 4, 2 and 1 the greatest at which the shorter side (rounded up, as decoders do) keeps
        at least ``decode_side`` pixels.
        """
        return next((scale for scale in (8, 4, 2) if -(-side // scale) >= self.decode_side), 1)
