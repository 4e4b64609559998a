"""What is decoded without a process: ordinary JPEG and PNG files, and no bomb among them."""

from __future__ import annotations

import io
import os
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldmark.pictures import isolated, jpeg
from fieldmark.pictures.decode import decode
from fieldmark.pictures.formats import sniff
from fieldmark.pictures.isolated import Decoders
from fieldmark.pictures.picture import BadPicture
from fieldmark.pictures.plain import is_plain
from tests.making import bilevel_bomb, chunk, encode, exif, png, scene

ORDINARY: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("JPEG", {}),
    "444": ("JPEG", {"subsampling": 0}),
    "progressive": ("JPEG", {"progressive": True}),
    "restarts": ("JPEG", {"restart_marker_rows": 1}),
    "comment": ("JPEG", {"comment": b"\xff\xda is no scan \xff\xd9"}),
    "turned": ("JPEG", {"exif": exif(6)}),
    "profile": ("JPEG", {"icc_profile": bytes(200_000)}),
    "png": ("PNG", {}),
    "png with text": ("PNG", {"exif": exif(6), "icc_profile": bytes(1000)}),
}


@pytest.mark.parametrize(("kind", "options"), ORDINARY.values(), ids=ORDINARY)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_ordinary_files_are_plain(kind: str, options: dict[str, Any], mode: str) -> None:
    if (kind, mode) != ("PNG", "CMYK"):
        data = encode(Image.fromarray(scene(37, 53)).convert(mode), kind, **options)
        assert is_plain(data, kind)
        if kind == "JPEG":
            header = jpeg.header(data)
            assert header is not None
            assert (header.width, header.height) == (53, 37)
            assert header.one_scan == ("progressive" not in options)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_not(kind: str) -> None:
    data = encode(scene(), kind)
    assert not is_plain(data, sniff(data) or "")


def with_segments(segments: bytes) -> bytes:
    data = encode(scene(), "JPEG")
    return data[:2] + segments + data[2:]


def repeated_scans(number: int) -> bytes:
    """A progressive JPEG that refines the same coefficients again and again."""
    data = encode(Image.new("L", (6000, 6000)), "JPEG", progressive=True)
    last = data.rindex(jpeg.SOS)
    return data[:last] + data[last:-2] * number + jpeg.EOI


