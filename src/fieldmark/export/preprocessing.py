"""``InputSpec.pixels`` and ``InputSpec.normalize`` as ONNX nodes, equal to the last bit.

Pillow resizes in two passes, along each row and then along each column. A pass is a product with a
matrix of weights, which it rounds to multiples of 2**-22; sums are whole numbers, and the result is
rounded to a byte. Here the matrices are computed in the graph from the shape of the picture, in
double precision as Pillow does. A sum of bytes times such weights has up to 32 bits and a float32
has 24, so each weight is split in two, a multiple of 2**-15 and the small rest: both products are
exact in float32 in whatever order they are summed up.

Source:
    Pillow, ``src/libImaging/Resample.c`` (filters, weights, rounding) and ``Geometry.c`` (nearest),
    whose arithmetic is reproduced; ``tests/export/test_export.py`` compares the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import PIL

from fieldmark.export.nodes import Value, where
from fieldmark.pictures.inputs import KERAS, InputSpec

_RADIUS = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
_UNIT = 2.0**22
_COLUMNS_FIRST = 13
_COARSE = 2.0**7  # units of a coarse weight: 255 * 2**15 * (sum of weights < 2) is below 2**24


@dataclass(frozen=True)
class _Axis:
    """Resizing along one axis: the part from ``low`` to ``high`` becomes ``count`` pixels."""

    length: Value
    """Pixels of the picture, int64."""
    low: Value
    """Edges of the part, float32, as Pillow holds the corners of a box."""
    high: Value
    count: Value
    """Pixels that the part becomes, int64."""
    first: Value
    """Place in the network's input where these pixels begin, int64."""

    def swapped(self, other: _Axis, condition: Value) -> _Axis:
        """Choose the other axis where the condition holds."""
        return _Axis(
            *(
                where(condition, getattr(other, field.name), getattr(self, field.name))
                for field in fields(self)
            )
        )


def preprocess(picture: Value, spec: InputSpec) -> Value:
    """Resize pictures to the network's input and normalise them, as ``InputSpec`` does.

    Shape:
        uint8 [N, H, W, 3] to float32 [N, 3, size, size].
    """
    height, width = (_dimension(picture, axis) for axis in (1, 2))
    rows, columns = _axes(height, width, spec)
    if spec.interpolation == "nearest":
        values = _picked(picture, rows, columns, spec.size)
    elif spec.interpolation == KERAS:
        values = _interpolated(picture, rows, columns, spec.size)
    else:
        values = _resampled(picture, rows, columns, spec)
    if spec.resize == "pad":
        across, down = _covered(columns, spec.size), _covered(rows, spec.size)
        border = np.round(np.asarray(spec.mean) * 255).astype(np.uint8).reshape(3, 1, 1)
        values = where(across.shaped(1, -1) & down.shaped(-1, 1), values, border)
    mean, scale = (np.float32(v).reshape(1, 3, 1, 1) for v in _scaling(spec))
    return (values - mean) * scale


def _picked(picture: Value, rows: _Axis, columns: _Axis, size: int) -> Value:
    """Resize by taking the nearest pixels."""
    nodes = picture.nodes
    pixels = nodes.call("Transpose", picture, perm=[0, 3, 1, 2])
    for number, axis in ((3, columns), (2, rows)):
        pixels = nodes.call("Gather", pixels, _nearest(axis, size), axis=number)
    return pixels.cast(np.float32)


def _interpolated(picture: Value, rows: _Axis, columns: _Axis, size: int) -> Value:
    """Interpolate between the four nearest pixels, without rounding."""
    pixels = picture.nodes.call("Transpose", picture, perm=[0, 3, 1, 2]).cast(np.float32)
    across = pixels.op("MatMul", _shares(columns, size).op("Transpose", perm=[1, 0]))
    return _shares(rows, size).op("MatMul", across)


def _shares(axis: _Axis, size: int) -> Value:
    """The shares of the two nearest pixels in each of the result.

    Shape:
        [size, length]
    """
    whole, rest = _centres(axis, size)
    place = _range(axis.length)
    distance = (place - whole).cast(np.float64) - (rest - 0.5)
    middle = whole.cast(np.float64) + rest
    last = axis.length - 1
    distance = where(middle < 0.5, place.cast(np.float64), distance)
    beyond = middle >= last.cast(np.float64) + 0.5
    distance = where(beyond, (place - last).cast(np.float64), distance)
    return _bilinear(distance).cast(np.float32)


