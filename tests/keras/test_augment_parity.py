"""Augmentation against Keras's ImageDataGenerator: the transforms, and what they are drawn from.

Keras's matrices were written for (row, column), and that is how its parameters are named and drawn:
``tx`` is the height's shift. Today's Keras exchanges the axes after it has made the matrix, so its
result is that of the transposed picture, transposed. We agree with the first reading, which is the
one that its documentation describes; the tests transpose. They use square pictures, as training
does: in others, today's Keras does not turn about the centre.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from fieldmark.augment import Pipeline, Step, build
from fieldmark.augment.color import shift_channels
from fieldmark.augment.geometry import (
    rotation_matrix,
    shear_matrix,
    shift_matrix,
    warp,
    zoom_matrix,
)
from fieldmark.augment.ops import Warp
from fieldmark.pictures.inputs import InputSpec

# A submodule: without Keras, this folder itself would be found as an empty package called keras.
image = pytest.importorskip("keras.src.legacy.preprocessing.image")

Parameters = dict[str, Any]

SHARED_FILLS = ("nearest", "constant", "reflect")
# Of 255. Places are float32 here and float64 in SciPy: 1e-5 pixels times the steepest edge.
TOLERANCE = 0.02
CVAL = 60.0
AXES = {"row_axis": 0, "col_axis": 1, "channel_axis": 2}


def photo(height: int, width: int) -> np.ndarray:
    """Soft shading with hard edges, as pictures have."""
    rng = np.random.default_rng(3)
    soft = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (4, 4, 0))
    soft = (soft - soft.min()) / (soft.max() - soft.min()) * 255
    soft[height // 4 : height // 2, width // 3 :] *= 0.4
    soft[-5:, :7] = (255, 0, 128)
    return soft.astype(np.float32)


def noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.integers(0, 256, (height, width, 3)).astype(np.float32)


PICTURES = {"photo": photo, "noise": noise}


def ours(picture: np.ndarray, change: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Change one picture, given and returned in Keras's axes."""
    batch = torch.from_numpy(picture.transpose(2, 0, 1)[None].copy())
    return change(batch)[0].numpy().transpose(1, 2, 0)


