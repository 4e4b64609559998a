"""Crops, flips and affine changes.

**Matrices.** Every affine op gives one 3x3 matrix a picture. It maps a pixel of the *result* to the
place in the *source* where its colour is found: ``source = matrix @ (x, y, 1)``. Coordinates are
pixel centres measured from the centre of the picture, x to the right and y down, in pixels: the
top-left pixel of a picture of width W and height H is at (-(W-1)/2, -(H-1)/2). An op that comes
later in a pipe is applied to the result of the earlier one, so ``a|b`` has the matrix ``A @ B``.

**Keras.** This is the convention of Keras's ``apply_affine_transform`` with its (row, column) order
turned into (x, y), signs included: ``rotate|shift|shear|zoom`` with the same parameters is its
result (theta=degrees, ty=x, tx=y, shear=degrees, zx=zoom y, zy=zoom x). So positive degrees turn
the content clockwise, a positive shift moves it left or up, a zoom below 1 magnifies it. The ranges
are those of Keras's ImageDataGenerator, too, whose zoom draws one factor an axis:
``per_axis=True``. Two things differ with Keras's age. Its releases until 2020
(keras-preprocessing 1.1.2) turn about a point one pixel beside the centre. Today's exchanges the
axes at the end: its result is the transposed result of the transposed picture, so that its angle
has the other sign, its shear slants the rows and ``height_shift_range`` moves sideways.

**Fill.** Outside the picture: ``nearest`` (the edge's colour), ``constant`` (``value``),
``reflect`` (d c b a | a b c d | d c b a) and ``wrap`` (a b c d | a b c d | a b c d). They are
scipy.ndimage's for order 1, except that ``wrap`` is its ``grid-wrap``: scipy's own ``wrap``, and so
Keras's, repeats after width - 1 pixels. A constant fill starts at the outermost pixel centres.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fieldmark.augment.ops import (
    Change,
    Crop,
    Warp,
    change_some,
    check,
    check_choice,
    check_pair,
    put,
)
from fieldmark.pictures.inputs import INTERPOLATIONS, Box
from fieldmark.seeding import F64, I64

FILLS = ("nearest", "constant", "reflect", "wrap")
PAD_MODES = ("constant", "reflect", "edge")
_TRIES = 10
# A quarter turn computes (W-1)/2 with a rounding error: without this slack, a constant fill would
# eat the outermost row.
_EDGE_SLACK = 1e-3


# --- crops ---------------------------------------------------------------------------------------


def random_resized_crop(
    scale: float | tuple[float, float] = (0.35, 1.0),
    ratio: tuple[float, float] = (0.75, 1.3333),
    *,
    interpolation: str = "",
) -> Crop:
    """Resize a random part of the original picture; only as the first of a pipe.

    Args:
        scale: the part's share of the area, smallest and largest; one number is the smallest.
        ratio: its width over its height, smallest and largest, drawn on a logarithmic scale.
        interpolation: nearest, bilinear, bicubic or lanczos; empty takes the model's.

    Source:
        The distribution of torchvision's RandomResizedCrop (ten tries, then the largest centred
        part of an allowed ratio), with boxes that are not rounded to whole pixels.
    """
    area = check_pair(
        "scale", scale if isinstance(scale, tuple | list) else (scale, 1.0), 0.0001, 1
    )
    low, high = check_pair("ratio", ratio, 0.01, 100)
    if interpolation:
        check_choice("interpolation", interpolation, tuple(INTERPOLATIONS))

    def box(draws: F64, height: int, width: int) -> Box:
        wide, tall = _part(draws[None, :-2], area, (low, high), height, width)
        fits = (wide <= width) & (tall <= height)
        if fits.any():
            first = fits.argmax()
            w, h = float(wide[0, first]), float(tall[0, first])
            left, top = float(draws[-2]) * (width - w), float(draws[-1]) * (height - h)
        else:
            w, h = min(width, height * high), min(height, width / low)
            left, top = (width - w) / 2, (height - h) / 2
        return left, top, min(width, left + w), min(height, top + h)

    return Crop(2 * _TRIES + 2, box, interpolation or None)


def _part(
    draws: F64, area: tuple[float, float], ratio: tuple[float, float], height: int, width: int
) -> tuple[F64, F64]:
    """Draw the sides of parts of a picture, one for each pair of uniform numbers.

    Shape:
        [B, 2 * tries] to widths and heights [B, tries].
    """
    share = area[0] + (area[1] - area[0]) * draws[:, 0::2]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    shape = np.exp(log_low + (log_high - log_low) * draws[:, 1::2])
    pixels = share * height * width
    return np.sqrt(pixels * shape), np.sqrt(pixels / shape)


def pad_crop(pad: int = 4, mode: str = "constant") -> Change:
    """Add ``pad`` pixels on every side, then cut a random part of the old size out.

    Args:
        pad: pixels on each side.
        mode: what is added: constant (black), reflect (the edge pixel is not repeated) or edge.
    """
    check("pad", pad, 0, 256)
    check_choice("mode", mode, PAD_MODES)

    def apply(images: torch.Tensor, draws: F64) -> torch.Tensor:
        offsets = np.minimum((draws * (2 * pad + 1)).astype(np.int64), 2 * pad)
        return crop_padded(images, offsets, pad=pad, mode=mode)

    return Change(2, apply)


def crop_padded(images: torch.Tensor, offsets: I64, *, pad: int, mode: str) -> torch.Tensor:
    """Cut from each padded picture the part whose top-left corner is at (row, column).

    Shape:
        images [B, C, H, W], offsets [B, 2] in 0..2*pad to images of the same shape.
    """
    height, width = images.shape[2:]
    if mode == "constant":
        padded = F.pad(images, (pad, pad, pad, pad))
    else:
        rows, columns = (_padded_index(n, pad, mode, images) for n in (height, width))
        padded = images.index_select(2, rows).index_select(3, columns)
    if images.device.type != "cpu":
        return _cut_at_once(padded, offsets, height, width)
    # On a CPU, a copy for each picture is several times faster than one indexing of the batch.
    source = padded.numpy()
    result = torch.empty_like(images)
    target = result.numpy()
    for i, (top, left) in enumerate(offsets.tolist()):
        target[i] = source[i, :, top : top + height, left : left + width]
    return result


def _cut_at_once(padded: torch.Tensor, offsets: I64, height: int, width: int) -> torch.Tensor:
    """Cut with one kernel for the whole batch, which suits a GPU."""
    where = put(offsets, padded.device)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    batch = torch.arange(len(padded), device=padded.device)
    return windows[batch, :, where[:, 0], where[:, 1]]


def _padded_index(size: int, pad: int, mode: str, images: torch.Tensor) -> torch.Tensor:
    """Return the row (or column) that each row of the padded picture repeats."""
    index = torch.arange(-pad, size + pad, device=images.device)
    if mode == "edge" or size == 1:
        return index.clamp(0, size - 1)
    period = 2 * (size - 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)


# --- flips ---------------------------------------------------------------------------------------


def flip_lr(p: float = 0.5) -> Change:
    """Exchange left and right with probability p."""
    return _flip(p, 3)


def flip_ud(p: float = 0.5) -> Change:
    """Exchange top and bottom with probability p."""
    return _flip(p, 2)


def alternating_flip() -> Change:
    """Exchange left and right in every second epoch; chance decides in which a picture begins.

    Two epochs show each picture once either way, where ``flip_lr`` shows half of them the same way
    twice.

    Source: K. Jordan, 94% on CIFAR-10 in 3.29 seconds, 2024.
    """
    return dataclasses.replace(flip_lr(0.5), alternates=True)


def _flip(p: float, axis: int) -> Change:
    check("p", p, 0, 1)

    def apply(images: torch.Tensor, draws: F64) -> torch.Tensor:
        return change_some(images, draws[:, 0] < p, lambda some: some.flip(axis))

    return Change(1, apply)


# --- affine changes ------------------------------------------------------------------------------


def rotate(degrees: float = 15, *, fill: str = "nearest", value: float = 0) -> Warp:
    """Turn about the centre by an angle from -degrees to degrees.

    Args:
        degrees: the largest angle.
        fill: outside the picture: nearest, constant, reflect or wrap.
        value: the colour (0 to 255) of fill='constant'.
    """
    most = check("degrees", degrees, 0, 180)

    def matrices(draws: F64, height: int, width: int) -> F64:
        return rotation_matrix(_between(-most, most, draws[:, 0]))

    return _warp_op(1, matrices, fill, value)


def shift(
    x: float = 0.1, y: float | None = None, *, fill: str = "nearest", value: float = 0
) -> Warp:
    """Move sideways by up to x of the width and up or down by up to y of the height.

    Args:
        x: a share of the width; never pixels, which Keras reads in numbers from 1 on.
        y: a share of the height; None is the same as x.
        fill: outside the picture: nearest, constant, reflect or wrap.
        value: the colour (0 to 255) of fill='constant'.
    """
    most_x = check("x", x, 0, 1)
    most_y = most_x if y is None else check("y", y, 0, 1)

    def matrices(draws: F64, height: int, width: int) -> F64:
        return shift_matrix(
            width * _between(-most_x, most_x, draws[:, 0]),
            height * _between(-most_y, most_y, draws[:, 1]),
        )

    return _warp_op(2, matrices, fill, value)


def shear(degrees: float = 10, *, fill: str = "nearest", value: float = 0) -> Warp:
    """Slant the columns by an angle from -degrees to degrees.

    Args:
        degrees: the largest angle.
        fill: outside the picture: nearest, constant, reflect or wrap.
        value: the colour (0 to 255) of fill='constant'.
    """
    most = check("degrees", degrees, 0, 89)

    def matrices(draws: F64, height: int, width: int) -> F64:
        return shear_matrix(_between(-most, most, draws[:, 0]))

    return _warp_op(1, matrices, fill, value)


def zoom(
    range: float = 0.2,  # noqa: A002  (the word of the mini-language, and of Keras)
    *,
    per_axis: bool = False,
    fill: str = "nearest",
    value: float = 0,
) -> Warp:
    """Magnify or shrink by a factor from 1 - range to 1 + range.

    Args:
        range: how far from 1 the factor may be.
        per_axis: draw one factor for the width and another for the height, as Keras does.
        fill: outside the picture: nearest, constant, reflect or wrap.
        value: the colour (0 to 255) of fill='constant'.
    """
    most = check("range", range, 0, 0.99)

    def matrices(draws: F64, height: int, width: int) -> F64:
        factors = _between(1 - most, 1 + most, draws)
        return zoom_matrix(factors[:, 0], factors[:, -1])

    return _warp_op(2 if per_axis else 1, matrices, fill, value)


def _warp_op(num_draws: int, matrices: Any, fill: str, value: float) -> Warp:
    check_choice("fill", fill, FILLS)
    check("value", value, 0, 255)
    if value != 0 and fill != "constant":
        raise ValueError(f"value={value!r} has an effect with fill='constant' only, not {fill!r}")
    return Warp(num_draws, matrices, fill, float(value))


def _between(low: float, high: float, draws: F64) -> F64:
    return low + (high - low) * draws


def rotation_matrix(degrees: F64) -> F64:
    """Matrices that turn the content clockwise.

    Shape:
        [B] to [B, 3, 3].
    """
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return _matrix(cos, sin, 0.0, -sin, cos, 0.0)


def shift_matrix(x: F64, y: F64) -> F64:
    """Matrices that take the colour x pixels further right and y pixels further down.

    Shape:
        [B] and [B] to [B, 3, 3].
    """
    return _matrix(1.0, 0.0, x, 0.0, 1.0, y)


def shear_matrix(degrees: F64) -> F64:
    """Matrices that slant the columns: y becomes y - sin(angle) * x, x becomes cos(angle) * x.

    Shape:
        [B] to [B, 3, 3].
    """
    angle = np.deg2rad(degrees)
    return _matrix(np.cos(angle), 0.0, 0.0, -np.sin(angle), 1.0, 0.0)


def zoom_matrix(x: F64, y: F64) -> F64:
    """Matrices that show x times the width and y times the height: below 1 magnifies.

    Shape:
        [B] and [B] to [B, 3, 3].
    """
    return _matrix(x, 0.0, 0.0, 0.0, y, 0.0)


def _matrix(*rows: F64 | float) -> F64:
    """Stack the six numbers of the first two rows, each one a scalar or [B]."""
    columns = np.broadcast_arrays(*rows, 0.0, 0.0, 1.0)
    return np.stack(columns, axis=-1).reshape(-1, 3, 3)


def warp(
    images: torch.Tensor, matrices: F64, *, fill: str = "nearest", value: float = 0
) -> torch.Tensor:
    """Resample every picture by its matrix (see the module), bilinearly.

    Shape:
        images [B, C, H, W] in 0..255, matrices [B, 3, 3] to float32 [B, C, H, W].
    """
    height, width = images.shape[2:]
    x, y = _source(matrices, height, width, images.device)
    images = images.to(torch.float32)
    if fill == "wrap":
        # Bring the coordinates into the picture, which one more pixel on every side makes seamless.
        x, y = (x + width / 2).remainder(width), (y + height / 2).remainder(height)
        images = F.pad(images, (1, 1, 1, 1), mode="circular")
        x, y = x - width / 2, y - height / 2
    scale = [2.0 / n for n in (images.shape[3], images.shape[2])]
    grid = torch.stack((x * scale[0], y * scale[1]), dim=-1)  # [B, H, W, 2]
    warped = F.grid_sample(
        images,
        grid,
        mode="bilinear",
        padding_mode="reflection" if fill == "reflect" else "border",
        align_corners=False,
    )
    if fill == "constant":
        most_x, most_y = (width - 1) / 2 + _EDGE_SLACK, (height - 1) / 2 + _EDGE_SLACK
        outside = (x.abs() > most_x) | (y.abs() > most_y)
        warped = warped.masked_fill(outside.unsqueeze(1), value)
    # Weights of float32 may sum to a little more than 1.
    return warped.clamp_(0, 255)


def _source(
    matrices: F64, height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where in the source each pixel of the result lies.

    Shape:
        [B, 3, 3] to x and y, float32 [B, H, W].
    """
    m = put(matrices.astype(np.float32), device)[..., None, None]
    columns = torch.arange(width, device=device, dtype=torch.float32) - (width - 1) / 2
    rows = (torch.arange(height, device=device, dtype=torch.float32) - (height - 1) / 2)[:, None]
    # What depends on the column and what on the row are summed last: one pass over the pixels.
    x = m[:, 0, 0] * columns + (m[:, 0, 1] * rows + m[:, 0, 2])
    y = m[:, 1, 0] * columns + (m[:, 1, 1] * rows + m[:, 1, 2])
    return x, y