def _resampled(picture: Value, rows: _Axis, columns: _Axis, spec: InputSpec) -> Value:
    """Resize along one axis, round, and resize along the other.

    Pillow begins with the rows, but since version 13 with the columns of a picture that loses more
    than twice as many rows as columns. Such a picture is resized lying on its side.
    """
    nodes = picture.nodes
    if int(PIL.__version__.partition(".")[0]) >= _COLUMNS_FIRST:
        lost, spare = rows.length - rows.count, columns.length - columns.count
        tall = (nodes.constant(0, np.int64) < lost) & (spare * 2 < lost)
        pixels = nodes.transposed_if(tall, picture, ([0, 3, 2, 1], [0, 3, 1, 2]))
        first, second = columns.swapped(rows, tall), rows.swapped(columns, tall)
    else:
        pixels = nodes.call("Transpose", picture, perm=[0, 3, 1, 2])
        first, second = columns, rows
    across = _weights(first, spec).op("Transpose", perm=[1, 0])
    values = _rounded(pixels.cast(np.float32).op("MatMul", across), axis=3)
    values = _rounded(_weights(second, spec).op("MatMul", values), axis=2)
    if first is columns:
        return values
    return where(tall, values.op("Transpose", perm=[0, 1, 3, 2]), values)


def _scaling(spec: InputSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``InputSpec.normalize`` subtracts and multiplies by, in the same arithmetic."""
    mean = np.asarray(spec.mean, np.float32) * np.float32(255)
    return mean, np.float32(1) / (np.asarray(spec.std, np.float32) * np.float32(255))


def _dimension(value: Value, axis: int) -> Value:
    shape = value.nodes.call("Shape", value, dtype=np.int64, start=axis, end=axis + 1)
    return shape.shaped()


def _axes(height: Value, width: Value, spec: InputSpec) -> tuple[_Axis, _Axis]:
    """Compute for rows and columns which part of the picture goes where."""
    nodes = height.nodes
    zero, size = nodes.constant(0, np.int64), nodes.constant(spec.size, np.int64)
    if spec.resize == "squash":
        rows, columns = (
            _Axis(n, zero.cast(np.float32), n.cast(np.float32), size, zero) for n in (height, width)
        )
    elif spec.resize == "pad":
        longer = height.op("Max", width).cast(np.float64)
        scale = nodes.constant(spec.size, np.float64) / longer
        rows, columns = (_padded(n, scale, spec.size) for n in (height, width))
    else:
        shorter = height.op("Min", width)
        rows, columns = (_centred(n, shorter, spec) for n in (height, width))
    return rows, columns


def _padded(length: Value, scale: Value, size: int) -> _Axis:
    zero = length.nodes.constant(0, np.float32)
    count = (length.cast(np.float64) * scale).op("Round").op("Max", 1).cast(np.int64)
    first = (length.nodes.constant(size, np.int64) - count) / 2
    return _Axis(length, zero, length.cast(np.float32), count, first)


def _centred(length: Value, shorter: Value, spec: InputSpec) -> _Axis:
    """Compute the centre of a picture whose shorter side is resized; see ``InputSpec``."""
    nodes = length.nodes
    whole = length * int(spec.size / spec.crop) / shorter
    before = ((whole - spec.size).cast(np.float64) / 2).op("Round")
    step = length.cast(np.float64) / whole.cast(np.float64)
    low = (before * step).cast(np.float32)
    high = ((before + spec.size) * step).op("Min", length.cast(np.float64)).cast(np.float32)
    size, zero = (nodes.constant(n, np.int64) for n in (spec.size, 0))
    return _Axis(length, low, high, size, zero)


def _range(count: Value) -> Value:
    zero, one = (count.nodes.constant(n, np.int64) for n in (0, 1))
    return count.nodes.call("Range", zero, count, one)


def _covered(axis: _Axis, size: int) -> Value:
    """Tell for each pixel of the input whether it shows the picture or a border."""
    place = axis.count.nodes.constant(np.arange(size), np.int64)
    return (place >= axis.first) & (place < axis.first + axis.count)


def _step(axis: _Axis) -> Value:
    """Pixels of the picture for one of the result; the difference is a float32, as in Pillow."""
    return (axis.high - axis.low).cast(np.float64) / axis.count.cast(np.float64)


def _weights(axis: _Axis, spec: InputSpec) -> Value:
    """The coarse weights above the fine rests: one row for each pixel of the result.

    Shape:
        [2 * size, length]
    """
    nodes = axis.length.nodes
    one = nodes.constant(1.0, np.float64)
    stretch = _step(axis).op("Max", 1.0)
    radius = stretch * _RADIUS[spec.interpolation]
    whole, rest = _centres(axis, spec.size)
    place = (_range(axis.length) - whole).cast(np.float64)
    begin, end = ((rest + side + 0.5).op("Floor") for side in (radius * -1.0, radius))
    value = _FILTERS[spec.interpolation]((place - rest + 0.5) * (one / stretch))
    value = where((place >= begin) & (place < end), value, 0.0)
    last = nodes.constant([1], np.int64)
    total = nodes.call("ReduceSum", value, last, keepdims=1)
    # A row outside the picture, in a border, has no weights.
    value = value / where(total.op("Equal", 0.0, dtype=np.bool_), one, total)
    units = ((value.op("Abs") * _UNIT) + 0.5).op("Floor") * value.op("Sign")
    coarse = (units / _COARSE).op("Round") * _COARSE
    both = nodes.call("Concat", coarse, units - coarse, axis=0)
    return (both / _UNIT).cast(np.float32)


def _centres(axis: _Axis, size: int) -> tuple[Value, Value]:
    """Compute where the middle of each pixel of the result lies in the picture.

    The place is a whole number and a small rest, so that a runtime without double precision (such
    as OpenVINO) still has all of a float32's digits for the rest.

    Shape:
        int64 [size, 1] and float64 [size, 1]
    """
    nodes = axis.length.nodes
    middle = (nodes.constant(np.arange(size).reshape(-1, 1), np.int64) - axis.first) * 2 + 1
    parts = axis.count * 2  # the middle of pixel i is low + (2 i + 1) / parts of the extent
    extent = axis.high - axis.low
    pixels, low = (value.op("Floor") for value in (extent, axis.low))
    share = middle * pixels.cast(np.int64)
    before = share / parts
    rest = (share - before * parts).cast(np.float64)
    rest = rest + middle.cast(np.float64) * (extent - pixels).cast(np.float64)
    rest = rest / parts.cast(np.float64) + (axis.low - low).cast(np.float64)
    return before + low.cast(np.int64), rest


def _rounded(sums: Value, *, axis: int) -> Value:
    """Add the coarse and the fine sums, and round to a byte, halves up, without losing a bit."""
    nodes = sums.nodes
    coarse, fine = nodes.halves(sums, axis=axis)
    coarse = coarse + 0.5
    whole = coarse.op("Floor")
    rest = (coarse - whole + fine).op("Floor")
    return (whole + rest).op("Clip", 0.0, 255.0)


def _nearest(axis: _Axis, size: int) -> Value:
    """The pixel of the picture for each of the result; positions are added up, as in Pillow."""
    nodes = axis.length.nodes
    step, low = _step(axis), axis.low.cast(np.float64)
    index = _range(axis.count)
    steps = where(index.op("Equal", 0, dtype=np.bool_), low + step * 0.5, step)
    place = nodes.call("CumSum", steps, nodes.constant(0, np.int64)).op("Floor").cast(np.int64)
    shown = nodes.constant(np.arange(size), np.int64) - axis.first
    shown = shown.op("Max", 0).op("Min", axis.count - 1)
    return nodes.call("Gather", place.op("Min", axis.length - 1), shown)


def _bilinear(x: Value) -> Value:
    return (x.op("Abs") * -1.0 + 1.0).op("Max", 0.0)


def _bicubic(x: Value) -> Value:
    """Keys's kernel with a = -0.5."""
    x = x.op("Abs")
    near = (x * 1.5 - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return where(x < 1.0, near, where(x < 2.0, far, 0.0))


def _lanczos(x: Value) -> Value:
    return where(x.op("Abs") < 3.0, _sinc(x) * _sinc(x / 3.0), 0.0)


def _sinc(x: Value) -> Value:
    angle = x * math.pi
    zero = angle.op("Equal", 0.0, dtype=np.bool_)
    one = x.nodes.constant(1.0, np.float64)
    safe = where(zero, one, angle)
    return where(zero, one, safe.op("Sin") / safe)


_FILTERS = {"bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos}
