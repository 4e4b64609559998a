"""TIFF files with samples of more than 8 bits, or with more bands than a picture has colours.

Pillow decodes ordinary ones. These it reads wrongly (planes of 16 bits, white that is 0, opacity
that is infrared) or not at all, so they are read here: the directory, the strips or tiles, and the
predictors. Bytes are unpacked by zlib, or by Pillow's libtiff as if they were grey pixels.

A file says which band is what: the first is grey, or the first three are red, green and blue. One
further band may be opacity. What else there is, is left out with a note.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from fieldmark.pictures.picture import BadPicture
from fieldmark.pictures.samples import WHITE, Samples

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_ENTRIES = 4096
_NEEDED = frozenset(
    {*range(256, 260), 262, 266, 273, 274, 277, 278, 279, 284, 317, *range(322, 326), 338, 339}
)
_PLAIN, _DEFLATE, _OF_LIBTIFF = (1,), (8, 32946), (5, 32773, 34925, 50000)
_NAMES = {
    2: "a fax's",
    3: "a fax's",
    4: "a fax's",
    6: "JPEG",
    7: "JPEG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_UNSIGNED, _SIGNED, _FLOAT, _VOID = 1, 2, 3, 4
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK = 0, 1, 2, 5
_PHOTOMETRICS = {3: "a palette", 6: "YCbCr", 8: "Lab", 32803: "a sensor's raw data", 34892: "raw"}
_JPEGS = (6, 7)


class Deep(NamedTuple):
    """What was read."""

    samples: Samples
    """Not upright yet."""
    notes: tuple[str, ...]
    orientation: int


@dataclass(frozen=True)
class _Directory:
    """The tags of the first picture."""

    order: str
    """``<`` or ``>``."""
    tags: dict[int, tuple[int, ...]]
    nodata: float | None
    several: bool
    """Whether there are further pictures."""
    odd: bool
    """Whether it is a BigTIFF with the higher byte first."""

    def one(self, tag: int, default: int) -> int:
        values = self.tags.get(tag, ())
        return values[0] if values else default

    @property
    def size(self) -> tuple[int, int]:
        return self.one(256, 0), self.one(257, 0)

    @property
    def bits(self) -> int:
        return self.one(258, 1)

    @property
    def bands(self) -> int:
        return self.one(277, 1)

    @property
    def photometric(self) -> int:
        return self.one(262, _BLACK_IS_ZERO)

    @property
    def colors(self) -> int:
        return 3 if self.photometric == _RGB else 1

    @property
    def planar(self) -> bool:
        return self.one(284, 1) == 2 and self.bands > 1

    @property
    def kind(self) -> int:
        kind = self.one(339, _UNSIGNED)
        return _UNSIGNED if kind == _VOID else kind


def size(data: bytes) -> tuple[int, int] | None:
    """Width and height, if :func:`read` is to read the file; None if that is left to Pillow.

    Raises:
        BadPicture: 'unsupported format' if neither can.
    """
    found = _directory(data)
    if found is None or not _is_ours(found):
        return None
    _check(found)
    return found.size


def read(data: bytes) -> Deep:
    """Read the first picture of a file that :func:`size` has accepted.

    Raises:
        BadPicture: if it is broken or cut short.
    """
    found = _directory(data)
    assert found is not None
    opacity = _opacity_band(found)
    wanted = [*range(found.colors), *([opacity] if opacity is not None else [])]
    bands = _bands(data, found, wanted)
    cover = _cover(bands[:, :, -1], found) if opacity is not None else None
    values = bands[:, :, : found.colors]
    values = _without_nodata(values, found.nodata)
    values = _black_is_zero(values, found)[:, :, 0 if found.colors == 1 else slice(None)]
    if cover is not None and found.one(338, 0) == 1:  # the colours are multiplied by it
        part = cover if values.ndim == 2 else cover[:, :, None]
        values = np.where(part > 0, values / np.maximum(part, 1e-6), 0)
    used = found.colors + (cover is not None)
    notes = [f"{used} of {found.bands} bands used"] if used < found.bands else []
    notes += ["first of several pages"] if found.several else []
    samples = Samples(values, _white(found), cover)
    return Deep(samples, tuple(notes), found.one(274, 1))


def _directory(data: bytes) -> _Directory | None:
    """Read the first directory; None if it makes no sense.

    Raises:
        BadPicture: if some of it lies beyond the end.
    """
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    word, count, head = ("Q", "Q", 20) if big else ("I", "H", 12)
    tags: dict[int, tuple[int, ...]] = {}
    nodata = None
    try:
        (at,) = struct.unpack_from(order + word, data, 8 if big else 4)
        (number,) = struct.unpack_from(order + count, data, at)
        at += struct.calcsize(count)
        if number > _ENTRIES:
            return None
        for _ in range(number):
            tag, kind, n = struct.unpack_from(order + "HH" + word, data, at)
            size, place = _SIZES.get(kind, 0) * n, at + 4 + struct.calcsize(word)
            if size > struct.calcsize(word):
                (place,) = struct.unpack_from(order + word, data, place)
            if tag == 42113 and kind == 2:
                nodata = _number(data[place : place + size])
            elif kind in _CODES and tag in _NEEDED:
                if place + size > len(data):
                    raise BadPicture("truncated", "TIFF: the file ends before its tags do")
                tags.setdefault(tag, struct.unpack_from(f"{order}{n}{_CODES[kind]}", data, place))
            at += head
        following = struct.unpack_from(order + word, data, at)[0] if len(data) > at else 0
    except struct.error:
        return None
    return _Directory(order, tags, nodata, following != 0, big and order == ">")


def _number(text: bytes) -> float | None:
    try:
        return float(text.split(b"\0")[0])
    except ValueError:
        return None


def _is_ours(found: _Directory) -> bool:
    """Whether Pillow is not to be trusted with a file."""
    photometric, bands = found.photometric, found.bands
    if photometric == _CMYK:
        return False
    if found.bits > 8 or found.kind != _UNSIGNED:
        return True
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        has_opacity = found.tags.get(338, ()) in ((1,), (2,)) and not found.planar
        return found.odd or bands > 2 or (bands == 2 and not has_opacity)
    return photometric == _RGB and (found.odd or bands > 4 or (found.planar and bands > 3))


def _check(found: _Directory) -> None:
    """Refuse what cannot be read.

    Raises:
        BadPicture: 'unsupported format', with what it is.
    """
    packing, bits, kind = found.one(259, 1), found.bits, found.kind
    wrong = ""
    if len(set(found.tags.get(258, ()))) > 1 or len(set(found.tags.get(339, ()))) > 1:
        wrong = "bands of different kinds"
    elif packing in _JPEGS and bits > 8:
        wrong = f"JPEG of {bits} bits"
    elif packing not in (*_PLAIN, *_DEFLATE, *_OF_LIBTIFF):
        wrong = f"{_NAMES.get(packing, f'unknown ({packing})')} compression"
    elif kind not in (_UNSIGNED, _SIGNED, _FLOAT):
        wrong = "complex numbers"
    elif not (bits in (8, 16, 32, 64) or (kind == _UNSIGNED and bits < 16)):
        wrong = f"samples of {bits} bits"
    elif kind == _FLOAT and bits == 8:
        wrong = "floats of 8 bits"
    elif found.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        what = _PHOTOMETRICS.get(found.photometric, f"colours of kind {found.photometric}")
        wrong = f"{what} of {bits} bits"
    elif found.bands < found.colors:
        wrong = f"{found.bands} bands for {found.colors} colours"
    elif found.one(317, 1) not in (1, 2, 3) or (bits not in (8, 16, 32, 64) and 317 in found.tags):
        wrong = f"predictor {found.one(317, 1)}"
    if wrong:
        raise BadPicture("unsupported format", f"TIFF: {wrong}")


def _opacity_band(found: _Directory) -> int | None:
    extra = found.tags.get(338, ())
    return found.colors if extra and extra[0] in (1, 2) and found.kind == _UNSIGNED else None


def _cover(band: npt.NDArray[Any], found: _Directory) -> npt.NDArray[Any] | None:
    """Return the opacity from 0 to 1; None for a band that can only be something else.

    Satellites' infrared is often called opacity. Real opacity is mostly all or nothing.
    """
    most = 2**found.bits - 1
    if 2 * np.count_nonzero((band == 0) | (band == most)) < band.size:
        return None
    return np.asarray(band / most, np.float32)


def _without_nodata(values: npt.NDArray[Any], nodata: float | None) -> npt.NDArray[Any]:
    """Give samples that say "nothing was measured here" the least value of the others."""
    if nodata is None:
        return values
    missing = np.isnan(values) if nodata != nodata else values == nodata
    if not missing.any() or missing.all():
        return values
    return np.where(missing, values[~missing].min(), values)


def _black_is_zero(values: npt.NDArray[Any], found: _Directory) -> npt.NDArray[Any]:
    if found.photometric != _WHITE_IS_ZERO:
        return values
    if found.kind == _UNSIGNED:
        return np.asarray(values.dtype.type(2**found.bits - 1) - values)
    return np.asarray(1 - values if found.kind == _FLOAT else ~values)


def _white(found: _Directory) -> float:
    if found.kind == _FLOAT:
        return 1.0
    bits = found.bits - (found.kind == _SIGNED)
    return min(2.0**bits - 1, WHITE)


def _bands(data: bytes, found: _Directory, wanted: list[int]) -> npt.NDArray[Any]:
    """Read the wanted bands, [H, W, len(wanted)], in this machine's byte order."""
    width, height = found.size
    result: npt.NDArray[Any] | None = None
    for plane, top, left, piece in _pieces(data, found, wanted):
        if result is None:
            kind = piece.dtype.newbyteorder("=")
            result = np.zeros((height, width, len(wanted)), kind)
        down, across = min(piece.shape[0], height - top), min(piece.shape[1], width - left)
        box = np.s_[top : top + down, left : left + across]
        if found.planar:
            result[(*box, wanted.index(plane))] = piece[:down, :across, 0]
        else:
            result[box] = piece[:down, :across, wanted]
    if result is None:
        raise BadPicture("broken", "TIFF: no pixels")
    return result


