"""The whitened network: what it measures, how it begins, what of it trains."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fieldmark import models
from fieldmark.errors import ConfigError
from fieldmark.networks.layers import Whitening, measured_layers
from fieldmark.networks.whitened_cnn import whitened_cnn


def pictures(count: int = 64, seed: int = 0) -> torch.Tensor:
    """Smooth noise with channels that go together, as in photographs."""
    noise = torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(noise, 3, 1)
    tint = torch.tensor([1.0, 0.8, 0.5]).view(1, 3, 1, 1)
    own = torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed + 1))
    return smooth * tint + 0.1 * own


def test_whitened_patches_are_uncorrelated_and_of_equal_size() -> None:
    layer, images = Whitening(2), pictures()
    layer.measure([images[:20], images[20:]])
    out = layer(images).transpose(0, 1).flatten(1).detach().double()  # [24, N]
    assert out.shape[0] == layer.channels == 24
    assert torch.equal(out[12:], -out[:12])
    second = out[:12] @ out[:12].T / out.shape[1]
    # An axis of variance v comes out with v / (v + EPS).
    size = second.diag()
    assert float((second - torch.diag(size)).abs().max()) < 1e-3
    assert bool(((size > 0.85) & (size < 1.001)).all())
    assert bool((size.diff() < 1e-3).all())  # the axis that varies most comes first


def test_measuring_is_the_same_in_any_batches_and_draws_nothing() -> None:
    images = pictures()
    one, other = Whitening(2), Whitening(2)
    state = torch.get_rng_state()
    one.measure([images])
    other.measure(images.split(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(one.weight, other.weight, atol=1e-3)
    again = Whitening(2)
    again.measure([images])
    assert torch.equal(one.weight, again.weight)


def test_pictures_of_one_colour_give_finite_filters() -> None:
    layer = Whitening(2)
    layer.measure([torch.zeros(2, 3, 9, 9)])
    assert bool(torch.isfinite(layer.weight).all())


def test_the_filters_are_stored_and_do_not_train() -> None:
    net = whitened_cnn(4, widths=(8, 8, 8))
    assert [type(layer) for layer in measured_layers(net)] == [Whitening]
    names = dict(net.named_parameters())
    assert "whiten.bias" in names
    assert "whiten.weight" not in names
    assert not any(name.endswith("norm1.weight") for name in names)
    assert {"whiten.weight", "groups.0.norm1.weight"} <= set(net.state_dict())
    torch.manual_seed(0)
    before = net.whiten.weight.clone()
    net.train()(pictures()).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert torch.equal(net.whiten.weight, before)


def test_it_begins_as_the_identity() -> None:
    """With kernels that pass on what they get, a group is its norms, pool and activations."""
    torch.manual_seed(0)
    group = whitened_cnn(2, widths=(24, 24, 30)).groups[0].eval()
    x = torch.randn(2, 24, 9, 9)
    kernels = group.conv1.weight, group.conv2.weight
    assert all(float(k.detach().norm()) == pytest.approx(24**0.5) for k in kernels)
    norm = 1 / (1 + group.norm1.eps) ** 0.5
    wanted = F.silu(norm * F.silu(norm * F.max_pool2d(x, 2)))
    assert torch.allclose(group(x), wanted, atol=1e-5)


def test_what_is_new_in_a_wider_group_starts_as_usual() -> None:
    torch.manual_seed(0)
    kernel = whitened_cnn(2, widths=(40, 40, 40)).groups[0].conv1.weight
    identity = torch.zeros(24, 24, 3, 3)
    identity[range(24), range(24), 1, 1] = 1
    assert torch.equal(kernel[:24], identity)
    bound = (1 / (24 * 9)) ** 0.5
    assert 0.8 * bound < float(kernel[24:].detach().abs().max()) <= bound


@pytest.mark.parametrize("size", [9, 16, 24, 28, 32, 33, 64])
def test_it_takes_many_sizes_and_shapes(size: int) -> None:
    net = whitened_cnn(3, widths=(4, 4, 4)).eval()
    assert net(torch.randn(2, 3, size, size)).shape == (2, 3)
    assert net(torch.randn(2, 3, size, size + 5)).shape == (2, 3)


def test_numbers_of_the_published_network() -> None:
    net = models.create("whitened_cnn", num_classes=10, weights="none").module
    assert sum(p.numel() for p in net.parameters()) == 1_971_352


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("whitened_cnn(widths=(64, 256))", "widths is"),
        ("whitened_cnn(widths=64)", "widths is"),
        ("whitened_cnn(widths=(64, 256, 0))", "widths is"),
        ("whitened_cnn(widths=(64, 256, True))", "widths is"),
        ("whitened_cnn(scale=0)", "scale is 0"),
        ("whitened_cnn(width=4)", "did you mean 'widths'"),
    ],
)
def test_nonsense_is_refused(spec: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        models.create(spec, num_classes=2, weights="none")
    assert says in str(error.value)
