"""Colours against torchvision's functional ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fieldmark.augment import build
from fieldmark.augment.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    mean_color,
    shift_channels,
)


def pictures() -> torch.Tensor:
    """Noise, every pure colour and grey, a flat picture, black and white."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 27, 27), dtype=np.uint8)
    noise[1] = np.arange(27, dtype=np.uint8)[:, None] * 9
    levels = np.stack(np.meshgrid([0, 127, 255], [0, 127, 255], [0, 127, 255])).reshape(3, 27)
    noise[2] = levels[:, :, None]
    noise[3, :, :, :14], noise[3, :, :, 14:] = 0, 255
    return torch.from_numpy(noise)


@pytest.mark.reference
@pytest.mark.parametrize(
    "ours,theirs,factors",
    [
        (adjust_brightness, "adjust_brightness", [0, 0.4, 1, 1.7]),
        (adjust_contrast, "adjust_contrast", [0, 0.4, 1, 1.7]),
        (adjust_saturation, "adjust_saturation", [0, 0.4, 1, 1.7]),
        (adjust_hue, "adjust_hue", [-0.5, -0.13, 0, 0.31]),
    ],
)
def test_agrees_with_torchvision(
    ours: Callable[..., Any], theirs: str, factors: list[float]
) -> None:
    from torchvision.transforms.v2 import functional

    images, reference = pictures(), getattr(functional, theirs)
    for shuffled in (factors, factors[::-1], factors[1:] + factors[:1]):
        result = ours(images, np.array(shuffled, dtype=np.float64))
        in_bytes = torch.stack(
            [reference(i, f) for i, f in zip(images, shuffled, strict=True)]
        ).float()
        in_floats = torch.stack(
            [reference(i / 255, f) for i, f in zip(images, shuffled, strict=True)]
        )
        assert ((result + 1e-3).floor() - in_bytes).abs().max() <= 1
        assert (result - 255 * in_floats).abs().max() < 0.01


@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_contrast, adjust_saturation])
def test_a_factor_of_one_changes_nothing(adjust: Callable[..., Any]) -> None:
    images = pictures()
    assert torch.equal(adjust(images, np.ones(4)).round().to(torch.uint8), images)


@pytest.mark.parametrize("turn", [0.0, 1.0, -1.0])
def test_whole_turns_of_the_hue_change_nothing(turn: float) -> None:
    images = pictures()
    assert torch.equal(adjust_hue(images, np.full(4, turn)).round().to(torch.uint8), images)


def test_a_third_of_a_turn_moves_the_channels_on() -> None:
    images = pictures()
    turned = adjust_hue(images, np.full(4, 1 / 3)).round().to(torch.uint8)
    assert torch.equal(turned, images.roll(1, dims=1))


def test_the_mean_has_the_same_bits_in_floats_and_in_any_order() -> None:
    images = pictures()
    exact = images.double().mean(dim=(2, 3), keepdim=True).float()
    assert torch.equal(mean_color(images), exact)
    assert torch.equal(mean_color(images.float()), exact)
    assert torch.equal(mean_color(images.float().flip(2, 3)), exact)


def test_channel_shifts_keep_to_each_pictures_own_range() -> None:
    images = pictures()
    images[1] = images[1] // 2 + 20  # 20 to 137
    shifted = shift_channels(images, np.array([0.0, 50.5, -300.0, 300.0]))
    assert torch.equal(shifted[0], images[0].float())
    assert torch.equal(shifted[1], (images[1] + 50.5).clamp(20, 137))
    assert (shifted[2] == 0).all()
    assert (shifted[3] == 255).all()
    flat = torch.full((1, 3, 4, 4), 77, dtype=torch.uint8)
    assert (shift_channels(flat, np.array([30.0])) == 77).all()


def test_channel_shifts_fill_their_range() -> None:
    images = torch.zeros((3000, 3, 1, 3), dtype=torch.uint8)
    images[..., 1], images[..., 2] = 100, 255
    ids = np.arange(3000, dtype=np.uint64)
    result = build("channel_shift(40)").batch(images, seed=0, epoch=0, identities=ids)
    shifts = result[:, :, 0, 1] - 100
    assert torch.equal(shifts, shifts[:, :1].expand(-1, 3))  # one number for all channels
    assert -40 <= shifts.min() < -39.5 and 39.5 < shifts.max() <= 40
    assert abs(shifts.mean()) < 2


def test_grey_is_grey_and_keeps_bytes() -> None:
    ids = np.arange(4, dtype=np.uint64)
    result = build("grey(1)").batch(pictures(), seed=0, epoch=0, identities=ids)
    assert result.dtype == torch.uint8
    assert (result[:, :1] == result).all()
    luma = (pictures().double() * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    assert (result[:, 0] - luma).abs().max() <= 0.51


@pytest.mark.parametrize("name,low,high", [("brightness", 0.7, 1.3)])
def test_factors_fill_their_range(name: str, low: float, high: float) -> None:
    images = torch.full((3000, 3, 1, 1), 100, dtype=torch.uint8)
    ids = np.arange(3000, dtype=np.uint64)
    factors = build(f"{name}(0.3)").batch(images, seed=0, epoch=0, identities=ids) / 100
    assert low <= factors.min() < low + 0.01
    assert high - 0.01 < factors.max() <= high + 1e-6
    assert abs(factors.mean() - 1) < 0.015