def _pieces(
    data: bytes, found: _Directory, wanted: list[int]
) -> Iterator[tuple[int, int, int, npt.NDArray[Any]]]:
    """Yield plane, first row and column of each strip or tile, and its samples."""
    width, height = found.size
    tiled = 324 in found.tags
    down = found.one(323, 0) if tiled else min(found.one(278, height), height)
    across = found.one(322, 0) if tiled else width
    starts = found.tags.get(324 if tiled else 273, ())
    sizes = found.tags.get(325 if tiled else 279, ())
    if not (down > 0 and 0 < across <= 4 * width + 4096 and down <= 4 * height + 4096):
        raise BadPicture("broken", "TIFF: strips or tiles of no size")
    places = [(top, left) for top in range(0, height, down) for left in range(0, width, across)]
    planes = found.bands if found.planar else 1
    if len(starts) < planes * len(places):
        raise BadPicture("broken", "TIFF: strips or tiles are missing")
    for plane in range(planes):
        if found.planar and plane not in wanted:
            continue
        for i, (top, left) in enumerate(places, plane * len(places)):
            rows = down if tiled else min(down, height - top)
            size = sizes[i] if i < len(sizes) else len(data)
            packed = data[starts[i] : starts[i] + size]
            bands = 1 if found.planar else found.bands
            yield plane, top, left, _unpacked(packed, found, (rows, across, bands))


