"""The decoder against hostile, odd and merely unusual files."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

import fieldmark.pictures.decode as module
from fieldmark.pictures.decode import REASONS, decode, decode_file, to_rgb
from fieldmark.pictures.formats import sniff
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture
from tests.making import U8, chunk, encode, exif, png, scene, stored_for, tiff, tiff_pages

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
}
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95},
    "GIF": {},
}


def bad(data: bytes, *limits: PictureLimits) -> BadPicture:
    with pytest.raises(BadPicture) as caught:
        decode(data, *limits)
    assert caught.value.reason in REASONS
    assert str(caught.value).isprintable()
    return caught.value


def near(got: U8, want: Any, *, within: float = 1.0) -> None:
    difference = np.abs(got.astype(float) - np.asarray(want, float))
    assert difference.max() <= within, difference.max()


# What is decoded


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    pixels, notes = decode(encode(scene(), kind, **LOSSLESS[kind]))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable and pixels.flags.c_contiguous
    assert np.array_equal(pixels, scene())
    assert notes == ()


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_come_close(kind: str) -> None:
    smooth = np.array(Image.fromarray(scene(4, 6)).resize((96, 64), Image.Resampling.BICUBIC))
    pixels, _ = decode(encode(smooth, kind, **LOSSY[kind]))
    assert pixels.shape == smooth.shape
    assert np.abs(pixels.astype(int) - smooth).mean() < 6


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (3, 3)])
def test_small_and_thin_pictures(shape: tuple[int, int]) -> None:
    pixels, _ = decode(encode(scene(*shape), "PNG"))
    assert np.array_equal(pixels, scene(*shape))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_the_same_picture(kind: str, orientation: int) -> None:
    stored = stored_for(scene(), orientation)
    data = encode(stored, kind, exif=exif(orientation), **LOSSLESS[kind])
    pixels, _ = decode(data)
    assert np.array_equal(pixels, scene())
    assert np.array_equal(to_rgb(Image.open(io.BytesIO(data))), scene())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpeg_and_avif(orientation: int) -> None:
    smooth = np.array(Image.fromarray(scene(4, 6)).resize((96, 64), Image.Resampling.BICUBIC))
    stored = stored_for(smooth, orientation)
    for kind in ("JPEG", "AVIF"):
        pixels, _ = decode(encode(stored, kind, quality=95, exif=exif(orientation)))
        assert pixels.shape == smooth.shape
        assert np.abs(pixels.astype(int) - smooth).mean() < 6


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 50,
        exif(6)[:20],
        exif(99),
    ],
)
def test_a_corrupt_exif_block_never_loses_the_picture(block: bytes) -> None:
    for kind in ("PNG", "WEBP"):
        pixels, _ = decode(encode(scene(), kind, exif=block, **LOSSLESS[kind]))
        assert np.array_equal(pixels, scene())
    pixels, _ = decode(encode(scene(), "JPEG", exif=block))
    assert pixels.shape == scene().shape


def test_a_broken_icc_profile_changes_nothing() -> None:
    pixels, _ = decode(encode(scene(), "PNG", icc_profile=b"no profile"))
    assert np.array_equal(pixels, scene())


@pytest.mark.parametrize("name", ["a.jpg", "a.txt", "a", "a.HEIC"])
def test_the_content_decides_not_the_name(tmp_path: Path, name: str) -> None:
    for kind in LOSSLESS:
        data = encode(scene(), kind, **LOSSLESS[kind])
        (tmp_path / name).write_bytes(data)
        pixels, _ = decode_file(tmp_path / name)
        assert np.array_equal(pixels, scene())
        assert (tmp_path / name).read_bytes() == data


# Modes


def modes() -> dict[str, tuple[Image.Image, Any]]:
    """Images of every mode, with what their pixels must be."""
    rgb, grey, alpha = scene(), scene()[:, :, 0], scene(seed=1)[:, :, 1]
    image, over = Image.fromarray(rgb), Image.fromarray(alpha)
    third = lambda a: np.repeat(np.asarray(a, float)[:, :, None], 3, axis=2)  # noqa: E731
    white = lambda a: a * (alpha / 255)[..., None] + 255 - alpha[..., None]  # noqa: E731
    la = Image.merge("LA", (Image.fromarray(grey), over))
    rgba = Image.merge("RGBA", (*image.split(), over))
    palette = image.quantize(16)
    return {
        "1": (Image.fromarray(grey > 90), third((grey > 90) * 255)),
        "L": (Image.fromarray(grey), third(grey)),
        "LA": (la, white(third(grey))),
        "La": (la.convert("La"), white(third(grey))),
        "P": (palette, np.asarray(palette.convert("RGB"))),
        "RGB": (image, rgb),
        "RGBA": (rgba, white(rgb)),
        "RGBa": (rgba.convert("RGBa"), white(rgb)),
        "RGBX": (image.convert("RGBX"), rgb),
        "CMYK": (image.convert("CMYK"), rgb),
        "YCbCr": (image.convert("YCbCr"), rgb),
        "HSV": (image.convert("HSV"), rgb),
        "I": (Image.fromarray(grey.astype(np.int32) * 257), third(grey)),
        "F": (Image.fromarray(grey.astype(np.float32) / 255), third(grey)),
        "I;16": (Image.fromarray(grey.astype(np.uint16) * 257), third(grey)),
        "I;16B": (Image.fromarray((grey.astype(np.uint16) * 257).astype(">u2")), third(grey)),
    }


EARLIER = PictureLimits(range="picture")
"""As models decode that were trained before there was one scale for a data set."""


@pytest.mark.parametrize("mode", modes())
def test_every_mode_has_its_rule(mode: str) -> None:
    image, want = modes()[mode]
    assert image.mode == mode
    # YCbCr and HSV keep 8 bits of each; premultiplied colours lose bits where alpha is small
    near(to_rgb(image), want, within={"YCbCr": 3, "HSV": 10, "La": 3, "RGBa": 3}.get(mode, 1))


def test_pa_lies_over_white() -> None:
    palette = Image.fromarray(scene()).quantize(16)
    image = palette.convert("RGBA")
    image.putalpha(128)
    half = image.convert("PA") if palette.mode == "PA" else palette.convert("PA")
    half.putalpha(128)
    assert half.mode == "PA"
    near(to_rgb(half), np.asarray(palette.convert("RGB")) * (128 / 255) + 127, within=2)


def test_lab_grey_is_grey() -> None:
    samples = np.full((2, 2, 3), 128, np.uint8)  # a = b = 0 are stored as 128
    samples[..., 0] = 255
    lab = Image.merge("LAB", [Image.fromarray(samples[..., c]) for c in range(3)])
    near(to_rgb(lab), np.full((2, 2, 3), 255), within=3)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 5e8, 1e9], [0, 128, 255]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
    ],
)
def test_floats_had_the_range_of_each_picture(values: list[float], want: list[int]) -> None:
    pixels, _ = decode(tiff(np.array([values], np.float32), kind=3), EARLIER)
    near(pixels[0, :, 0], want)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0, 1, 1], [0, 1, 1]),
        ([0, 100, 255], [0, 100, 255]),
        ([0, 25700, 65535], [0, 100, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
    ],
)
def test_integers_had_the_range_of_each_picture(values: list[int], want: list[int]) -> None:
    pixels, _ = decode(tiff(np.array([values], np.int32), kind=2), EARLIER)
    near(pixels[0, :, 0], want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_picture_with_nan_is_bad(value: float) -> None:
    samples = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    samples[1, 1] = value
    assert bad(tiff(samples, kind=3)).reason == "not finite"


def test_sixteen_bits_are_divided_by_257_and_rounded() -> None:
    values = np.arange(0, 65536, 13, dtype=np.uint16)[None]
    want = np.floor(values / 257 + 0.5)
    for data in (encode(Image.fromarray(values), "PNG"), tiff(values, kind=1)):
        pixels, _ = decode(data)
        assert np.array_equal(pixels[:, :, 1], want)


def test_a_dark_sixteen_bit_picture_stays_dark() -> None:
    pixels, _ = decode(encode(Image.fromarray(np.full((2, 2), 200, np.uint16)), "PNG"))
    assert pixels.max() == 1


def test_transparent_colours_become_white() -> None:
    row = bytes([0, 10, 20, 30])  # filter type, three grey pixels
    grey = png(3, 1, depth=8, color=0, rows=row, extra=chunk(b"tRNS", b"\0\x14"))
    assert decode(grey)[0][0, :, 0].tolist() == [10, 255, 30]
    wide = struct.pack(">B3H", 0, 2570, 5140, 7710)
    grey = png(3, 1, depth=16, color=0, rows=wide, extra=chunk(b"tRNS", b"\x14\x14"))
    assert decode(grey)[0][0, :, 0].tolist() == [10, 255, 30]
    colours = chunk(b"PLTE", bytes([9, 9, 9, 50, 60, 70]))
    half = png(
        2, 1, depth=8, color=3, rows=bytes([0, 0, 1]), extra=colours + chunk(b"tRNS", b"\0\x80")
    )
    near(decode(half)[0][0], [[255] * 3, [152, 157, 162]])


def test_an_rgb_colour_key_of_sixteen_bits_hits_no_other_colour() -> None:
    rows = b"\0" + b"\0" * 6 + b"\x80\x80" * 3
    data = png(2, 1, depth=16, color=2, rows=rows, extra=chunk(b"tRNS", b"\x80\x00" * 3))
    assert decode(data)[0][0, :, 0].tolist() == [0, 128]


def test_adobe_cmyk_jpeg_is_not_inverted() -> None:
    flat = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    data = encode(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data
    near(decode(data)[0], flat, within=6)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_many_frames_the_first(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    pixels, notes = decode(data)
    near(pixels, np.full((20, 20, 3), (255, 0, 0)), within=6)
    number = {"TIFF": "several pages", "GIF": "several frames"}.get(kind, "3 frames")
    assert notes == (f"first of {number}",)


def test_a_hundred_thousand_pages_or_frames_take_no_time() -> None:
    pixels, notes = decode(tiff_pages(100_000))
    assert pixels.tolist() == [[[128, 128, 128]]]
    assert notes == ("first of several pages",)
    frame = b"\x2c" + bytes(4) + b"\1\0\1\0\0\2\2\x4c\1\0"
    screen = b"GIF89a\1\0\1\0\x80\0\0" + b"\x30\x60\x90" * 2
    pixels, notes = decode(screen + 1_000_000 * frame + b";")
    assert pixels.tolist() == [[[48, 96, 144]]]
    assert notes == ("first of several frames",)


# Cut files


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "grey-free 444": {"subsampling": 0},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_cut_anywhere_is_truncated(options: dict[str, Any]) -> None:
    data = encode(scene(40, 56), "JPEG", **options)
    whole, _ = decode(data)
    for length in range(3, len(data) - 12, 2 if "restart_marker_rows" in options else 5):
        assert bad(data[:length]).reason in ("truncated", "broken"), length
    for length in range(len(data) - 12, len(data) - 2):
        try:
            pixels, notes = decode(data[:length])
        except BadPicture:
            continue
        assert np.array_equal(pixels, whole), length  # the last byte may be nothing but filling
        assert notes == ("missing end of file",)


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("tail", [b"", b"\xff", bytes(4096), b"\xff" + bytes(4096)])
def test_a_jpeg_lacking_only_its_end_is_whole(options: dict[str, Any], tail: bytes) -> None:
    data = encode(scene(40, 56), "JPEG", **options)
    pixels, notes = decode(data[:-2] + tail)
    assert np.array_equal(pixels, decode(data)[0])
    assert notes == ("missing end of file",)


def test_a_progressive_jpeg_cut_between_two_scans_is_truncated() -> None:
    data = encode(scene(40, 56), "JPEG", progressive=True)
    starts = [at for at in range(2, len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    assert len(starts) > 4
    for start in starts[1:]:
        assert bad(data[:start]).reason == "truncated"


def test_a_jpeg_whose_rest_was_never_written_is_truncated() -> None:
    data = encode(scene(40, 56), "JPEG")
    half = len(data) * 2 // 3
    assert bad(data[:half] + bytes(len(data) - half)).reason == "truncated"


@pytest.mark.parametrize("kind", [*LOSSLESS, "GIF", "AVIF"])
def test_other_formats_cut_anywhere(kind: str) -> None:
    data = encode(scene(), kind, **LOSSLESS.get(kind, {}))
    whole, _ = decode(data)
    reasons = []
    for length in range(0, len(data), 13):
        try:
            pixels, _ = decode(data[:length])
        except BadPicture as error:
            reasons.append(error.reason)
        else:
            assert np.array_equal(pixels, whole), length
    assert set(reasons) <= {"empty file", "not a picture", "truncated", "broken"}
    assert reasons.count("truncated") > 0.8 * len(data) / 13


def test_a_png_without_its_last_chunk_has_all_pixels() -> None:
    pixels, notes = decode(encode(scene(), "PNG")[:-12])
    assert np.array_equal(pixels, scene())
    assert notes == ("missing end of file",)


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG", "GIF"])
def test_bytes_after_the_end_are_ignored(kind: str) -> None:
    data = encode(scene(), kind, **LOSSLESS.get(kind, {}))
    pixels, notes = decode(data + b"garbage")
    assert np.array_equal(pixels, decode(data)[0])
    assert notes == (("7 bytes after the end",) if kind == "JPEG" else ())


# Broken and foreign files


@pytest.mark.parametrize(
    ("data", "reason", "word"),
    [
        (b"", "empty file", ""),
        (b"\xff", "not a picture", ""),
        (b"just some text\n", "not a picture", "text"),
        ("汉字".encode(), "not a picture", "text"),
        (b"\xef\xbb\xbf <!DOCTYPE html><html>404", "not a picture", "HTML"),
        (b"<?xml version='1.0'?><rss/>", "not a picture", "text"),
        (bytes(1000), "not a picture", "zeros"),
        (b"PK\3\4rest", "not a picture", "zip"),
        (b"\0\0\0\x18ftypisom" + bytes(50), "not a picture", "video"),
        (b"BM is how this text begins, as well", "not a picture", "text"),
        (b"8BPS\0\1" + bytes(50), "unsupported format", "PSD"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported format", "EPS"),
        (b"%PDF-1.7\n", "unsupported format", "PDF"),
        (b"SIMPLE  =                    T", "unsupported format", "FITS"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "unsupported format", "JPEG 2000"),
        (b"\xff\x4f\xff\x51" + bytes(50), "unsupported format", "JPEG 2000"),
        (b"DDS " + bytes(124), "unsupported format", "DDS"),
        (b"\0\0\1\0\1\0" + bytes(50), "unsupported format", "ICO"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported format", "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", "unsupported format", "SVG"),
        (b"P6\n1 1\n255\nabc", "unsupported format", "PPM"),
        (b"\xff\xd8\xff" + bytes(100), "broken", "JPEG"),
        (png(0, 0, depth=8, color=2, rows=b""), "broken", "PNG"),
        (b"GIF89a" + bytes(30), "broken", "GIF"),
    ],
)
def test_what_is_no_picture(data: bytes, reason: str, word: str) -> None:
    error = bad(data)
    assert error.reason == reason
    assert word in error.detail


def test_no_other_plugin_of_pillow_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    for kind, (_, accept) in list(Image.OPEN.items()):
        monkeypatch.setitem(Image.OPEN, kind, (lambda *_: pytest.fail("opened"), accept))
    for kind in ("PPM", "ICO", "JPEG2000", "DDS"):
        assert bad(encode(scene(), kind)).reason == "unsupported format"


def test_a_wrong_checksum_is_broken() -> None:
    data = bytearray(encode(scene(), "PNG"))
    at = data.index(b"IDAT") + 4
    size = int.from_bytes(data[at - 8 : at - 4], "big")
    data[at + size] ^= 1
    assert bad(bytes(data)).reason == "broken"
    data[at + size] ^= 1
    data[at + size // 2] ^= 0x55
    assert bad(bytes(data)).reason == "broken"


def test_random_damage_is_a_picture_or_a_bad_picture() -> None:
    draw = np.random.default_rng(0)
    for kind in [*LOSSLESS, "JPEG", "GIF", "AVIF"]:
        data = np.frombuffer(encode(scene(), kind, **LOSSLESS.get(kind, {})), np.uint8)
        for _ in range(60):
            copy = data.copy()
            where = draw.integers(0, min(len(data), 400), 4)
            copy[where] = draw.integers(0, 256, 4)
            try:
                pixels, _ = decode(copy.tobytes(), PictureLimits(10**6))
            except BadPicture as error:
                assert error.reason in REASONS
            else:
                assert pixels.ndim == 3 and pixels.shape[2] == 3


def test_heic_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brand in (b"heic", b"heix", b"mif1"):
        data = b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + bytes(50)
        with pytest.raises(BadPicture) as raised:
            module.decode_here(data, PictureLimits())
        error = raised.value
        assert error.reason == "unsupported format"
        assert "pip install 'fieldmark[heic]'" in error.detail


def test_heic_is_read_with_the_extra() -> None:
    smooth = np.array(Image.fromarray(scene(4, 6)).resize((96, 64), Image.Resampling.BICUBIC))
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(stream, quality=95)
    pixels, notes = decode(stream.getvalue())
    assert np.abs(pixels.astype(int) - smooth).mean() < 6
    assert notes == ()
    assert bad(stream.getvalue(), PictureLimits(100)).reason == "too many pixels"
    assert bad(stream.getvalue()[:-300]).reason in ("truncated", "broken")


def test_avif_that_calls_itself_mif1_is_avif() -> None:
    assert sniff(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(9)) == "AVIF"


# Limits


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG", "GIF", "AVIF"])
def test_the_pixel_limit_is_exact(kind: str) -> None:
    data = encode(scene(10, 20), kind)
    assert decode(data, PictureLimits(200))[0].shape == (10, 20, 3)
    error = bad(data, PictureLimits(199))
    assert error.reason == "too many pixels"
    assert "20 x 10" in error.detail and "199" in error.detail


BOMBS = """
import resource, struct, sys, zlib
sys.path.insert(0, {here!r})
from tests.making import bilevel_bomb, chunk, png
from fieldmark.pictures.decode import decode
from fieldmark.pictures.picture import BadPicture

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

