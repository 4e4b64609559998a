"""Brightness, contrast, saturation, hue, grey and channel shift.

Factors act as in torchvision's ``transforms.v2.functional``, here with one factor a picture and in
float32 between 0 and 255. On bytes, torchvision rounds greys and results down; we round neither, so
that after rounding down there is at most one level between them. Nothing is fused or reduced in an
order that depends on the batch: a picture's result has the same bits in any batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fieldmark.augment.ops import Change, change_some, check, column
from fieldmark.seeding import F64

_RED, _GREEN, _BLUE = 0.2989, 0.587, 0.114


def brightness(amount: float = 0.2) -> Change:
    """Multiply by a factor from 1 - amount to 1 + amount."""
    return _color("amount", amount, 1.0, 1.0, adjust_brightness)


def contrast(amount: float = 0.2) -> Change:
    """Scale the distance from the picture's mean grey by a factor from 1 - amount to 1 + amount."""
    return _color("amount", amount, 1.0, 1.0, adjust_contrast)


def saturation(amount: float = 0.2) -> Change:
    """Scale the distance from each pixel's own grey by a factor from 1 - amount to 1 + amount."""
    return _color("amount", amount, 1.0, 1.0, adjust_saturation)


def hue(amount: float = 0.05) -> Change:
    """Turn the colour circle by -amount to amount of a full turn (at most 0.5)."""
    return _color("amount", amount, 0.5, 0.0, adjust_hue)


def grey(p: float = 0.1) -> Change:
    """Take the colour away with probability p."""
    check("p", p, 0, 1)

    def change(images: torch.Tensor) -> torch.Tensor:
        luma = _luma(images.to(torch.float32)).clamp_(0, 255)
        luma = luma.round().to(torch.uint8) if images.dtype == torch.uint8 else luma
        return luma.expand(images.shape)

    def apply(images: torch.Tensor, draws: F64) -> torch.Tensor:
        return change_some(images, draws[:, 0] < p, change)

    return Change(1, apply)


def channel_shift(amount: float = 20) -> Change:
    """Add one number from -amount to amount to every pixel, within the picture's own range.

    Args:
        amount: the largest number, of pixels from 0 to 255.

    Source:
        Keras's ImageDataGenerator(channel_shift_range): one number for all channels, and nothing
        gets darker than the picture's least value or brighter than its greatest.
    """
    return _color("amount", amount, 255, 0.0, shift_channels)


Adjust = Callable[[torch.Tensor, F64], torch.Tensor]


def _color(name: str, amount: float, most: float, centre: float, adjust: Adjust) -> Change:
    check(name, amount, 0, most)

    def apply(images: torch.Tensor, draws: F64) -> torch.Tensor:
        return adjust(images, centre + amount * (2 * draws[:, 0] - 1))

    return Change(1, apply)


def adjust_brightness(images: torch.Tensor, factors: F64) -> torch.Tensor:
    """Multiply each picture by its factor.

    Shape:
        [B, 3, H, W] in 0..255 and [B] to float32 of the images' shape.
    """
    return (images.to(torch.float32) * column(factors, images)).clamp_(0, 255)


def adjust_contrast(images: torch.Tensor, factors: F64) -> torch.Tensor:
    """Blend each picture with its mean grey; 1 leaves it, 0 is grey.

    Shape:
        [B, 3, H, W] in 0..255 and [B] to float32 of the images' shape.
    """
    # The grey of the mean colour is the mean of the greys.
    return _blend(images, _luma(mean_color(images)), factors)


def adjust_saturation(images: torch.Tensor, factors: F64) -> torch.Tensor:
    """Blend each pixel with its grey; 1 leaves it, 0 is grey.

    Shape:
        [B, 3, H, W] in 0..255 and [B] to float32 of the images' shape.
    """
    images = images.to(torch.float32)
    return _blend(images, _luma(images), factors)


def adjust_hue(images: torch.Tensor, turns: F64) -> torch.Tensor:
    """Turn each pixel's hue by a share of the colour circle; value and saturation stay.

    Shape:
        [B, 3, H, W] in 0..255 and [B] to float32 of the images' shape.
    """
    images = images.to(torch.float32)
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    most = torch.maximum(torch.maximum(red, green), blue)
    chroma = most - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    # The hue in sixths of the circle, counted from red.
    sixth = torch.where(
        most == red,
        (green - blue) / divisor,
        torch.where(most == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixth = sixth + column(6 * turns, images)
    # A channel is at its most within one sixth of its own hue, then falls for one sixth to its
    # least: a trapezoid over the circle, the same for the three channels, a third apart.
    result = torch.empty_like(images)
    for channel, start in enumerate((5, 3, 1)):
        place = (sixth + start).remainder_(6)
        fall = torch.minimum(place, 4 - place).clamp_(0, 1)
        result[:, channel : channel + 1] = most - chroma * fall
    return result.clamp_(0, 255)


def shift_channels(images: torch.Tensor, amounts: F64) -> torch.Tensor:
    """Add each picture's number, and keep to the picture's least and greatest value.

    Shape:
        [B, 3, H, W] in 0..255 and [B] to float32 of the images' shape.
    """
    images = images.to(torch.float32)
    least, greatest = torch.aminmax(images.flatten(1), dim=1)
    shifted = images + column(amounts, images)
    return shifted.clamp_(least.view(-1, 1, 1, 1), greatest.view(-1, 1, 1, 1))


def mean_color(images: torch.Tensor) -> torch.Tensor:
    """Each picture's mean colour, the same bits in any batch and with any number of threads.

    Shape:
        [B, 3, H, W] to float32 [B, 3, 1, 1].
    """
    count = images.shape[2] * images.shape[3]
    if images.dtype == torch.uint8:
        total = images.sum(dim=(2, 3), keepdim=True, dtype=torch.int64)
        return (total / count).to(torch.float32)
    # Sums of whole numbers are exact in float64, in whichever order they are made.
    total = (images * 256).round_().sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
    return (total / (256 * count)).to(torch.float32)


def _luma(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return red * _RED + green * _GREEN + blue * _BLUE


def _blend(images: torch.Tensor, other: torch.Tensor, factors: F64) -> torch.Tensor:
    mixed = images.to(torch.float32) * column(factors, images)
    return mixed.add_(other * column(1 - factors, images)).clamp_(0, 255)
