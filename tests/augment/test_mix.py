"""Mixup and cutmix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fieldmark.augment import MIXES, Mix, build_mix
from fieldmark.errors import ConfigError

SIZE = 16


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture i is all one-hot i, spread over its pixels: pixels say what was mixed."""
    targets = torch.eye(count)
    value = torch.arange(count, dtype=torch.float32) * 10
    return value.view(-1, 1, 1, 1).expand(count, 3, SIZE, SIZE).clone(), targets


def mixing(text: str) -> Mix:
    mix = build_mix(text)
    assert mix is not None
    return mix


@pytest.mark.parametrize("text", ["mixup(1.0)", "cutmix", "mixup|cutmix", "mixup(0.2)"])
def test_targets_say_what_the_pixels_hold(text: str) -> None:
    mix = mixing(text)
    for step in range(40):
        images, targets = batch()
        before = images.clone(), targets.clone()
        mixed, labels = mix(images, targets, seed=3, step=step)
        assert mixed.shape == images.shape and labels.shape == targets.shape
        assert torch.allclose(labels.sum(dim=1), torch.ones(6))
        assert (labels >= 0).all()
        told = labels @ (torch.arange(6, dtype=torch.float32) * 10)
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), told, atol=1e-3)
        assert torch.equal(images, before[0]) and torch.equal(targets, before[1])


def test_cutmix_share_is_the_area() -> None:
    mix, shares = mixing("cutmix"), []
    images, targets = batch()
    for step in range(300):
        mixed, labels = mix(images, targets, seed=0, step=step)
        for i in range(6):
            kept = float((mixed[i] == images[i]).double().mean())
            assert float(labels[i, i]) == pytest.approx(kept, abs=1e-6)
            if kept < 1:
                shares.append(kept)
        inside = mixed[0, 0] != images[0, 0]
        rows, columns = inside.any(dim=1).sum(), inside.any(dim=0).sum()
        assert inside.sum() == rows * columns
    assert min(shares) < 0.3 and max(shares) > 0.9


def test_mixup_share_is_drawn_from_beta() -> None:
    mix = mixing("mixup(0.4)")
    images, targets = batch()
    kept = []
    for step in range(1500):
        _, labels = mix(images, targets, seed=0, step=step)
        diagonal = labels.diagonal()
        alone = diagonal < 1 - 1e-7  # the others met themselves
        if alone.any():
            kept.append(float(diagonal[alone][0]))
    # Shares that float32 cannot tell from 1 were left out above.
    assert stats.kstest(kept, stats.beta(0.4, 0.4).cdf).pvalue > 1e-4


def test_either_is_chosen_with_equal_chance() -> None:
    mix = mixing("mixup(1)|cutmix(1)")
    images, targets = batch(2)
    blended = moved = 0
    for step in range(600):
        mixed, labels = mix(images, targets, seed=0, step=step)
        if labels.diagonal().min() < 1 and labels.diagonal().max() > 0:
            whole = torch.isin(mixed, images).all()
            moved += int(whole)
            blended += int(not whole)
    assert abs(blended - moved) < 0.2 * (blended + moved)


def test_the_step_decides_and_nothing_else() -> None:
    images, targets = batch()
    mix = mixing("mixup|cutmix")
    state = torch.get_rng_state()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    one = mix(images, targets, seed=0, step=5)
    again = mixing("mixup|cutmix")(images, targets, seed=0, step=5)
    other = mix(images, targets, seed=0, step=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("count", [0, 1])
def test_nobody_to_mix_with(name: str, count: int) -> None:
    images, targets = torch.rand(count, 3, 4, 4), torch.eye(2)[:count]
    mixed, labels = mixing(name)(images, targets, seed=0, step=0)
    assert torch.equal(mixed, images) and torch.equal(labels, targets)


@pytest.mark.parametrize("text", ["none", ""])
def test_none(text: str) -> None:
    assert build_mix(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mixpu", "did you mean 'mixup'"),
        ("mixup(0)", "alpha is 0"),
        ("cutmix(-1)", "alpha is -1"),
        ("mixup(beta=1)", "takes alpha=0.2"),
        ("mixup|flip_lr(0.3)", "use --augment flip_lr(0.3)"),
    ],
)
def test_refuses(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_mix(text)
    assert says in str(error.value)