text = b"a\\0\\0" + zlib.compress(bytes(120_000_000), 9)
bombs = {{
    "header": png(65535, 65535, depth=8, color=2, rows=b"")[:100],
    "bilevel": bilevel_bomb(20_000),
    "text": png(1, 1, depth=8, color=0, rows=b"\\0\\0", extra=chunk(b"zTXt", text)),
    "profile": png(1, 1, depth=8, color=0, rows=b"\\0\\0", extra=chunk(b"iCCP", text)),
    "screen": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\\0\\0\\0,\\0\\0\\0\\0"
        + struct.pack("<HH", 65535, 65535) + b"\\0\\2\\2\\x4c\\1\\0;",
    "webp": b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X\\x0a\\0\\0\\0\\0\\0\\0\\0"
        + (12999).to_bytes(3, "little") * 2 + b"VP8L\\0\\0\\0\\0",
    "tiff": b"II*\\0\\x08\\0\\0\\0\\3\\0" + struct.pack("<HHIIHHIIHHII", 256, 4, 1, 90000, 257, 4,
        1, 90000, 258, 3, 1, 8) + bytes(4),
}}
del text
decode(png(1, 1, depth=8, color=0, rows=b"\\0\\0"))
before = peak()
for name, data in bombs.items():
    try:
        decode(data)
    except BadPicture as error:
        print(name, "|", error.reason, "|", peak() - before)
    else:
        print(name, "| decoded |", peak() - before)
