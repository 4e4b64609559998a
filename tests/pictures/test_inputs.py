"""The one transform: against timm's, its geometry on odd shapes, and its arithmetic."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldmark.errors import ConfigError
from fieldmark.pictures.inputs import INTERPOLATIONS, RESIZES, InputSpec, resize
from fieldmark.pictures.picture import U8


def smooth(height: int, width: int, seed: int = 0) -> U8:
    """Soft structure with some noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c) + y / (5 + 2 * c)) * 90 + 128 for c in range(3)]
    return np.clip(np.stack(waves, axis=2) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


@pytest.mark.reference
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(97, 131), (131, 97), (64, 64), (33, 200), (80, 81)])
@pytest.mark.parametrize(
    ("resize_mode", "crop", "timm_mode"),
    [
        ("crop", 0.875, "center"),
        ("crop", 0.95, "center"),
        ("crop", 1.0, "center"),
        ("squash", 1.0, "squash"),
    ],
)
def test_agrees_with_timm(
    shape: tuple[int, int], interpolation: str, resize_mode: str, crop: float, timm_mode: str
) -> None:
    from timm.data import create_transform

    image = smooth(*shape)
    theirs = create_transform(
        (3, 32, 32),
        is_training=False,
        interpolation=interpolation,
        crop_pct=crop,
        crop_mode=timm_mode,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )(Image.fromarray(image))
    spec = InputSpec(size=32, interpolation=interpolation, resize=resize_mode, crop=crop)
    ours = spec.pixels(image)
    gap = np.abs(ours.astype(float) - theirs.numpy() * 255)
    assert gap.max() <= 2.01
    assert gap.mean() < 0.6