def _unpacked(packed: bytes, found: _Directory, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Unpack a strip or tile to samples of this shape."""
    rows, width, bands = shape
    row = -(-width * bands * found.bits // 8)
    raw = _bytes(packed, found, rows, row)
    if len(raw) < rows * row:
        raise BadPicture("truncated", "TIFF: the file ends before the picture does")
    lines = np.frombuffer(raw, np.uint8, rows * row).reshape(rows, row)
    predictor, bits = found.one(317, 1), found.bits
    if bits not in (8, 16, 32, 64):
        each = np.unpackbits(lines, axis=1)[:, : width * bands * bits].reshape(*shape, bits)
        whole = each * (1 << np.arange(bits - 1, -1, -1, dtype=np.uint16))
        return np.asarray(whole.sum(3, dtype=np.uint8 if bits < 8 else np.uint16))
    letter = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}[found.kind]
    if predictor == 3 and found.kind == _FLOAT:
        steps = lines.reshape(rows, -1, bands)
        planes = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(rows, bits // 8, -1)
        return (
            np.ascontiguousarray(planes.transpose(0, 2, 1))
            .reshape(-1)
            .view(f">f{bits // 8}")
            .reshape(shape)
        )
    values = np.ascontiguousarray(lines).reshape(-1).view(f"{found.order}{letter}{bits // 8}")
    values = values.reshape(shape)
    if predictor == 2 and found.kind != _FLOAT:
        values = np.cumsum(values, axis=1, dtype=values.dtype.newbyteorder("="))
    return values


def _bytes(packed: bytes, found: _Directory, rows: int, row: int) -> bytes:
    packing = found.one(259, 1)
    if packing in _PLAIN:
        return packed
    if packing in _DEFLATE:
        try:
            return zlib.decompressobj().decompress(packed, rows * row)
        except zlib.error as error:
            raise BadPicture("broken", f"TIFF: {error}") from None
    tags = [(256, row), (257, rows), (258, 8), (259, packing), (262, 1)]
    tags += [(266, found.one(266, 1)), (273, 0), (277, 1), (278, rows), (279, len(packed))]
    start = 8 + 2 + 12 * len(tags) + 4
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(
        struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags
    )
    with TiffImagePlugin.TiffImageFile(io.BytesIO(head + bytes(4) + packed)) as image:
        return image.tobytes()
