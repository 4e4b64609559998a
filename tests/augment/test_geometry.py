"""Crops, flips and affine changes against numpy, scipy and Keras's own formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from fieldmark.augment import build
from fieldmark.augment.geometry import (
    FILLS,
    _cut_at_once,
    crop_padded,
    rotation_matrix,
    shear_matrix,
    shift_matrix,
    warp,
    zoom_matrix,
)
from fieldmark.pictures.inputs import InputSpec

IDS = np.arange(16, dtype=np.uint64)
AT = {"seed": 1, "epoch": 2}
NUMPY_PAD: dict[str, Any] = {
    "nearest": "edge",
    "constant": "constant",
    "reflect": "symmetric",
    "wrap": "wrap",
}
SCIPY = {"nearest": "nearest", "constant": "constant", "reflect": "reflect", "wrap": "grid-wrap"}


def pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


def each(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def rounded(images: torch.Tensor) -> np.ndarray:
    return images.round().to(torch.uint8).numpy()


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (32, 32), (45, 31), (224, 224)])
def test_identity_parameters_change_nothing(fill: str, size: tuple[int, int]) -> None:
    images = pictures(3, *size)
    one, none = each(1, 1, 1), each(0, 0, 0)
    for matrices in (
        rotation_matrix(none),
        shift_matrix(none, none),
        shear_matrix(none),
        zoom_matrix(one, one),
    ):
        assert np.array_equal(rounded(warp(torch.from_numpy(images), matrices, fill=fill)), images)


@pytest.mark.parametrize(
    "text",
    [
        "rotate(0)|shift(0)|shear(0)|zoom(0)",
        "brightness(0)|contrast(0)|saturation(0)|hue(0)|channel_shift(0)",
        "flip_lr(0)|flip_ud(0)|pad_crop(0)|grey(0)|erase(0)",
        "randaugment(0)",
    ],
)
def test_ranges_of_nothing_change_nothing(text: str) -> None:
    images = pictures(16, 32, 32)
    result = build(text).batch(torch.from_numpy(images), **AT, identities=IDS)
    assert np.array_equal(rounded(result.float()), images)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", [8, 9, 224])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_quarter_turns_are_exact(size: int, turns: int, fill: str) -> None:
    images = pictures(2, size, size)
    angle = each(90 * turns, 90 * turns)
    result = rounded(warp(torch.from_numpy(images), rotation_matrix(angle), fill=fill, value=9))
    assert np.array_equal(result, np.rot90(images, -turns, axes=(2, 3)))  # positive is clockwise


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("x,y", [(3, 0), (0, -2), (-4, 5), (9, -7)])
def test_shifts_by_whole_pixels_are_exact(fill: str, x: int, y: int) -> None:
    height, width = 11, 14
    images = pictures(2, height, width)
    options: dict[str, Any] = {"constant_values": 50} if fill == "constant" else {}
    padded = np.pad(images, ((0, 0), (0, 0), (10, 10), (10, 10)), mode=NUMPY_PAD[fill], **options)
    wanted = padded[:, :, 10 + y : 10 + y + height, 10 + x : 10 + x + width]
    matrices = shift_matrix(each(x, x), each(y, y))
    result = warp(torch.from_numpy(images), matrices, fill=fill, value=50)
    assert np.array_equal(rounded(result), wanted)


def keras_matrix(
    theta: float, tx: float, ty: float, shear: float, zx: float, zy: float
) -> np.ndarray:
    """Keras's apply_affine_transform, in its (row, column) order, about the centre."""
    t, s = np.deg2rad(theta), np.deg2rad(shear)
    turn = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    move = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    slant = np.array([[1, -np.sin(s), 0], [0, np.cos(s), 0], [0, 0, 1]])
    return turn @ move @ slant @ np.diag([zx, zy, 1.0])


@pytest.mark.reference
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", [(33, 33), (20, 31)])
def test_agrees_with_kerass_formula_and_scipy(fill: str, size: tuple[int, int]) -> None:
    height, width = size
    theta, tx, ty, shear, zx, zy = 17.0, 2.3, -4.6, -9.0, 0.83, 1.21
    image = pictures(1, height, width)
    keras = keras_matrix(theta, tx, ty, shear, zx, zy)
    centre = np.array([[1, 0, (height - 1) / 2], [0, 1, (width - 1) / 2], [0, 0, 1]])
    about = centre @ keras @ np.linalg.inv(centre)
    wanted = np.stack(
        [
            ndimage.affine_transform(
                plane, about[:2, :2], about[:2, 2], order=1, mode=SCIPY[fill], cval=60
            )
            for plane in image[0].astype(np.float64)
        ]
    )
    ours = (
        rotation_matrix(each(theta))
        @ shift_matrix(each(ty), each(tx))
        @ shear_matrix(each(shear))
        @ zoom_matrix(each(zy), each(zx))
    )
    result = warp(torch.from_numpy(image), ours, fill=fill, value=60)[0].numpy()
    assert np.abs(result - wanted).max() < 0.05