def exchanged(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(1, 0, 2)


def keras_affine(pixels: np.ndarray, fill: str, **parameters: float) -> np.ndarray:
    """Keras's transform of a picture, rows first."""
    changed = image.apply_affine_transform(
        exchanged(pixels), **parameters, **AXES, fill_mode=fill, cval=CVAL, order=1
    )
    return exchanged(changed)


def matrix(p: Parameters) -> np.ndarray:
    """Our matrix of Keras's parameters: its x is the row."""

    def one(value: float) -> np.ndarray:
        return np.array([float(value)])

    return (
        rotation_matrix(one(p.get("theta", 0)))
        @ shift_matrix(one(p.get("ty", 0)), one(p.get("tx", 0)))
        @ shear_matrix(one(p.get("shear", 0)))
        @ zoom_matrix(one(p.get("zy", 1)), one(p.get("zx", 1)))
    )


TRANSFORMS: dict[str, list[Parameters]] = {
    # Not whole quarter turns: rounding alone decides there what Keras takes for outside.
    "rotation": [{"theta": t} for t in (-170, -45, -7.5, 3, 30, 88, 133)],
    "height shift": [{"tx": t} for t in (-40, -2.5, 0.3, 4, 11.25)],
    "width shift": [{"ty": t} for t in (-40, -2.5, 0.3, 4, 11.25)],
    "shear in degrees": [{"shear": s} for s in (-60, -10, 0.2, 25)],
    "zoom per axis": [{"zx": x, "zy": y} for x, y in ((0.5, 1), (1, 1.7), (0.8, 1.2), (1.9, 0.3))],
    "all": [
        {"theta": 17, "tx": 2.3, "ty": -4.6, "shear": -9, "zx": 0.83, "zy": 1.21},
        {"theta": -150, "tx": -9.1, "ty": 6, "shear": 40, "zx": 1.4, "zy": 0.7},
    ],
}


def assert_same_pixels(got: np.ndarray, wanted: np.ndarray, fill: str, what: Any) -> None:
    """Compare; beside the sharp edge of a constant fill, rounding may choose the other side."""
    far = np.abs(got - wanted).max(axis=2) > TOLERANCE
    assert far.sum() <= (len(far) // 16 if fill == "constant" else 0), what


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("fill", SHARED_FILLS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, fill: str, picture: str, size: int) -> None:
    pixels = PICTURES[picture](size, size)
    for p in TRANSFORMS[transform]:
        wanted = keras_affine(pixels, fill, **p)
        got = ours(pixels, lambda b: warp(b, matrix(p), fill=fill, value=CVAL))  # noqa: B023
        assert_same_pixels(got, wanted, fill, p)
        assert np.abs(wanted - pixels).max() > 1, "the transform does something"


@pytest.mark.parametrize("fill", SHARED_FILLS)
def test_todays_axes_without_transposing(fill: str) -> None:
    """Today's x is the column, and its angle has the other sign; its shear slants the rows."""
    pixels = photo(32, 32)

    def one(value: float) -> np.ndarray:
        return np.array([float(value)])

    p = {"theta": 17, "tx": 2.3, "ty": -4.6, "zx": 0.83, "zy": 1.21}
    wanted = image.apply_affine_transform(pixels, **p, **AXES, fill_mode=fill, cval=CVAL)
    matrices = (
        rotation_matrix(one(-p["theta"]))
        @ shift_matrix(one(p["tx"]), one(p["ty"]))
        @ zoom_matrix(one(p["zx"]), one(p["zy"]))
    )
    got = ours(pixels, lambda b: warp(b, matrices, fill=fill, value=CVAL))
    assert_same_pixels(got, wanted, fill, p)


def test_wrap_is_another_one_on_purpose() -> None:
    """Keras's repeats after a pixel less than there are; ours, SciPy's grid-wrap, after all."""
    pixels = noise(12, 12)
    wrapped = ours(pixels, lambda b: warp(b, matrix({"tx": 12}), fill="wrap"))
    np.testing.assert_allclose(wrapped, pixels, atol=TOLERANCE)
    theirs = keras_affine(pixels, "wrap", tx=12)
    assert np.array_equal(theirs[:10], pixels[1:11])


# --- the generator -------------------------------------------------------------------------------

RANGES = {
    "rotation_range": 20,
    "width_shift_range": 0.15,
    "height_shift_range": 0.1,
    "shear_range": 12.0,
    "zoom_range": 0.3,
    "channel_shift_range": 40.0,
    "horizontal_flip": True,
    "vertical_flip": True,
}
PIPE = (
    "rotate(20)|shift(0.15, 0.1)|shear(12)|zoom(0.3, per_axis=True)"
    "|channel_shift(40)|flip_lr|flip_ud"
)


def share(value: float, low: float, high: float) -> float:
    """The uniform number in [0, 1) that gives the value."""
    return (value - low) / (high - low)


def draws(p: Parameters, height: int, width: int) -> dict[str, list[float]]:
    """What our ops have to draw so that they do what Keras does with its parameters."""
    return {
        "rotate": [share(p["theta"], -20, 20)],
        "shift": [
            share(p["ty"], -0.15 * width, 0.15 * width),
            share(p["tx"], -0.1 * height, 0.1 * height),
        ],
        "shear": [share(p["shear"], -12, 12)],
        "zoom": [share(p["zy"], 0.7, 1.3), share(p["zx"], 0.7, 1.3)],
        "channel_shift": [share(p["channel_shift_intensity"], -40, 40)],
        # The flips are done on the transposed picture.
        "flip_lr": [0.49 if p["flip_vertical"] else 0.5],
        "flip_ud": [0.49 if p["flip_horizontal"] else 0.5],
    }


@pytest.fixture
def numpy_seed() -> Any:
    """Keras draws from NumPy's global generator, which is put back."""
    state = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


@pytest.mark.usefixtures("numpy_seed")
@pytest.mark.parametrize("fill", SHARED_FILLS)
@pytest.mark.parametrize("picture", PICTURES)
def test_the_whole_generator(picture: str, fill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras draws its own parameters; our pipe, given the same draws, makes the same picture."""
    side = 36
    pixels = PICTURES[picture](side, side)
    generator = image.ImageDataGenerator(**RANGES, fill_mode=fill, data_format="channels_last")
    pipe = build(PIPE.replace(")|", f", fill='{fill}')|", 4))
    names = PIPE.replace("(", "|").split("|")
    flips = set()
    for seed in range(12):
        parameters = generator.get_random_transform(pixels.shape, seed=seed)
        given = draws(parameters, side, side)
        numbers = iter([given[name] for name in names if name in given])
        assert all(0 <= d < 1 for values in given.values() for d in values)
        monkeypatch.setattr(
            Step, "draws", lambda self, *_, numbers=numbers: np.array([next(numbers)])
        )
        wanted = exchanged(generator.apply_transform(exchanged(pixels), parameters))
        got = ours(
            pixels,
            lambda b: pipe.batch(b, seed=0, epoch=0, identities=np.zeros(1, dtype=np.uint64)),
        )
        assert_same_pixels(got, wanted, fill, parameters)
        flips.add((bool(parameters["flip_horizontal"]), bool(parameters["flip_vertical"])))
    assert len(flips) == 4


def composed(pipe: Pipeline, draw: float, height: int, width: int) -> np.ndarray:
    """The matrix of a pipe of affine ops when every uniform number is the same."""
    result = np.eye(3)
    for step in pipe.steps:
        assert isinstance(step.op, Warp)
        result = result @ step.op.matrices(np.full((1, step.op.num_draws), draw), height, width)[0]
    return result


@pytest.mark.parametrize("end", ["least", "greatest"])
@pytest.mark.parametrize("option", [*list(RANGES)[:5], "all"])
def test_ranges_have_kerass_ends(option: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With uniform numbers of 0 and of nearly 1 our ops do what Keras does at its ends."""
    height, width = 30, 44
    words = {
        "rotation_range": "rotate(20)",
        "width_shift_range": "shift(0.15, 0)",
        "height_shift_range": "shift(0, 0.1)",
        "shear_range": "shear(12)",
        "zoom_range": "zoom(0.3, per_axis=True)",
        "all": "rotate(20)|shift(0.15, 0.1)|shear(12)|zoom(0.3, per_axis=True)",
    }
    used = list(RANGES)[:5] if option == "all" else [option]

    def uniform(low: float, high: float, size: int | None = None) -> Any:
        value = low if end == "least" else high
        return value if size is None else np.full(size, value)

    monkeypatch.setattr(np.random, "uniform", uniform)
    generator = image.ImageDataGenerator(**{o: RANGES[o] for o in used})
    parameters = generator.get_random_transform((height, width, 3))
    draw = 0.0 if end == "least" else np.nextafter(1.0, 0.0)
    ends = composed(build(words[option]), draw, height, width)
    assert ends == pytest.approx(matrix(parameters)[0], abs=1e-9)
    assert ends != pytest.approx(np.eye(3), abs=0.01)


def test_flips_are_as_likely() -> None:
    """Keras flips when its uniform number is below a half."""
    pixels = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    for text in ("flip_lr", "flip_ud"):
        apply = build(text).steps[0].op.apply
        assert not torch.equal(apply(pixels, np.array([[np.nextafter(0.5, 0)]])), pixels)
        assert torch.equal(apply(pixels, np.array([[0.5]])), pixels)


@pytest.mark.parametrize("amount", [-300.0, -40.0, -0.5, 0.0, 12.25, 90.0])
@pytest.mark.parametrize("picture", PICTURES)
def test_channel_shift(picture: str, amount: float) -> None:
    pixels = PICTURES[picture](9, 14) * 0.5 + 40  # its own extremes are not 0 and 255
    wanted = image.apply_channel_shift(pixels, amount, channel_axis=2)
    got = ours(pixels, lambda b: shift_channels(b, np.array([amount])))
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize(("end", "amount"), [(0.0, -40.0), (np.nextafter(1.0, 0.0), 40.0)])
def test_channel_shifts_have_kerass_ends(end: float, amount: float) -> None:
    pixels = noise(9, 14)
    apply = build("channel_shift(40)").steps[0].op.apply
    wanted = image.apply_channel_shift(pixels, amount, channel_axis=2)
    np.testing.assert_allclose(
        ours(pixels, lambda b: apply(b, np.array([[end]]))), wanted, atol=1e-4
    )


# --- featurewise centring ------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [None, 1 / 255])
@pytest.mark.parametrize("divide", [False, True])
def test_featurewise_statistics_are_the_inputs_mean_and_std(
    divide: bool, rescale: float | None
) -> None:
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (20, 16, 16, 3)) * np.array([1.0, 0.6, 0.3])
    pictures = pictures.astype(np.uint8)
    generator = image.ImageDataGenerator(
        featurewise_center=True,
        featurewise_std_normalization=divide,
        rescale=rescale,
        data_format="channels_last",
    )
    generator.fit(pictures)
    wanted = generator.standardize(pictures.astype(np.float32))
    white = 1.0 if rescale else 255.0  # what InputSpec's numbers are a share of
    spec = InputSpec(
        size=16,
        mean=tuple(float(m) / white for m in generator.mean.ravel()),
        std=tuple(float(s) / white for s in generator.std.ravel()) if divide else (1 / white,) * 3,
    )
    got = spec.normalize(torch.from_numpy(pictures.transpose(0, 3, 1, 2)))
    # Keras divides by the deviation and 1e-6 more, which counts where white is 1.
    np.testing.assert_allclose(
        got.numpy().transpose(0, 2, 3, 1), wanted, rtol=2e-5, atol=2e-5 * np.abs(wanted).max()
    )