@pytest.mark.reference
@pytest.mark.parametrize(
    "shape", [(97, 131), (48, 48), (33, 200), (20, 33), (1, 1), (1, 300), (9, 2), (500, 333)]
)
def test_keras_bilinear_is_kerass_resizing(shape: tuple[int, int]) -> None:
    """No antialiasing, no rounding."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = keras.ops.image.resize(image.astype(np.float32), (48, 48), interpolation="bilinear")
    ours = InputSpec(size=48, interpolation="keras_bilinear").pixels(image)
    assert ours.dtype == np.float32
    theirs = theirs.cpu().numpy()
    np.testing.assert_allclose(ours.transpose(1, 2, 0), theirs, atol=1e-3)


TENSORFLOW = {
    (4, 3): (
        *(53.125, 90.125, 127.125, 142.125, 19.125, 56.125, 167.12498, 140.125, 70.45836),
        *(128.375, 154.70833, 117.04167),
    ),
    (11, 13): (
        *(0.0, 37.0, 74.0, 8.53846, 45.53846, 82.53846, 51.23077, 88.23077, 125.23077),
        *(93.92308, 130.92308, 167.92308),
    ),
    (7, 5): (0.0, 37.0, 74.0, 111.0, 148.0, 185.0, 222.0, 3.0, 40.0, 77.0, 114.0, 151.0),
    (1, 2): (212.25, 57.25, 94.25, 169.75, 206.75, 51.75),
}
"""The first values of what ``tf.image.resize`` of TensorFlow 2.21 gives for the picture below."""


def test_keras_bilinear_is_tensorflows() -> None:
    """Smaller, larger, the same size and a strip."""
    ramp = (np.arange(7 * 5 * 3, dtype=np.int64) * 37 % 256).astype(np.uint8).reshape(7, 5, 3)
    for (height, width), expected in TENSORFLOW.items():
        ours = resize(ramp, height, width, "keras_bilinear").transpose(1, 2, 0)
        np.testing.assert_allclose(ours.reshape(-1)[: len(expected)], expected, atol=1e-4)


@pytest.mark.reference
def test_normalization_agrees_with_timm() -> None:
    from timm.data import create_transform

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = smooth(16, 16)
    theirs = create_transform((3, 16, 16), is_training=False, mean=mean, std=std, crop_pct=1.0)(
        Image.fromarray(image)
    )
    spec = InputSpec(size=16, mean=mean, std=std)
    ours = spec.normalize(torch.from_numpy(spec.pixels(image))[None])[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


@given(
    st.sampled_from([(1, 5000), (5000, 1), (1, 1), (3, 3), (2, 7), (8, 8), (9, 8), (16, 64)]),
    st.sampled_from(RESIZES),
    st.sampled_from(list(INTERPOLATIONS)),
    st.sampled_from([1, 5, 8]),
    st.sampled_from([1.0, 0.875, 0.4]),
)
def test_every_shape_gives_the_input_size(
    shape: tuple[int, int], mode: str, interpolation: str, size: int, crop: float
) -> None:
    spec = InputSpec(size=size, resize=mode, interpolation=interpolation, crop=crop)
    image = np.full((*shape, 3), (10, 200, 60), dtype=np.uint8)
    pixels = spec.pixels(image)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    if mode != "pad":
        assert (pixels == np.array([10, 200, 60])[:, None, None]).all()
    else:
        centre = pixels[:, (size - 1) // 2, (size - 1) // 2]
        assert centre.tolist() == [10, 200, 60]


def test_crop_takes_the_centre_of_the_longer_side() -> None:
    image = np.zeros((10, 50, 3), dtype=np.uint8)
    image[:, 20:30] = 255
    spec = InputSpec(size=10, resize="crop", interpolation="nearest")
    assert (spec.pixels(image) == 255).all()
    assert (spec.pixels(image.transpose(1, 0, 2)) == 255).all()


def test_crop_share_leaves_a_border_out() -> None:
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    image[10:90, 10:90] = 255
    inside = InputSpec(size=8, resize="crop", interpolation="nearest", crop=0.8).pixels(image)
    assert (inside == 255).all()
    whole = InputSpec(size=20, resize="crop", interpolation="nearest", crop=1.0).pixels(image)
    assert (whole[:, 0] == 0).all()
    assert (whole[:, 2:18, 2:18] == 255).all()


def test_crop_equals_resizing_the_whole_and_cutting() -> None:
    image = smooth(61, 90)
    spec = InputSpec(size=28, resize="crop", interpolation="bilinear", crop=0.875)
    whole = resize(image, 32, 32 * 90 // 61, "bilinear")
    top, left = round((whole.shape[1] - 28) / 2), round((whole.shape[2] - 28) / 2)
    cut = whole[:, top : top + 28, left : left + 28].astype(int)
    assert np.abs(spec.pixels(image).astype(int) - cut).max() <= 1


def test_squash_stretches_both_sides() -> None:
    image = np.zeros((4, 40, 3), dtype=np.uint8)
    image[:, 20:] = 255
    pixels = InputSpec(size=8, interpolation="nearest").pixels(image)
    assert (pixels[:, :, :4] == 0).all()
    assert (pixels[:, :, 4:] == 255).all()


@pytest.mark.parametrize("tall", [False, True])
def test_pad_centres_and_fills_with_the_mean(tall: bool) -> None:
    image = np.full((10, 20, 3), 255, dtype=np.uint8)
    if tall:
        image = image.transpose(1, 0, 2)
    spec = InputSpec(size=8, resize="pad", mean=(0.1, 0.5, 0.9))
    pixels = spec.pixels(image)
    if tall:
        pixels = pixels.transpose(0, 2, 1)
    assert (pixels[:, 2:6] == 255).all()
    fill = np.array([26, 128, 230])[:, None]
    for row in (0, 1, 6, 7):
        assert (pixels[:, row] == fill).all()
    normal = spec.normalize(torch.from_numpy(spec.pixels(image))[None])
    assert normal[0, :, 0, 0].abs().max() < 0.005


def test_a_strip_padded_keeps_one_pixel() -> None:
    image = np.full((1, 5000, 3), 255, dtype=np.uint8)
    pixels = InputSpec(size=9, resize="pad", mean=(0, 0, 0)).pixels(image)
    assert (pixels[:, 4] == 255).all()
    assert pixels.sum() == 3 * 9 * 255


@pytest.mark.parametrize("mode", RESIZES)
def test_memory_layout_of_the_picture_changes_nothing(mode: str) -> None:
    image = smooth(23, 31)
    wide = np.zeros((23, 62, 3), dtype=np.uint8)
    wide[:, ::2] = image
    copies = [
        wide[:, ::2],
        np.asfortranarray(image),
        np.ascontiguousarray(image[:, ::-1])[:, ::-1],
        np.ascontiguousarray(image[..., ::-1])[..., ::-1],
    ]
    for size in (8, 23):
        spec = InputSpec(size=size, resize=mode)
        expected = spec.pixels(image)
        for copy in copies:
            assert not copy.flags.c_contiguous
            assert np.array_equal(spec.pixels(copy), expected)


def test_the_right_size_is_passed_through_and_is_a_copy() -> None:
    image = smooth(12, 12)
    for mode in RESIZES:
        pixels = InputSpec(size=12, resize=mode).pixels(image)
        assert np.array_equal(pixels.transpose(1, 2, 0), image)
        assert not np.shares_memory(pixels, image)


def test_a_picture_is_not_changed() -> None:
    image = smooth(30, 20)
    before = image.copy()
    image.flags.writeable = False
    for mode in RESIZES:
        InputSpec(size=16, resize=mode).pixels(image)
    assert np.array_equal(image, before)


@given(
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.05, 2)] * 3),
    st.integers(0, 255),
)
def test_normalize_formula(
    mean: tuple[float, float, float], std: tuple[float, float, float], value: int
) -> None:
    spec = InputSpec(size=2, mean=mean, std=std)
    given_images = torch.full((2, 3, 2, 2), value, dtype=torch.uint8)
    got = spec.normalize(given_images)
    assert got.dtype == torch.float32
    wanted = (value / 255 - np.array(mean)) / np.array(std)
    assert np.allclose(got[1, :, 1, 0].numpy(), wanted, atol=2e-5)
    assert torch.equal(spec.normalize(given_images.float()), got)
    assert bool((given_images == value).all())


def test_json_round_trip() -> None:
    import json

    spec = InputSpec(size=7, mean=(0.1, 0.2, 0.3), std=(1, 2, 3), resize="pad", crop=0.9)
    again = InputSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)
    with pytest.raises(TypeError):
        InputSpec.from_json({**spec.to_json(), "extra": 1})
    with pytest.raises(TypeError):
        InputSpec.from_json({"mean": [0, 0, 0]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": 0}, "input size is 0"),
        ({"size": 4097}, "input size is 4097"),
        ({"interpolation": "cubic"}, "no interpolation 'cubic'"),
        ({"resize": "stretch"}, "no resize mode 'stretch'"),
        ({"crop": 0}, "crop is 0"),
        ({"crop": 1.1}, "crop is 1.1"),
        ({"crop": float("nan")}, "crop is nan"),
        ({"decode_side": 0}, "decode_side is 0"),
        ({"decode_side": 65_536}, "decode_side is 65536"),
        ({"std": (0.5, 0.0, 0.5)}, "std > 0"),
        ({"std": (0.5, 0.5)}, "three numbers"),
        ({"mean": (0.5,)}, "three numbers"),
    ],
)
def test_errors(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        InputSpec(**{"size": 8, **changes})


# The fast kernel


def noise(height: int, width: int, seed: int = 0) -> U8:
    """The worst there is for a filter: every value is black or white."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)