"""


def test_bombs_are_refused_without_memory() -> None:
    # A process of its own: the peak of this one was reached by tests before.
    script = BOMBS.format(here=str(Path(__file__).parent))
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [line.split(" | ") for line in answer.stdout.splitlines()]
    reasons = {name: reason for name, reason, _ in lines}
    for name in ("header", "bilevel", "screen"):
        assert reasons[name] == "too many pixels", answer.stdout
    assert reasons["text"] == "broken", answer.stdout
    assert set(reasons) == {"header", "bilevel", "text", "profile", "screen", "webp", "tiff"}
    assert max(int(growth) for _, _, growth in lines) < 100, answer.stdout


# Files


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(path: Path | str) -> tuple[str, str]:
        with pytest.raises(BadPicture) as caught:
            decode_file(path)
        return caught.value.reason, caught.value.detail

    assert reason(tmp_path / "no.png") == ("cannot be read", "No such file or directory")
    assert reason(tmp_path) == ("cannot be read", "a folder")
    assert reason(str(tmp_path) + "/nul\0.png")[0] == "cannot be read"
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert reason(tmp_path / "loop.png")[0] == "cannot be read"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo.png")
        assert reason(tmp_path / "fifo.png") == ("cannot be read", "not a regular file")
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 2**20)
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(2**20 + 1)
    assert reason(tmp_path / "big.png") == ("cannot be read", "1 MB; at most 1 MB are read")


def test_a_file_that_gives_nothing_for_ever_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a link to /proc/kmsg: a file of the system that says no size and waits for more."""
    waits = threading.Event()
    monkeypatch.setattr(module, "_opened", lambda path: (waits.wait(), open(path, "rb"))[1])  # noqa: SIM115, PTH123
    monkeypatch.setattr(module, "READ_SECONDS", 0.05)
    (tmp_path / "a.png").touch()
    with pytest.raises(BadPicture) as caught:
        decode_file(tmp_path / "a.png")
    waits.set()
    assert (caught.value.reason, caught.value.detail) == (
        "took too long",
        "more than 0.05 s to read",
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a file without a size")
def test_a_file_that_says_no_size_is_read() -> None:
    assert decode_reason(Path("/proc/self/status")) == "not a picture"


def decode_reason(path: Path) -> str:
    with pytest.raises(BadPicture) as caught:
        decode_file(path)
    return caught.value.reason


def test_a_picture_without_pixels_is_none() -> None:
    with pytest.raises(BadPicture, match="it has no pixels: 0 x 5"):
        to_rgb(Image.new("RGB", (0, 5)))


def test_dicom_is_named() -> None:
    assert "DICOM" in bad(bytes(128) + b"DICM" + bytes(99)).detail


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(scene(), "PNG"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything
        monkeypatch.setattr(
            module, "_opened", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied"))
        )
    with pytest.raises(BadPicture) as caught:
        decode_file(path)
    assert caught.value.reason == "permission denied"


def test_no_file_is_changed(tmp_path: Path) -> None:
    data = encode(scene(), "JPEG")
    for name, content in {"cut": data[:200], "no end": data[:-2], "more": data + b"x"}.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content)
        before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
        try:
            decode_file(path)
        except BadPicture as error:
            assert error.reason == "truncated"
        assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before


# Warnings and threads


def warns_in_pillow() -> bytes:
    """A JPEG whose EXIF block makes Pillow warn of corrupt data."""
    head = b"Exif\0\0II*\0\x08\0\0\0"
    entries = struct.pack("<HHHII", 2, 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x010F, 2, 900, 5000)
    return encode(scene(), "JPEG", exif=head + entries + bytes(4))


def test_pillows_warnings_neither_reach_the_user_nor_lose_the_picture() -> None:
    data = warns_in_pillow()
    with pytest.warns(UserWarning):  # the data is right for this test
        Image.open(io.BytesIO(data)).getexif()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pixels, _ = decode(data)
    assert pixels.shape == (48, 32, 3)  # turned: what can be read of the block is used
    assert not seen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(data)[0], pixels)


def test_many_threads_get_the_same_pixels() -> None:
    files = [encode(scene(seed=seed), "PNG") for seed in range(8)]
    files += [encode(scene(), "JPEG")[:-2], encode(scene(), "JPEG")[:300], warns_in_pillow()]

    def outcome(data: bytes) -> str:
        try:
            return hashlib.sha256(decode(data)[0].tobytes()).hexdigest()
        except BadPicture as error:
            return str(error)

    want = [outcome(data) for data in files]
    got: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: got.append([outcome(data) for data in files * 5]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want * 5] * 8


def test_to_rgb_of_a_lazily_opened_cut_file_is_a_bad_picture() -> None:
    data = encode(scene(), "PNG")
    with pytest.raises(BadPicture) as caught:
        to_rgb(Image.open(io.BytesIO(data[: len(data) // 2])))
    assert caught.value.reason == "truncated"


def test_compressed_data_of_the_wrong_kind() -> None:
    rows = zlib.compress(b"no rows at all")
    data = png(30, 30, depth=8, color=2, rows=rows)
    assert bad(data).reason in ("truncated", "broken")
