"""Samples of more than 8 bits: scales, TIFF and PNG that Pillow does not read rightly."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fieldmark.pictures import png, tiff
from fieldmark.pictures.decode import Encoded, decode, to_rgb
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture, Deep
from fieldmark.pictures.samples import chosen
from tests.making import bands_tiff, chunk, encode, exif, scene, stored_for

GREY = np.linspace(0, 1, 16 * 24).reshape(16, 24)


def by(scale: str) -> PictureLimits:
    return PictureLimits(range=scale)


def grey(data: bytes, scale: str = "type") -> npt.NDArray[Any]:
    pixels = decode(data, by(scale))[0]
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0].astype(int)


def levels(values: Any, low: float, high: float) -> npt.NDArray[Any]:
    """What a scale means, in its simplest form."""
    exact = (np.asarray(values, np.float64) - low) / (high - low) * 255
    return np.clip(exact, 0, 255)


def nearest(got: npt.NDArray[Any], exact: npt.NDArray[Any]) -> bool:
    """Whether these are the numbers, rounded."""
    return bool(np.abs(got - exact).max() <= 0.5 + 1e-6)


# Scales


@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("top", [1, 1.001, 255, 256, 4095, 65535])
def test_a_small_step_in_the_values_is_a_small_step_in_the_picture(kind: str, top: float) -> None:
    values = (GREY * min(top, 32767 if kind == "i2" else top)).astype(kind)
    odd = values.copy()
    odd[3, 3] = min(float(odd.max()) + 1, 32767)  # a hot pixel
    for scale in ("type", f"0,{top}", "-3.5,70000"):
        before, after = grey(bands_tiff(values), scale), grey(bands_tiff(odd), scale)
        assert np.array_equal(np.delete(before.ravel(), 75), np.delete(after.ravel(), 75))


@pytest.mark.parametrize("kind", ["u2", "i4", "f4"])
def test_a_range_is_black_and_white_and_the_rest_is_cut_off(kind: str) -> None:
    values = np.array([[0, 500, 1000, 1500, 2000, 4095]]).astype(kind)
    for data in (bands_tiff(values), encode(Image.fromarray(values), "TIFF")):
        assert nearest(grey(data, "500,1500"), levels(values, 500, 1500))
    if kind == "u2":
        data = encode(Image.fromarray(values), "PNG")
        assert nearest(grey(data, "500,1500"), levels(values, 500, 1500))


def test_pictures_of_8_bits_are_the_same_in_every_scale() -> None:
    for kind in ("PNG", "TIFF", "BMP", "JPEG"):
        data = encode(scene(), kind)
        assert np.array_equal(decode(data, by("7,9"))[0], decode(data)[0])


def test_an_image_of_pillows_has_the_scale_too() -> None:
    image = Image.fromarray((GREY * 4095).astype(np.uint16))
    assert nearest(to_rgb(image, "0,4095")[:, :, 0], levels(np.asarray(image), 0, 4095))


def test_identity_is_of_the_samples_and_not_of_the_scale() -> None:
    values = (GREY * 900 + 1000).astype(np.uint16)
    data, other = bands_tiff(values), bands_tiff(values + (np.arange(24) == 5).astype(np.uint16))
    names = {Encoded(data).decode(by(s)).identity for s in ("type", "0,4095", "1000,1900")}
    assert len(names) == 1
    assert np.array_equal(grey(data), grey(other))  # the same in the scale of the type
    assert Encoded(other).decode(by("type")).identity not in names
    assert len({Encoded(data).name(by(s)) for s in ("type", "0,4095")}) == 2


def test_eight_bits_stored_in_sixteen_are_the_same_picture() -> None:
    small = scene()[:, :, 0]
    wide = encode(Image.fromarray(small.astype(np.uint16) * 257), "PNG")
    want = Encoded(encode(small, "PNG")).decode(PictureLimits()).identity
    assert Encoded(wide).decode(PictureLimits()).identity == want


def deep(low: float, high: float) -> Deep:
    return Deep("", low, high, "16 bits")


def test_the_scale_of_a_data_set_is_of_its_training_pictures_but_for_one_in_a_hundred() -> None:
    assert chosen([deep(100, 3000)]) == "100,3000"
    assert chosen([deep(100 + i, 3000 + i) for i in range(7)]) == "100,3006"
    odd = [deep(-9999, 65535), *(deep(100 + i, 3000 - i) for i in range(99))]
    assert chosen(odd) == "101,2999"
    assert chosen([deep(5, 5)] * 20) == "5,10"
    assert chosen([deep(0, 0)]) == "0,1"
    assert chosen([deep(0, 1.0), deep(0, 1.001)]) == "0,1.001"


def test_a_hot_pixel_in_every_picture_does_not_make_them_dark() -> None:
    values = np.full((150, 150), 1000, np.uint16)
    values[::2] = 2000
    values[7, 7] = 65535
    picture = Encoded(bands_tiff(values)).decode(PictureLimits())
    assert picture.deep is not None
    assert (picture.deep.low, picture.deep.high) == (1000, 2000)


# TIFF


RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)
CASES: dict[str, tuple[dict[str, Any], npt.NDArray[Any]]] = {}
for _name, _code, _top in (
    ("16", "u2", 65535),
    ("32", "f4", 1),
    ("64", "f8", 1),
    ("half", "f2", 1),
):
    _v, _c = (GREY * _top).astype(_code), (RGB * _top).astype(_code)
    _white = (_top - _v.astype(np.float64)).astype(_code)
    for _order in "<>":
        _o = {"order": _order}
        CASES |= {
            f"grey {_name}{_order}": ({"samples": _v, **_o}, _v / _top),
            f"white is 0 {_name}{_order}": (
                {"samples": _white, "photometric": 0, **_o},
                _v / _top,
            ),
            f"colour {_name}{_order}": ({"samples": _c, "photometric": 2, **_o}, _c / _top),
            f"planes {_name}{_order}": (
                {"samples": _c, "photometric": 2, "planes": True, **_o},
                _c / _top,
            ),
        }


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_the_right_picture(name: str, big: bool) -> None:
    options, want = CASES[name]
    given = dict(options)
    pixels, notes = decode(bands_tiff(given.pop("samples"), big=big, **given))
    assert notes == ()
    difference = np.abs(pixels.astype(float) - np.atleast_3d(want * 255))
    assert difference.max() <= (1 if "half" in name else 0.51)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(
    ("bands", "photometric"), [(2, 1), (3, 1), (5, 1), (13, 1), (5, 2), (7, 2)]
)
def test_further_bands_are_left_out_with_a_note(
    dtype: str, planes: bool, bands: int, photometric: int
) -> None:
    top = {"u1": 255, "u2": 65535, "f4": 1}[dtype]
    samples = np.repeat(GREY[:, :, None], bands, 2)
    samples[:, :, :3] = RGB[:, :, :bands]
    data = bands_tiff((samples * top).astype(dtype), photometric=photometric, planes=planes)
    colors = 3 if photometric == 2 else 1
    pixels, notes = decode(data)
    assert notes == (f"{colors} of {bands} bands used",)
    assert np.abs(pixels - RGB[:, :, :colors] * 255.0).max() <= 1


def test_opacity_that_can_only_be_infrared_is_left_out() -> None:
    nir = (GREY / 20 * 65535 + 1)[:, :, None]
    four = np.concatenate([RGB * 65535, nir], 2).astype(np.uint16)
    pixels, notes = decode(bands_tiff(four, photometric=2, extra=(2,)))
    assert notes == ("3 of 4 bands used",)
    assert np.abs(pixels - RGB * 255).max() <= 1
    four[:, :, 3] = np.where(GREY > 0.5, 65535, 0)  # and this is opacity
    pixels, notes = decode(bands_tiff(four, photometric=2, extra=(2,)))
    assert notes == ()
    assert (pixels[GREY <= 0.5] == 255).all()
    assert np.abs(pixels - RGB * 255)[GREY > 0.5].max() <= 1


def test_samples_that_say_that_nothing_was_measured_are_black() -> None:
    values = (GREY * 100 + 300).astype(np.float32)
    values[:4] = -9999
    data = bytearray(bands_tiff(values, more=((42113, 0),)))
    at = data.index((42113).to_bytes(2, "little"))
    data[at : at + 8] = b"\x81\xa4\2\0\6\0\0\0"
    data[at + 8 : at + 12] = len(data).to_bytes(4, "little")
    picture = Encoded(bytes(data) + b"-9999\0").decode(PictureLimits())
    assert picture.deep is not None
    assert picture.deep.low >= 300


@pytest.mark.parametrize("turn", range(2, 9))
def test_orientation_is_applied_to_deep_samples(turn: int) -> None:
    upright = scene()[:, :, 0].astype(np.uint16) * 257
    data = bands_tiff(stored_for(upright, turn), more=((274, turn),))
    assert np.array_equal(grey(data), upright // 257)
    stored = Image.fromarray(stored_for(upright, turn))
    assert np.array_equal(grey(encode(stored, "PNG", exif=exif(turn))), upright // 257)


@pytest.mark.parametrize("packing", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_packed_samples_are_pillows(packing: str) -> None:
    for dtype in ("u2", "i4", "f4"):
        values = (GREY * 200).astype(dtype)
        for options in (
            {},
            {"tiffinfo": {317: 2}} if dtype != "f4" and packing != "packbits" else {},
        ):
            data = encode(Image.fromarray(values), "TIFF", compression=packing, **options)
            assert tiff.size(data) == (24, 16)
            assert nearest(grey(data, "0,200"), levels(values, 0, 200))


def test_every_layout_of_another_writer(tmp_path: Any) -> None:
    """Tiles and planes, written and read by tifffile."""
    tifffile = pytest.importorskip("tifffile")
    for i, (dtype, options) in enumerate(
        [
            ("f4", {"compression": "zlib", "rowsperstrip": 3}),
            ("u2", {"compression": "zlib", "tile": (16, 16)}),
            ("f8", {"compression": "zlib", "planarconfig": "separate"}),
            ("u4", {"tile": (16, 16), "planarconfig": "separate", "byteorder": ">"}),
        ]
    ):
        top = {"f": 1, "u": 65535}[dtype[0]]
        shown = np.moveaxis(RGB, 2, 0) if "planarconfig" in options else RGB
        file = tmp_path / f"{i}.tif"
        tifffile.imwrite(file, (shown * top).astype(dtype), photometric="rgb", **options)
        theirs = tifffile.imread(file).astype(float)
        theirs = np.moveaxis(theirs, 0, 2) if len(theirs) == 3 else theirs
        pixels = decode(file.read_bytes(), by("0,1" if top == 1 else "0,65535"))[0]
        assert nearest(pixels, levels(theirs, 0, top))


@pytest.mark.parametrize(
    ("more", "dtype", "word"),
    [
        (((259, 7),), "u2", "JPEG of 16 bits"),
        (((259, 34712),), "u2", "JPEG 2000 compression"),
        (((259, 999),), "u2", r"unknown \(999\) compression"),
        (((262, 32803),), "u2", "raw photograph"),
        (((262, 3),), "u2", "a palette of 16 bits"),
        (((339, 6),), "f4", "complex numbers"),
        (((258, 24),), "u4", "samples of 24 bits"),
    ],
)
def test_what_cannot_be_read_is_unsupported_with_the_reason(
    more: tuple[tuple[int, int], ...], dtype: str, word: str
) -> None:
    data = bands_tiff(GREY.astype(dtype))
    for tag, value in more:
        at = data.index(tag.to_bytes(2, "little") + b"\3\0\1\0\0\0")
        data = data[: at + 8] + value.to_bytes(2, "little") + data[at + 10 :]
    with pytest.raises(BadPicture, match=word) as caught:
        decode(data)
    assert caught.value.reason == "unsupported format"


def test_deep_tiffs_cut_short_are_bad() -> None:
    values = Image.fromarray((GREY * 65535).astype(np.uint16))
    packed_ones = encode(values, "TIFF", compression="tiff_lzw")
    for data in (packed_ones, bands_tiff((RGB * 65535).astype(np.uint16), photometric=2)):
        for length in range(len(data) - 8, 8, -37):
            with pytest.raises(BadPicture):
                decode(data[:length])


# PNG


def packed(values: npt.NDArray[np.uint16], color: int, *, interlaced: bool = False) -> bytes:
    """A PNG of 16 bits; rows take turns with the five filters."""
    height, width = values.shape[:2]
    step = 2 * (values.size // (height * width))
    passes = [values]
    if interlaced:
        places = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        places += [(0, 1, 2, 2), (1, 0, 2, 1)]
        passes = [values[top::down, left::across] for top, left, down, across in places]
    out = b""
    for part in passes:
        if part.size:
            flat = np.ascontiguousarray(part).astype(">u2").tobytes()
            row = len(flat) // len(part)
            lines = [flat[i : i + row] for i in range(0, len(flat), row)]
            before = bytes(row)
            for number, line in enumerate(lines):
                out += bytes([number % 5]) + filtered(line, before, step, number % 5)
                before = line
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head += bytes([16, color, 0, 0, interlaced])
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(out)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def filtered(line: bytes, above: bytes, step: int, kind: int) -> bytes:
    """Filter a row as the standard's text says, byte by byte."""
    result = bytearray()
    for i, value in enumerate(line):
        a = line[i - step] if i >= step else 0
        b, c = above[i], above[i - step] if i >= step else 0
        near = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        result.append((value - [0, a, b, (a + b) // 2, near][kind]) % 256)
    return bytes(result)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colour_of_16_bits_keeps_all_of_them(color: int, channels: int, interlaced: bool) -> None:
    values = np.random.default_rng(1).integers(0, 4096, (13, 19, channels)).astype(np.uint16)
    if channels in (2, 4):
        values[:, :, -1] = 65535
    data = packed(values, color, interlaced=interlaced)
    by_pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    kept = values[:, :, :1] if channels == 2 else values[:, :, :3]
    assert np.array_equal(
        by_pillow, np.broadcast_to(kept >> 8, by_pillow.shape)
    )  # our file is right
    pixels = decode(data, by("0,4095"))[0]
    assert nearest(pixels, levels(kept, 0, 4095))
    assert np.array_equal(decode(data, by("picture"))[0], by_pillow)  # as earlier models have it


def test_filters_are_undone_as_pillow_does() -> None:
    picture = np.random.default_rng(2).integers(0, 99, (40, 31, 4), dtype=np.uint8).cumsum(1)
    picture = picture.astype(np.uint8)
    data = encode(Image.fromarray(picture), "PNG")
    raw = zlib.decompress(b"".join(body for name, body, _ in png._chunks(data) if name == b"IDAT"))
    lines = np.frombuffer(raw, np.uint8).reshape(40, -1)
    assert len(set(lines[:, 0])) > 1
    assert np.array_equal(png._unfiltered(lines, 4), picture)


def test_a_transparent_colour_of_16_bits_becomes_white() -> None:
    values = np.full((3, 4, 3), 300, np.uint16)
    values[1, 2] = (1, 2, 3)
    data = packed(values, 2)
    at = data.index(b"IDAT") - 4
    data = data[:at] + chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3])) + data[at:]
    pixels: U8 = decode(data, by("0,600"))[0]
    assert pixels[1, 2].tolist() == [255] * 3 and pixels[0, 0].tolist() == [128] * 3


def test_a_deep_png_without_its_last_rows_is_bad() -> None:
    data = packed(np.zeros((9, 9, 3), np.uint16), 2)
    at = data.index(b"IDAT")
    rows = zlib.compress(bytes(9 * 55 - 60))
    cut = data[: at - 4] + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(BadPicture, match="truncated"):
        decode(cut)


def test_samples_that_the_scale_of_their_type_hardly_suits_are_said() -> None:
    for values, words in (
        ((GREY * 4095).astype(np.uint16), "samples of 16 bits from 0 to 4095, where 0 is black"),
        ((GREY * 255).astype(np.float32), "samples of floats from 0 to 255, where 0 is black"),
    ):
        data = bands_tiff(values)
        assert decode(data)[1][0].startswith(words)
        assert decode(data, by("0,4095"))[1] == ()
    assert decode(bands_tiff((GREY * 65535).astype(np.uint16)))[1] == ()
