"""The three kinds of ops that a pipe is made of, and the checks on their arguments.

An op never draws: it gets uniform numbers in [0, 1) that belong to one picture each, so its result
for a picture depends on nothing but (seed, epoch, picture).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fieldmark.pictures.inputs import Box
from fieldmark.seeding import F64, Bools


@dataclass(frozen=True)
class Crop:
    """Chooses the part of the original picture that is resized to the model's input."""

    num_draws: int
    """How many uniform numbers it needs for each picture."""
    box: Callable[[F64, int, int], Box]
    """From draws [num_draws], height and width to (left, top, right, bottom)."""
    interpolation: str | None
    """Resampling filter; None takes the model's own."""


@dataclass(frozen=True)
class Warp:
    """Moves pixels by one matrix a picture; neighbours with the same fill are combined into one."""

    num_draws: int
    """How many uniform numbers it needs for each picture."""
    matrices: Callable[[F64, int, int], F64]
    """From draws [B, num_draws], height and width to matrices [B, 3, 3] (see ``geometry``)."""
    fill: str
    """Fill outside the picture: nearest, constant, reflect or wrap."""
    value: float
    """Colour of the fill, with fill='constant'."""


@dataclass(frozen=True)
class Change:
    """Any other change of a batch; it never works in place."""

    num_draws: int
    """How many uniform numbers it needs for each picture."""
    apply: Callable[[torch.Tensor, F64], torch.Tensor]
    """From images [B, 3, H, W] in 0..255 and draws [B, num_draws] to images of the same shape."""
    alternates: bool = False
    """Whether it draws once, in the first epoch; then every second epoch gets 1 - u for u."""


Op = Crop | Warp | Change


def check(name: str, value: Any, low: float, high: float) -> float:
    """Return the number if it is one between low and high.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; {low:g} to {high:g} is accepted")
    return float(value)


def check_pair(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    """Return two ordered numbers between low and high.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(
            f"{name} is {value!r}; two numbers such as ({low:g}, {high:g}) are accepted"
        )
    first, last = (check(name, v, low, high) for v in value)
    if first > last:
        raise ValueError(f"{name} is {value!r}; the smaller number comes first")
    return first, last


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> str:
    """Return the text if it is a known one.

    Raises:
        ValueError: listing the known ones.
    """
    if value not in known:
        raise ValueError(f"no {name} {value!r} (known: {', '.join(known)})")
    return str(value)


def put(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Put numbers on a device, without waiting for the device's other work."""
    here = torch.from_numpy(values)
    if device.type == "cuda":
        here = here.pin_memory()  # CUDA copies from nowhere else without waiting
    return here.to(device, non_blocking=True)


def column(values: F64, images: torch.Tensor) -> torch.Tensor:
    """Put one number a picture where it broadcasts over the images.

    Shape:
        [B] to float32 [B, 1, 1, 1] on the images' device.
    """
    return put(values.astype(np.float32), images.device).view(-1, 1, 1, 1)


def change_some(
    images: torch.Tensor, chosen: Bools, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Change the chosen pictures only; the images given are never written to."""
    index = np.flatnonzero(chosen)
    if len(index) == 0:
        return images
    if len(index) == len(images):
        return change(images)
    where = put(index, images.device)
    return images.clone().index_copy_(0, where, change(images.index_select(0, where)))


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Round floats in 0..255 to uint8; bytes pass through."""
    return images if images.dtype == torch.uint8 else images.round().to(torch.uint8)