def test_neighbours_with_one_fill_are_resampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import fieldmark.augment as augment

    fills: list[tuple[str, float]] = []

    def counting(
        images: torch.Tensor, matrices: np.ndarray, *, fill: str, value: float
    ) -> torch.Tensor:
        fills.append((fill, value))
        return warp(images, matrices, fill=fill, value=value)

    monkeypatch.setattr(augment, "warp", counting)
    images = torch.from_numpy(pictures(16, 9, 9))
    text = "rotate|shift|shear(fill='wrap')|zoom(fill='wrap')|flip_lr|zoom(fill='wrap')"
    build(text).batch(images, **AT, identities=IDS)
    assert fills == [("nearest", 0), ("wrap", 0), ("wrap", 0)]
    fills.clear()
    build("zoom(fill='constant', value=3)|zoom(fill='constant')").batch(
        images, **AT, identities=IDS
    )
    assert fills == [("constant", 3), ("constant", 0)]


def test_merged_ops_mean_one_after_the_other() -> None:
    """A ramp is resampled without loss inside, so one resampling equals two."""
    ramp = np.arange(31, dtype=np.float32)[None, :] * 3 + np.arange(31, dtype=np.float32)[:, None]
    images = torch.from_numpy(np.broadcast_to(ramp, (1, 3, 31, 31)).copy())
    a, b = (
        rotation_matrix(each(20)),
        shift_matrix(each(2.5), each(-1.5)) @ zoom_matrix(each(0.5), each(0.5)),
    )
    once, twice = warp(images, a @ b), warp(warp(images, a), b)
    inner = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(once[inner], twice[inner], atol=1e-2)


def test_flips_are_exact() -> None:
    images = pictures(16, 5, 6)
    for text, axis in (("flip_lr(1)", 3), ("flip_ud(1)", 2)):
        result = build(text).batch(torch.from_numpy(images), **AT, identities=IDS)
        assert np.array_equal(result.numpy(), np.flip(images, axis))


def test_alternating_flips_show_either_side_in_turn() -> None:
    ids = np.arange(4000, dtype=np.uint64)
    images = torch.from_numpy(pictures(1, 2, 2)).expand(4000, -1, -1, -1)
    flip = build("alternating_flip")
    epochs = [flip.batch(images, seed=3, epoch=e, identities=ids) for e in range(4)]
    turned = [(e != images).flatten(1).any(dim=1) for e in epochs]
    assert torch.equal(turned[1], ~turned[0])
    assert torch.equal(turned[2], turned[0])
    assert torch.equal(turned[3], turned[1])
    assert torch.equal(epochs[0][turned[0]], images[turned[0]].flip(3))
    assert abs(turned[0].double().mean() - 0.5) < 4 * math.sqrt(0.25 / 4000)
    other = flip.batch(images, seed=4, epoch=0, identities=ids)
    assert not torch.equal(other, epochs[0])


def test_flips_come_as_often_as_asked() -> None:
    images = torch.from_numpy(pictures(1, 2, 2)).expand(4000, -1, -1, -1)
    ids = np.arange(4000, dtype=np.uint64)
    result = build("flip_lr(0.3)").batch(images, **AT, identities=ids)
    share = (result != images).flatten(1).any(dim=1).double().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


@pytest.mark.parametrize(
    "mode,numpy_mode", [("constant", "constant"), ("reflect", "reflect"), ("edge", "edge")]
)
@pytest.mark.parametrize("size,pad", [(8, 4), (3, 7), (1, 2), (2, 3)])
def test_pad_crop_is_numpys_pad(mode: str, numpy_mode: Any, size: int, pad: int) -> None:
    images = pictures(4, size, size)
    offsets = np.array([[0, 0], [2 * pad, 0], [pad, pad], [1, 2 * pad]])
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode=numpy_mode)
    wanted = [padded[i, :, t : t + size, w : w + size] for i, (t, w) in enumerate(offsets)]
    result = crop_padded(torch.from_numpy(images), offsets, pad=pad, mode=mode)
    assert np.array_equal(result.numpy(), np.stack(wanted))


