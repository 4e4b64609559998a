"""Logits averaged over views: the picture, its mirror image, and both moved by a pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

NUMBER = {"none": 1, "flip": 2, "flip_shift": 6}
"""Forward passes of a picture."""
Forward = Callable[[torch.Tensor], torch.Tensor]


def averaged(forward: Forward, images: torch.Tensor, views: str) -> torch.Tensor:
    """Average the logits over the views ``none`` (the picture itself), ``flip`` or ``flip_shift``.

    ``flip_shift`` has six views: the picture and its mirror image, each unmoved, one pixel up and
    to the left, and one pixel down and to the right (the new edge is a reflection). The unmoved
    ones count one quarter each, the moved ones one eighth. A picture's logits depend on no other
    picture.

    Source: K. Jordan's airbench94, 2024 (its six views and their weights).

    Shape:
        [B, 3, S, S] to [B, K].
    """
    if views == "none":
        return forward(images)
    centre = _with_mirror(forward, images)
    if views == "flip":
        return centre
    wide = F.pad(images, (1, 1, 1, 1), mode="reflect")
    up_left = _with_mirror(forward, _like(wide[:, :, 2:, 2:], images))
    down_right = _with_mirror(forward, _like(wide[:, :, :-2, :-2], images))
    return 0.5 * centre + 0.25 * up_left + 0.25 * down_right


def _with_mirror(forward: Forward, images: torch.Tensor) -> torch.Tensor:
    return 0.5 * forward(images) + 0.5 * forward(_like(images.flip(3), images))


def _like(images: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the pictures in the memory order of the others."""
    if other.is_contiguous():
        return images.contiguous()
    return images.contiguous(memory_format=torch.channels_last)
