"""JPEG: the quick decoder against Pillow, reduced sizes, and what makes two files one picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldmark.pictures import decode as decoding
from fieldmark.pictures import jpeg
from fieldmark.pictures.decode import Encoded, decode
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture, Picture
from fieldmark.settings.config import FULL_SIDE
from tests.making import U8, encode, exif, scene, stored_for

KINDS: dict[str, dict[str, Any]] = {
    "420": {},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0},
    "progressive": {"progressive": True},
    "progressive 444": {"progressive": True, "subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
    "optimised": {"optimize": True, "quality": 30},
    "fine": {"quality": 100},
    "profile": {"icc_profile": b"no profile"},
    "comment": {"comment": b"\xff\xd9 is not the end"},
    "exif": {"exif": exif(1)},
}
BESIDE = ("exif",)
"""Those with something beside the picture that may matter."""


def photo(height: int, width: int, cells: float = 9) -> U8:
    """Soft structure with edges and noise, as in a photograph."""
    y, x = np.mgrid[:height, :width]
    u, v = x / width * cells, y / height * cells
    waves = [
        np.sin(u * (1.1 + 0.3 * c)) * 60 + np.cos(v * (0.9 + 0.2 * c)) * 50 + 128 for c in range(3)
    ]
    picture = np.stack(waves, axis=2)
    picture[(u.astype(int) + v.astype(int)) % 2 == 0] *= 0.6
    picture += np.random.default_rng(0).normal(0, 6, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def pillow(data: bytes, scale: int = 1) -> U8:
    image = Image.open(io.BytesIO(data))
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_pixels_are_pillows_to_the_bit(options: dict[str, Any]) -> None:
    for shape in [(1, 1), (7, 9), (8, 8), (17, 33), (64, 48), (121, 95)]:
        for image in (Image.fromarray(photo(*shape)), Image.fromarray(photo(*shape)).convert("L")):
            data = encode(image, "JPEG", **options)
            assert jpeg.samples(data, image.size, 1) is not None
            assert np.array_equal(decode(data)[0], pillow(data))


@pytest.mark.parametrize("kind", KINDS)
def test_pillow_is_not_asked_about_a_bare_picture(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    opened = decoding._open
    monkeypatch.setattr(decoding, "_open", lambda *words: (asked.append(1), opened(*words))[1])
    for image in (Image.fromarray(photo(17, 33)), Image.fromarray(photo(17, 33)).convert("L")):
        decode(encode(image, "JPEG", **KINDS[kind]))
    assert bool(asked) == (kind in BESIDE)


@pytest.mark.parametrize(
    ("segment", "bare"),
    [
        (b"ICC_PROFILE\0\1\1 anything", True),
        (b"ICC_PROFILE\0\1", False),  # which Pillow stumbles over
        (b"MPF\0 and more pictures", False),
        (b"ICC_PROFILE of another kind", False),
    ],
)
def test_only_a_profile_may_stand_beside_a_bare_picture(segment: bytes, bare: bool) -> None:
    data = encode(photo(17, 33), "JPEG")
    size = (len(segment) + 2).to_bytes(2, "big")
    header = jpeg.header(data[:2] + b"\xff\xe2" + size + segment + data[2:])
    assert header is not None
    assert header.bare == bare


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_reduced_pixels_are_pillows_to_the_bit(options: dict[str, Any], scale: int) -> None:
    for shape in [(17, 33), (64, 48), (121, 95), (96, 200)]:
        data = encode(photo(*shape), "JPEG", **options)
        pixels, _ = decode(data, PictureLimits(decode_side=-(-min(shape) // scale)))
        assert pixels.shape == (-(-shape[0] // scale), -(-shape[1] // scale), 3)
        assert np.array_equal(pixels, pillow(data, scale))


@pytest.mark.parametrize("mode", ["CMYK", "RGB as it is"])
def test_other_colours_are_pillows_to_the_bit(mode: str) -> None:
    image = Image.fromarray(photo(100, 80))
    if mode == "CMYK":
        data = encode(image.convert("CMYK"), "JPEG")
    else:
        data = encode(image, "JPEG", keep_rgb=True)
        assert b"Adobe" in data
    header = jpeg.header(data)
    assert header is None or not header.bare
    assert np.array_equal(decode(data)[0], pillow(data))
    reduced, _ = decode(data, PictureLimits(decode_side=40))
    assert reduced.shape == (50, 40, 3)
    assert np.array_equal(reduced, pillow(data, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_pictures_are_upright(orientation: int) -> None:
    stored = stored_for(photo(64, 96), orientation)
    data = encode(stored, "JPEG", exif=exif(orientation))
    pixels, _ = decode(data, PictureLimits(decode_side=32))
    assert pixels.shape == (32, 48, 3)
    assert np.array_equal(stored_for(pixels, orientation), pillow(data, 2))


def test_a_reduced_picture_without_its_end_is_still_judged_in_full() -> None:
    data = encode(photo(64, 96), "JPEG")
    pixels, notes = decode(data[:-2], PictureLimits(decode_side=32))
    assert np.array_equal(pixels, pillow(data, 2))
    assert notes == ("missing end of file",)
    with pytest.raises(BadPicture, match="truncated"):
        decode(data[: len(data) - 20], PictureLimits(decode_side=8))
    pixels, notes = decode(data + b"rest", PictureLimits(decode_side=32))
    assert np.array_equal(pixels, pillow(data, 2))
    assert notes == ("4 bytes after the end",)


def test_the_limit_of_pixels_is_of_the_whole_picture() -> None:
    with pytest.raises(BadPicture, match="too many pixels"):
        decode(encode(photo(64, 96), "JPEG"), PictureLimits(64 * 96 - 1, 8))


@given(st.integers(1, 70_000), st.integers(1, FULL_SIDE))
def test_the_rule_of_reduction(side: int, at_least: int) -> None:
    scale = PictureLimits(decode_side=at_least).reduction(side)
    assert scale in (1, 2, 4, 8)
    if scale > 1:
        assert -(-side // scale) >= at_least
    if scale < 8:
        assert -(-side // (2 * scale)) < at_least
    assert PictureLimits().reduction(min(side, FULL_SIDE)) == 1


@given(st.integers(20, 300), st.sampled_from([1, 30, 64, 100, 150, FULL_SIDE]), st.integers(1, 300))
def test_suits_is_said_of_what_would_come_out_the_same(side: int, one: int, other: int) -> None:
    def size(at_least: int) -> int:
        return -(-side // PictureLimits(decode_side=at_least).reduction(side))

    pixels = np.zeros((size(one), size(one) + 5, 3), np.uint8)
    picture = Picture(pixels, "", side, reducible=True)
    assert picture.suits(PictureLimits(decode_side=one))
    assert picture.suits(PictureLimits(decode_side=other)) == (size(one) == size(other))
    assert Picture(np.zeros((side, side, 3), np.uint8), "", side).suits(
        PictureLimits(decode_side=other)
    )


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(600, 800), (512, 512), (1030, 700), (1023, 1027)])
def test_the_input_hardly_changes(shape: tuple[int, int], interpolation: str, resize: str) -> None:
    data = encode(photo(*shape), "JPEG", quality=90)
    spec = InputSpec(size=64, interpolation=interpolation, resize=resize)
    full, reduced = decode(data)[0], decode(data, PictureLimits(decode_side=128))[0]
    assert min(reduced.shape[:2]) in range(128, 256)
    gap = np.abs(spec.pixels(full).astype(int) - spec.pixels(reduced))
    assert 0 < gap.mean() < 2.5
    assert np.quantile(gap, 0.99) <= 20


# Identity


def identity(data: bytes, at_least: int = FULL_SIDE) -> str:
    return Encoded(data).decode(PictureLimits(decode_side=at_least)).identity


def test_identity_does_not_depend_on_the_size() -> None:
    data = encode(photo(64, 96), "JPEG", exif=exif(6))
    assert len({identity(data, at_least) for at_least in (FULL_SIDE, 32, 16, 8)}) == 1
    assert Encoded(data).decode(PictureLimits(decode_side=16)).side == 64
    assert (
        len(
            {
                Encoded(data).name(PictureLimits(decode_side=at_least))
                for at_least in (FULL_SIDE, 64, 32, 31, 16)
            }
        )
        == 3
    )


def test_metadata_makes_no_other_picture_but_orientation_does() -> None:
    plain = {"quality": 80}
    same = [
        {},
        {"comment": b"taken by nobody"},
        {"icc_profile": b"p" * 200_000},
        {"dpi": (300, 300)},
        {"exif": exif(1)},
        {"xmp": b"<x:xmpmeta/>"},
    ]
    files = [encode(photo(40, 60), "JPEG", **plain, **options) for options in same]
    assert len(set(files)) == len(files)
    files += [files[0] + b"garbage", files[0][:-2], b"\xff\xd8\xff\xff" + files[0][3:]]
    assert len({identity(data) for data in files}) == 1
    others = [
        encode(photo(40, 60), "JPEG", quality=81),
        encode(photo(40, 60), "JPEG", quality=80, progressive=True),
        *(encode(photo(40, 60), "JPEG", quality=80, exif=exif(n)) for n in range(2, 9)),
        encode(photo(60, 40), "JPEG", quality=80),
    ]
    assert len({identity(data) for data in [files[0], *others]}) == 1 + len(others)


def test_colour_transforms_belong_to_the_picture() -> None:
    """The same scans read as RGB and as YCbCr are two pictures."""
    data = encode(photo(40, 60), "JPEG", keep_rgb=True)
    at = data.index(b"\xff\xee")
    without = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert identity(data) != identity(without)


def test_other_formats_keep_the_hash_of_their_pixels() -> None:
    from fieldmark.pictures.picture import digest

    pixels = scene()
    for kind, options in {"PNG": {}, "BMP": {}, "WEBP": {"lossless": True}}.items():
        picture = Encoded(encode(pixels, kind, **options)).decode(PictureLimits(decode_side=8))
        assert picture.identity == digest(pixels)
        assert np.array_equal(picture.pixels, pixels)
        assert picture.suits(PictureLimits(decode_side=8)) and not picture.reducible


@given(st.binary(max_size=60))
def test_odd_bytes_have_no_identity_or_one(tail: bytes) -> None:
    got = jpeg.identity(b"\xff\xd8" + tail, 1)
    assert got is None or len(got) == 32


def test_an_unusual_header_falls_back_to_the_pixels() -> None:
    data = encode(photo(64, 96), "JPEG")
    odd = data[:2] + b"\x00\x00" + data[2:]  # filling between markers that libjpeg warns of
    assert jpeg.identity(odd, 1) is None
    try:
        full = decode(odd)[0]
    except BadPicture:
        return
    assert identity(odd) == identity(odd, 16)
    assert full.shape == (64, 96, 3)