SIZES = [(240, 320), (320, 240), (213, 159), (41, 57), (9, 500), (224, 300), (1, 1), (2, 700)]


@pytest.mark.parametrize("make", [smooth, noise])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [17, 96, 224])
def test_fast_bilinear_is_pillows_but_for_rounding(
    make: Callable[[int, int], U8], shape: tuple[int, int], size: int
) -> None:
    image = make(*shape)
    for mode in RESIZES:
        spec = InputSpec(size=size, interpolation="bilinear", resize=mode, crop=0.9)
        gap = np.abs(spec.pixels(image, fast=True).astype(int) - spec.pixels(image))
        assert gap.max() <= 2
        assert gap.mean() < 0.3


@pytest.mark.parametrize("shape", SIZES[:6])
@pytest.mark.parametrize("size", [32, 224])
def test_fast_bicubic_stays_close_on_photographs(shape: tuple[int, int], size: int) -> None:
    image = smooth(*shape)
    for mode in RESIZES:
        spec = InputSpec(size=size, resize=mode)
        gap = np.abs(spec.pixels(image, fast=True).astype(int) - spec.pixels(image))
        assert gap.mean() < 0.3
        assert (gap > 1).mean() < 0.01


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_what_torch_has_no_kernel_for_stays_pillows(interpolation: str) -> None:
    image = noise(50, 70)
    for box in (None, (3.3, 4.4, 60.6, 40.2)):
        one = resize(image, 32, 32, interpolation, box)
        assert np.array_equal(resize(image, 32, 32, interpolation, box, fast=True), one)


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_a_fast_box_is_the_box_on_whole_pixels(
    shape: tuple[int, int], at: tuple[float, float, float, float], interpolation: str
) -> None:
    height, width = shape
    left, right = sorted((at[0] * width, at[1] * width))
    top, bottom = sorted((at[2] * height, at[3] * height))
    image = smooth(height, width)
    image.flags.writeable = False
    got = resize(image, 8, 8, interpolation, (left, top, right, bottom), fast=True)
    x, y = min(round(left), width - 1), min(round(top), height - 1)
    cut = image[y : max(round(bottom), y + 1), x : max(round(right), x + 1)]
    assert np.array_equal(got, resize(cut, 8, 8, interpolation, fast=True))
    assert got.flags.c_contiguous and got.shape == (3, 8, 8)


def test_layout_and_size_of_the_picture_change_nothing_in_the_fast_kernel_either() -> None:
    image = smooth(23, 31)
    for copy in (np.asfortranarray(image), np.ascontiguousarray(image[:, ::-1])[:, ::-1]):
        for mode in RESIZES:
            spec = InputSpec(size=8, resize=mode)
            assert np.array_equal(spec.pixels(copy, fast=True), spec.pixels(image, fast=True))
    assert np.array_equal(
        InputSpec(size=23).pixels(image[:, :23], fast=True), image[:, :23].transpose(2, 0, 1)
    )