def test_the_gpu_way_of_cutting_is_the_same() -> None:
    padded = torch.from_numpy(pictures(4, 12, 13))
    offsets = np.array([[0, 0], [4, 5], [2, 1], [3, 3]])
    wanted = [padded[i, :, t : t + 8, w : w + 8] for i, (t, w) in enumerate(offsets.tolist())]
    assert torch.equal(_cut_at_once(padded, offsets, 8, 8), torch.stack(wanted))


def test_pad_crop_reaches_every_offset_equally() -> None:
    marks = np.zeros((1, 3, 3, 3), dtype=np.uint8)
    marks[0, :, 1, 1] = 255
    images = torch.from_numpy(marks).expand(9000, -1, -1, -1)
    ids = np.arange(9000, dtype=np.uint64)
    result = build("pad_crop(1)").batch(images, **AT, identities=ids)[:, 0].flatten(1)
    counts = (result == 255).sum(dim=0).numpy()
    assert counts.sum() == 9000
    assert stats.chisquare(counts).pvalue > 0.001


# --- random_resized_crop -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (480, 640), (3000, 7), (64, 64)]
)
@pytest.mark.parametrize("text", ["random_resized_crop", "random_resized_crop(0.01, (0.01, 100))"])
def test_boxes_lie_inside_any_picture(size: tuple[int, int], text: str) -> None:
    height, width = size
    pipe = build(text)
    for identity in range(200):
        box = pipe.box(height, width, **AT, identity=identity)
        assert box is not None
        left, top, right, bottom = box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    image = np.full((height, width, 3), 93, dtype=np.uint8)
    for identity in range(5):
        shown = pipe.picture(image, spec=InputSpec(size=8), **AT, identity=identity)
        assert shown.shape == (3, 8, 8)
        assert (shown == 93).all()


def test_areas_ratios_and_places_are_uniform_where_everything_fits() -> None:
    pipe = build("random_resized_crop((0.1, 0.3), (0.5, 2.0))")
    boxes = np.array([pipe.box(300, 300, **AT, identity=i) for i in range(2000)])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    uniform = {
        "area": (wide * tall / 300**2 - 0.1) / 0.2,
        "log ratio": (np.log2(wide / tall) + 1) / 2,
        "left": boxes[:, 0] / (300 - wide),
        "top": boxes[:, 1] / (300 - tall),
    }
    for name, values in uniform.items():
        assert stats.kstest(values, "uniform").pvalue > 0.001, name


@pytest.mark.reference
def test_boxes_are_distributed_as_torchvisions() -> None:
    from torchvision.transforms.v2 import RandomResizedCrop

    pipe = build("random_resized_crop")
    ours = np.array([pipe.box(480, 640, **AT, identity=i) for i in range(1500)])
    theirs_of = RandomResizedCrop(8, scale=(0.35, 1.0), ratio=(0.75, 1.3333))
    blank = torch.zeros(3, 480, 640)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [theirs_of.make_params([blank]) for _ in range(1500)]
    sides = np.array([(p["width"], p["height"]) for p in theirs])
    wide, tall = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
    assert stats.ks_2samp(wide * tall, sides.prod(axis=1)).pvalue > 0.001
    assert stats.ks_2samp(wide / tall, sides[:, 0] / sides[:, 1]).pvalue > 0.001


def test_a_strip_falls_back_to_its_centre() -> None:
    box = build("random_resized_crop").box(10, 5000, **AT, identity=0)
    assert box is not None
    left, top, right, bottom = box
    assert (top, bottom) == (0, 10)
    assert right - left == pytest.approx(13.333)
    assert (left + right) / 2 == pytest.approx(2500)


def test_the_crop_uses_the_filter_asked_for() -> None:
    image = pictures(1, 40, 40)[0].transpose(1, 2, 0)
    spec = InputSpec(size=9, interpolation="nearest")
    own = build("random_resized_crop").picture(image, spec=spec, **AT, identity=0)
    asked = build("random_resized_crop(interpolation='bicubic')")
    other = asked.picture(image, spec=spec, **AT, identity=0)
    assert np.isin(own, image).all()
    assert not np.array_equal(own, other)