BASE = encode(scene(), "JPEG")
SOF = BASE.index(b"\xff\xc0")
UNUSUAL = {
    "no end": BASE[:-2],
    "bytes after the end": BASE + b"x",
    "cut in its headers": BASE[:SOF] + jpeg.EOI,
    "two frames": BASE[:SOF] + BASE[SOF : SOF + 19] + BASE[SOF:],
    "no frame": BASE[:SOF] + BASE[SOF + 19 :],
    "arithmetic": BASE.replace(b"\xff\xc0", b"\xff\xc9", 1),
    "12 bits": BASE[: SOF + 4] + b"\x0c" + BASE[SOF + 5 :],
    "a marker without length": with_segments(b"\xff\xd0"),
    "a length of nothing": with_segments(b"\xff\xe5\0\0"),
    "no marker": with_segments(b"garbage"),
    "a thousand segments": with_segments(b"\xff\xe5\0\2" * 1000),
    "a thousand pieces of EXIF": with_segments((b"\xff\xe1\0\x20Exif\0\0" + bytes(24)) * 1000),
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_about_a_jpeg(data: bytes) -> None:
    assert not is_plain(data, "JPEG")


def test_scans_are_counted_with_their_pixels() -> None:
    assert is_plain(encode(Image.new("L", (6000, 6000)), "JPEG"), "JPEG")
    assert is_plain(encode(Image.new("L", (3000, 3000)), "JPEG", progressive=True), "JPEG")
    assert not is_plain(repeated_scans(1), "JPEG")


def test_pngs_of_many_chunks_are_not_plain() -> None:
    rows = bytes([0, 0])
    few = png(1, 1, depth=8, color=0, rows=rows, extra=chunk(b"tEXt", b"a\0b") * 500)
    many = png(1, 1, depth=8, color=0, rows=rows, extra=chunk(b"tEXt", b"a\0b") * 1500)
    assert is_plain(few, "PNG")
    assert not is_plain(many, "PNG")
    assert not is_plain(few[:-1], "PNG")
    assert not is_plain(few[:-12], "PNG")


@given(st.binary(max_size=300), st.integers(0, 700), st.integers(0, 20))
def test_any_bytes_have_an_answer(noise: bytes, at: int, gone: int) -> None:
    for kind, data in (("JPEG", BASE), ("PNG", encode(scene(4, 4), "PNG"))):
        changed = data[:at] + noise + data[at + gone :]
        assert is_plain(changed, kind) in (True, False)
        assert is_plain(noise, kind) is False


# What would keep this process busy, or take its memory, is not decoded in it


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(with_segments(b"\xff\xe5\0\2" * 3_000_000), id="segments"),
        pytest.param(
            png(1, 1, depth=8, color=0, rows=b"\0\0", extra=chunk(b"abCd", b"") * 600_000),
            id="chunks",
        ),
        pytest.param(repeated_scans(600), id="scans"),
        pytest.param(encode(scene(), "JPEG") + b"\xff\xe5\0\2" * 3_000_000, id="after the end"),
    ],
)
def test_files_that_take_long_are_given_up_or_good(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Decoders(1, seconds=0.5)
    monkeypatch.setattr(isolated, "_pools", {os.getpid(): pool})
    monkeypatch.setattr(
        "fieldmark.pictures.decode.decode_here", lambda *_, **__: pytest.fail("here")
    )
    try:
        pixels, _ = decode(data)
    except BadPicture as error:
        assert error.reason == "took too long"
    else:
        assert pixels.shape[2] == 3
    finally:
        pool.close()


def test_a_text_of_megabytes_in_each_of_a_hundred_chunks() -> None:
    import zlib

    text = b"a\0\0" + zlib.compress(bytes(2**20 - 1), 9)
    data = png(1, 1, depth=8, color=0, rows=b"\0\0", extra=chunk(b"zTXt", text) * 100)
    assert is_plain(data, "PNG")
    with pytest.raises(BadPicture, match="broken"):  # after 64 of them, Pillow has enough
        decode(data)


def test_a_tag_that_repeats_a_whole_exif_block(capfd: pytest.CaptureFixture[str]) -> None:
    import tracemalloc

    number, size = 4000, 60_000
    entries = b"".join(struct.pack("<HHII", tag, 1, size, 0) for tag in range(1, number + 1))
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", number) + entries + bytes(size - number * 12)
    data = encode(scene(), "JPEG", exif=b"Exif\0\0" + block)
    tracemalloc.start()
    try:
        assert decode(data)[0].shape == scene().shape
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert capfd.readouterr() == ("", "")


def test_a_bomb_is_not_plain_and_refused() -> None:
    bomb = bilevel_bomb(20_000)
    assert not is_plain(bomb, "PNG")
    assert is_plain(bilevel_bomb(3_160), "PNG")
    with pytest.raises(BadPicture, match="too many pixels"):
        decode(bomb)


def test_the_first_scan_decides_whether_there_are_more() -> None:
    colour = Image.fromarray(scene())
    stream = io.BytesIO()
    colour.save(stream, "JPEG")
    header = jpeg.header(stream.getvalue())
    assert header is not None
    assert header[:4] == (48, 32, True, True)
    at = stream.getvalue().index(jpeg.SOS)
    one = bytearray(stream.getvalue())
    one[at + 4] = 1  # the scan holds one component of three
    changed = jpeg.header(bytes(one))
    assert changed is not None
    assert changed[:4] == (48, 32, False, True)
    assert np.array_equal(decode(stream.getvalue())[0].shape, (32, 48, 3))
