"""JPEG and PNG files that lost some of their data, against what libjpeg says and what is wrong."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from fieldmark.pictures import damage, jpeg
from fieldmark.pictures.decode import MOST_LOST, decode
from fieldmark.pictures.picture import BadPicture
from tests.making import U8, chunk, encode, png, scene

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimised": {"optimize": True},
    "444": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
}
SHAPE = (160, 224)
NOISE = np.random.default_rng(0).bytes(512)


def photo(height: int, width: int) -> U8:
    """Soft colours with noise: few blocks are alike, as in a photograph."""
    rng = np.random.default_rng(4)
    cells = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    soft = np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return np.clip(soft + rng.normal(0, 7, soft.shape), 0, 255).astype(np.uint8)


def whole(kind: str, shape: tuple[int, int] = SHAPE) -> bytes:
    options = dict(KINDS[kind])
    image = Image.fromarray(photo(*shape)).convert(options.pop("mode", "RGB"))
    return encode(image, "JPEG", **{"quality": 90, **options})


def middle(data: bytes) -> tuple[int, int]:
    """Where the compressed data begin, and a place half way through them."""
    start = data.find(jpeg.SOS) + 20
    return start, start + (len(data) - start) // 2


def replaced(data: bytes, by: bytes) -> bytes:
    at = middle(data)[1]
    return data[:at] + by + data[at + len(by) :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda d: d[: middle(d)[1]],
    "cut, with an end": lambda d: d[: middle(d)[1]] + jpeg.EOI,
    "zeros to the end": lambda d: d[: middle(d)[1]].ljust(len(d) - 2, b"\0") + jpeg.EOI,
    "a sector of zeros": lambda d: replaced(d, bytes(512)),
    "a sector of noise": lambda d: replaced(d, NOISE),
    "bytes missing": lambda d: d[: middle(d)[1]] + d[middle(d)[1] + 512 :],
    "two halves": lambda d: d[: middle(d)[1]] + d[middle(d)[0] :],
}


def warned(data: bytes) -> bool:
    """Whether libjpeg itself warns or fails, in another binding's strictest mode."""
    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("damaged", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_lost_data_is_bad(kind: str, damaged: Callable[[bytes], bytes]) -> None:
    data = whole(kind)
    assert not warned(data)
    with pytest.raises(BadPicture) as caught:
        decode(damaged(data))
    assert caught.value.reason in ("damaged", "truncated")
    assert caught.value.detail


@pytest.mark.parametrize("kind", [*KINDS, "fine", "coarse"])
@pytest.mark.parametrize("shape", [(1, 1), (37, 61), SHAPE])
def test_whole_jpegs_have_lost_nothing(kind: str, shape: tuple[int, int]) -> None:
    quality = {"fine": 100, "coarse": 10}
    image = Image.fromarray(photo(*shape))
    data = whole(kind, shape) if kind in KINDS else encode(image, "JPEG", quality=quality[kind])
    found = damage.loss(data)
    assert found is not None and found.share == 0
    assert found.certain or kind == "progressive"
    assert decode(data)[1] == ()


@pytest.mark.parametrize("tail", [jpeg.EOI, b""])
def test_a_jpeg_that_lacks_its_last_few_blocks_is_used_and_says_so(tail: bytes) -> None:
    data = whole("baseline", (320, 480))
    pixels, notes = decode(data[:-60] + tail)
    wrong = (pixels != decode(data)[0]).any(2).mean()
    assert 0 < wrong < MOST_LOST
    assert notes[0].startswith("damaged: ") and "Corrupt JPEG data" in notes[0]
    assert float(notes[0].split()[1].rstrip("%")) / 100 >= wrong - 0.001


def test_odd_bytes_before_the_end_cost_no_pixel() -> None:
    data = whole("grey")
    odd = data[:-2] + b"0123456789" + data[-2:]
    assert warned(odd)
    pixels, notes = decode(odd)
    assert np.array_equal(pixels, decode(data)[0])
    assert (
        notes
        == ("odd data, no pixel lost (Corrupt JPEG data: 8 extraneous bytes before marker 0xd9)",)
        or "no pixel lost" in notes[0]
    )


def test_damage_ends_at_the_next_restart_marker() -> None:
    image = Image.fromarray(photo(480, 640))
    data = encode(image, "JPEG", quality=90, restart_marker_blocks=4)
    marker = data.index(b"\xff\xd3", middle(data)[1])
    hurt = data[: marker - 12] + data[marker:]
    pixels, notes = decode(hurt)
    wrong = (pixels != decode(data)[0]).any(2)
    assert 0 < wrong.mean() <= 4 / (30 * 40) + 0.005  # four units and a pixel around them
    assert notes[0].startswith("damaged: 0.")


def test_a_progressive_jpeg_without_its_last_scans_is_used_and_without_a_first_one_bad() -> None:
    data = whole("progressive")
    starts = [at for at in range(2, len(data) - 1) if data[at : at + 2] == jpeg.SOS]
    _, notes = decode(data[: starts[-1]] + jpeg.EOI)
    assert notes == ("the last scans of a progressive JPEG are missing",)
    with pytest.raises(BadPicture, match=r"truncated \(JPEG: scans are missing"):
        decode(data[: starts[1]] + jpeg.EOI)


def test_a_flat_picture_has_long_runs_of_zeros_and_is_whole() -> None:
    image = Image.new("RGB", (900, 900), (200, 180, 30))
    data = encode(image, "JPEG", optimize=True)
    assert damage.ZEROS in data
    assert decode(data)[1] == ()


@pytest.mark.parametrize(
    ("marker", "bits", "name"),
    [
        (0xC1, 12, "JPEG of 12 bits"),
        (0xC3, 8, "lossless JPEG"),
        (0xC5, 8, "hierarchical JPEG"),
    ],
)
def test_other_kinds_of_jpeg_are_named(marker: int, bits: int, name: str) -> None:
    data = whole("grey")
    at = data.index(b"\xff\xc0")
    other = (
        data[: at + 1] + bytes([marker]) + data[at + 2 : at + 4] + bytes([bits]) + data[at + 5 :]
    )
    with pytest.raises(BadPicture) as caught:
        decode(other)
    assert (caught.value.reason, caught.value.detail) == ("unsupported format", name)


# PNG


def rows(shape: tuple[int, int] = (32, 48)) -> bytes:
    return b"".join(b"\0" + line.tobytes() for line in scene(*shape))


def parts(stream: bytes, *, interlaced: bool = False) -> bytes:
    header = b"\0\0\0\x30\0\0\0\x20\x08\x02\0\0" + bytes([interlaced])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


PNGS = {
    "rows missing": parts(zlib.compress(rows()[: 16 * 145])),
    "one row missing": parts(zlib.compress(rows()[:-145])),
    "half of a row missing": parts(zlib.compress(rows()[:-70])),
    "rows missing, interlaced": parts(zlib.compress(rows()[: 16 * 145]), interlaced=True),
    "stream cut": parts(zlib.compress(rows())[:-2000]),
    "wrong checksum of the stream": parts(zlib.compress(rows())[:-4] + bytes(4)),
    "a wrong byte": parts(zlib.compress(rows())[:700] + b"\x55" * 9 + zlib.compress(rows())[709:]),
}


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("data", PNGS.values(), ids=PNGS)
def test_a_png_that_lost_rows_is_bad_whatever_a_program_told_pillow(
    data: bytes, flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", flag)
    with pytest.raises(BadPicture) as caught:
        decode(data)
    assert caught.value.reason in ("truncated", "broken")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_a_png_that_ends_in_black_is_whole(mode: str) -> None:
    picture = scene(31, 47)
    picture[-9:] = 0
    image = Image.fromarray(picture).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray((picture[:, :, 0] > 0).astype(np.uint8) * 255))
    data = encode(image, "PNG")
    assert decode(data)[1] == ()
    assert decode(png(47, 31, depth=8, color=0, rows=bytes(31 * 48)))[0].max() == 0


@pytest.mark.parametrize("limit", [None, 10])
def test_pillows_own_limit_changes_nothing(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for kind in ("PNG", "JPEG", "GIF", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray(scene()).save(stream, kind)
        assert decode(stream.getvalue())[0].shape == scene().shape
