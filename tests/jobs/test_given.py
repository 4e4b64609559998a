"""What may be given as a picture, and that all else is refused in words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fieldmark
from fieldmark.errors import ConfigError, DataError
from fieldmark.jobs.given import expanded, listed, pixels
from fieldmark.jobs.predict import check_top
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def png(array: Any = RGB) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def decoded(given: object) -> list[np.ndarray]:
    return [pixels(item, PictureLimits())[0] for _, item in expanded(listed(given))]


AS_GREY = np.stack([GREY] * 3, axis=-1)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (png(), [RGB]),
        (bytearray(png()), [RGB]),
        (memoryview(png()), [RGB]),
        ([png(), png(GREY)], [RGB, AS_GREY]),
        (Image.fromarray(RGB), [RGB]),
        (RGB, [RGB]),
        (RGB[..., ::-1][..., ::-1], [RGB]),
        (GREY, [AS_GREY]),
        (GREY[..., None], [AS_GREY]),
        (RGB[None], [RGB]),
        (np.stack([RGB, RGB[::-1]]), [RGB, RGB[::-1]]),
        (np.stack([GREY, GREY])[..., None], [AS_GREY, AS_GREY]),
        (RGB.astype(np.uint16) * 257, [RGB]),
        ((RGB.astype(np.uint16) * 257).astype(">u2"), [RGB]),
        (RGB / 255, [RGB]),
        (torch.from_numpy(RGB), [RGB]),
        (torch.from_numpy(RGB).permute(2, 0, 1), [RGB]),
        (torch.from_numpy(RGB).permute(2, 0, 1)[None], [RGB]),
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255, [RGB]),
        (torch.from_numpy(GREY)[None], [AS_GREY]),
        (torch.from_numpy(GREY), [AS_GREY]),
        (torch.nn.Parameter(torch.from_numpy(RGB / 255)), [RGB]),
        ([torch.from_numpy(RGB), RGB], [RGB, RGB]),
        ((item for item in (RGB, RGB)), [RGB, RGB]),
    ],
)
def test_pictures_are_taken_as_programs_have_them(given: object, wanted: list[np.ndarray]) -> None:
    found = decoded(given)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_streams_are_read_from_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"head" + png())
    with (tmp_path / "a.png").open("rb") as stream:
        stream.seek(4)
        np.testing.assert_array_equal(decoded(stream), [RGB])
    np.testing.assert_array_equal(decoded([io.BytesIO(png())] * 1), [RGB])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "None"),
        (5, "5 (int)"),
        ([None], "#0, None"),
        ([RGB, 1.5], "#1, 1.5"),
        ([["a.png"]], "#0, a list of 1"),
        ({"a": 1}, "a dict of 1"),
        (io.StringIO("a"), "mode 'rb'"),
        ("https://example.com/a.jpg", "nothing is fetched"),
        ("https://example.com/a.jpg?x=1", "nothing is fetched"),
        ("S3://bucket/*.jpg", "nothing is fetched"),
        ("a\0b", "zero byte"),
        ("", "empty path"),
        ("no-folder/", "no folder"),
        (np.zeros((2, 5, 7)), "shape (2, 5, 7)"),
        (np.zeros((1, 2, 5, 5, 3)), "shape (1, 2, 5, 5, 3)"),
        (np.zeros((0, 5, 3), np.uint8), "shape (0, 5, 3)"),
        (np.zeros((5, 5), np.int64), "int64"),
        (np.full((5, 5), 2.0), "0..1"),
        (np.full((5, 5), np.nan), "0..1"),
        (torch.zeros(5), "shape (5,)"),
        (np.array("a"), "shape ()"),
    ],
)
def test_what_is_no_picture_is_an_error_that_says_so(given: object, says: str) -> None:
    with pytest.raises(DataError) as caught:
        decoded(given)
    assert says in str(caught.value)


def test_a_closed_stream_is_an_error_that_says_so() -> None:
    stream = io.BytesIO(png())
    stream.close()
    with pytest.raises(DataError, match="closed"):
        decoded(stream)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_no_picture(size: tuple[int, int]) -> None:
    with pytest.raises(BadPicture, match="not a picture"):
        decoded(Image.new("RGB", size))


def test_brackets_in_a_folders_name_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "set [1]" / "b*"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png", "c[d].png"):
        (folder / name).write_bytes(png())
    found = [Path(name).name for name, _ in expanded([str(tmp_path / "set [1]" / "*" / "?.png")])]
    assert found == ["a.png", "b.png"]
    assert [name for name, _ in expanded([str(folder / "c[d].png")])] == [str(folder / "c[d].png")]


@pytest.mark.parametrize("top", ["5", 0, -1, 1.0, None, True])
def test_top_is_a_whole_number(top: object) -> None:
    with pytest.raises(ConfigError, match="top is"):
        check_top(top)


def test_the_doors_refuse_what_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="data is a NoneType"):
        fieldmark.train(None)
    with pytest.raises(ConfigError, match="run is 5"):
        fieldmark.load(5)
    with pytest.raises(ConfigError, match="config is 5"):
        fieldmark.train("digits", config=5)
    with pytest.raises(ConfigError, match=r"no-file\.json does not exist"):
        fieldmark.train("digits", config="no-file.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(fieldmark.RunError, match=str(tmp_path / "no-run")):
        fieldmark.load("~/no-run")
