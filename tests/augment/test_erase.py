"""Random erasing."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from fieldmark.augment import build
from fieldmark.augment.color import mean_color
from fieldmark.augment.erase import _paint, _within

COUNT = 1500
IDS = np.arange(COUNT, dtype=np.uint64)


def gradient() -> torch.Tensor:
    """Every pixel's green is far from its mean, so that what was painted is seen."""
    image = np.zeros((1, 3, 64, 64), dtype=np.uint8)
    image[0, 1] = np.where(np.indices((64, 64)).sum(axis=0) % 2, 255, 1)
    return torch.from_numpy(image).expand(COUNT, -1, -1, -1)


def test_paints_one_rectangle_in_the_mean_colour() -> None:
    images = gradient()
    result = build("erase(1, (0.1, 0.3), (0.5, 2))").batch(images, seed=0, epoch=0, identities=IDS)
    painted = result[:, 1] != images[:, 1]
    assert (result[:, 1][painted] == 128).all()
    assert (result[:, [0, 2]] == 0).all()
    rows, columns = painted.any(dim=2).sum(dim=1), painted.any(dim=1).sum(dim=1)
    area = painted.sum(dim=(1, 2))
    assert torch.equal(rows * columns, area)
    share, ratio = area / 64**2, rows / columns
    assert 0.09 < share.min() < 0.11 and 0.29 < share.max() < 0.31
    assert 0.45 < ratio.min() < 0.55 and 1.85 < ratio.max() < 2.15
    assert stats.kstest((share.numpy() - 0.1) / 0.2, "uniform").pvalue > 0.001


def test_paints_as_often_as_asked() -> None:
    images = gradient()
    result = build("erase(0.25)").batch(images, seed=0, epoch=0, identities=IDS)
    share = (result != images).flatten(1).any(dim=1).double().mean()
    assert abs(share - 0.25) < 0.05


def test_no_place_for_a_rectangle_leaves_the_picture() -> None:
    images = gradient()[:2]
    for text in ("erase(1, (1, 1), (1, 1))", "erase(1, (0, 0))"):
        result = build(text).batch(images, seed=0, epoch=0, identities=IDS[:2])
        assert torch.equal(result, images)


def test_the_gpu_way_of_painting_is_the_same() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (40, 3, 20, 30), dtype=np.uint8))
    top, left = rng.integers(0, 15, 40), rng.integers(0, 25, 40)
    boxes = np.stack((top, left, rng.integers(1, 6, 40), rng.integers(1, 6, 40)), axis=1)
    boxes = boxes.astype(np.float64)
    color = mean_color(images).round_().to(torch.uint8)
    at_once = torch.where(_within(images, boxes), color, images)
    assert torch.equal(at_once, _paint(images, boxes))
