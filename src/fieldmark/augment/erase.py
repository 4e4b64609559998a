"""Random erasing: a rectangle of the picture is hidden."""

from __future__ import annotations

import math

import numpy as np
import torch

from fieldmark.augment.color import mean_color
from fieldmark.augment.ops import Change, change_some, check, check_pair, put
from fieldmark.seeding import F64

_TRIES = 10


def erase(
    p: float = 0.25,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Change:
    """Paint a random rectangle in the picture's mean colour with probability p.

    Args:
        p: the probability.
        scale: the rectangle's share of the area, smallest and largest.
        ratio: its height over its width, smallest and largest, drawn on a logarithmic scale.

    Source:
        The distribution of torchvision's RandomErasing: up to ten tries for a rectangle that is
        smaller than the picture both ways, otherwise nothing is hidden.
    """
    check("p", p, 0, 1)
    area = check_pair("scale", scale, 0, 1)
    shape = check_pair("ratio", ratio, 0.01, 100)

    def apply(images: torch.Tensor, draws: F64) -> torch.Tensor:
        height, width = images.shape[2:]
        boxes = _boxes(draws[:, 1:], area, shape, height, width)
        chosen = (draws[:, 0] < p) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
        return change_some(images, chosen, lambda some: _paint(some, boxes[chosen]))

    return Change(1 + 2 * _TRIES + 2, apply)


def _boxes(
    draws: F64, area: tuple[float, float], ratio: tuple[float, float], height: int, width: int
) -> F64:
    """Choose each picture's rectangle; one without area where no try fits.

    Shape:
        [B, 2 * tries + 2] to whole numbers (top, left, height, width) [B, 4].
    """
    share = area[0] + (area[1] - area[0]) * draws[:, 0:-2:2]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    shape = np.exp(log_low + (log_high - log_low) * draws[:, 1:-2:2])
    tall = np.round(np.sqrt(share * height * width * shape))
    wide = np.round(np.sqrt(share * height * width / shape))
    fits = (tall < height) & (wide < width)
    first = fits.argmax(axis=1)[:, None]
    found = fits.any(axis=1)
    h = np.where(found, np.take_along_axis(tall, first, axis=1)[:, 0], 0)
    w = np.where(found, np.take_along_axis(wide, first, axis=1)[:, 0], 0)
    top, left = np.floor(draws[:, -2] * (height - h + 1)), np.floor(draws[:, -1] * (width - w + 1))
    return np.stack((top, left, h, w), axis=1)


def _paint(images: torch.Tensor, boxes: F64) -> torch.Tensor:
    color = mean_color(images)
    color = color.round_().to(torch.uint8) if images.dtype == torch.uint8 else color
    if images.device.type != "cpu":
        return torch.where(_within(images, boxes), color, images)
    result = images.clone()
    for i, (top, left, h, w) in enumerate(boxes.astype(np.int64).tolist()):
        result[i, :, top : top + h, left : left + w] = color[i]
    return result


def _within(images: torch.Tensor, boxes: F64) -> torch.Tensor:
    """Mark the pixels in their picture's rectangle, for the batch at once, which suits a GPU.

    Shape:
        images [B, C, H, W], boxes [B, 4] to bool [B, 1, H, W].
    """
    height, width = images.shape[2:]
    top, left, tall, wide = put(boxes.T.astype(np.int64), images.device)[..., None].unbind()
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    vertical = (rows >= top) & (rows < top + tall)  # [B, H]
    horizontal = (columns >= left) & (columns < left + wide)  # [B, W]
    return (vertical[:, :, None] & horizontal[:, None, :]).unsqueeze(1)
