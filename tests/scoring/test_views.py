"""Views: the mean of what a network says of a picture, its mirror image, and both moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fieldmark.errors import ConfigError
from fieldmark.pictures.inputs import InputSpec
from fieldmark.scoring import scorer
from fieldmark.scoring.views import averaged

IMAGES = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def linear(size: int) -> nn.Module:
    """A network whose answer depends on where everything is."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 3)).eval()


def corner(images: torch.Tensor) -> torch.Tensor:
    """The top-left pixel's channels: says exactly which view was seen."""
    return images[:, :, 0, 0]


def test_views_are_the_picture_its_mirror_and_both_moved() -> None:
    x = IMAGES
    assert torch.equal(averaged(corner, x, "none"), x[:, :, 0, 0])
    flip = 0.5 * x[:, :, 0, 0] + 0.5 * x[:, :, 0, -1]
    assert torch.allclose(averaged(corner, x, "flip"), flip)
    # One pixel up and left brings (1, 1) to the corner, and into the mirror's what is reflected at
    # the right edge; one pixel down and right brings the reflection of (1, 1).
    up = 0.5 * x[:, :, 1, 1] + 0.5 * x[:, :, 1, -2]
    down = 0.5 * x[:, :, 1, 1] + 0.5 * x[:, :, 1, -2]
    wanted = 0.5 * flip + 0.25 * up + 0.25 * down
    assert torch.allclose(averaged(corner, x, "flip_shift"), wanted, atol=1e-6)


def test_shifts_go_both_ways() -> None:
    x = IMAGES
    seen = averaged(lambda images: images[:, :, 2, 2], x, "flip_shift")
    # Where column 2 of a mirror image was: at 3, moved left or right with the picture.
    exact = 0.25 * (x[:, :, 2, 2] + x[:, :, 2, 3])
    exact += 0.125 * (x[:, :, 3, 3] + x[:, :, 3, 4])
    exact += 0.125 * (x[:, :, 1, 1] + x[:, :, 1, 2])
    assert torch.allclose(seen, exact, atol=1e-6)


def test_a_picture_and_its_mirror_image_get_the_same_answer() -> None:
    module = linear(6)
    with torch.no_grad():
        straight = averaged(module, IMAGES, "flip")
        assert torch.allclose(straight, averaged(module, IMAGES.flip(3), "flip"), atol=1e-5)
        assert not torch.allclose(straight, module(IMAGES), atol=1e-3)


def test_scores_take_the_views_of_the_input() -> None:
    module = linear(8)
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
    )
    spec = InputSpec(size=8, views="flip_shift")
    scored = scorer.Scorer(module, spec=spec).over([images[:3], images[3:]])
    with torch.no_grad():
        wanted = averaged(module, spec.normalize(images), "flip_shift")
    assert torch.allclose(scored, wanted, atol=1e-5)
    plain = scorer.Scorer(module, spec=InputSpec(size=8))(images)
    assert not torch.allclose(scored, plain, atol=1e-3)


def test_memory_order_is_kept_for_the_network() -> None:
    orders: list[bool] = []

    class Probe(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            orders.append(x.is_contiguous(memory_format=torch.channels_last))
            return x.mean((2, 3))

    averaged(Probe(), IMAGES.contiguous(memory_format=torch.channels_last), "flip_shift")
    assert orders == [True] * 6


def test_unknown_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="no views 'all'"):
        InputSpec(size=8, views="all")


def test_the_description_without_views_is_read_as_none() -> None:
    stored = InputSpec(size=8, views="flip").to_json()
    assert InputSpec.from_json(stored).views == "flip"
    del stored["views"]
    assert InputSpec.from_json(stored).views == "none"
