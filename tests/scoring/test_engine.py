"""Networks made ready for scoring: faster operations, the same answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fieldmark import models
from fieldmark.scoring import engine
from fieldmark.scoring.scorer import Scorer


def used(module: nn.Module) -> nn.Module:
    """As after training: running statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return module.eval()


def pictures(size: int, count: int = 6) -> torch.Tensor:
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last)


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in module.modules())


@pytest.mark.parametrize(
    ("spec", "size", "norms_left"),
    [
        ("small_cnn", 28, 0),
        ("cifar_resnet", 32, 0),
        ("cifar_resnet(depth=20, version=2)", 32, 6),  # norms before convolutions stay
        ("cifar_googlenet", 32, 0),
        ("timm/resnet18", 64, 0),
        ("timm/tf_efficientnet_lite0", 64, 0),
        ("timm/tf_efficientnet_lite0", 77, 0),  # sides that strides do not divide
    ],
)
def test_norms_are_folded_and_answers_stay(spec: str, size: int, norms_left: int) -> None:
    module = used(models.create(spec, num_classes=5, weights="none").module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = pictures(size)
    ready, why = engine.prepared(module, images)
    assert why == ""
    assert count(ready, nn.BatchNorm2d) == norms_left < count(module, nn.BatchNorm2d)
    with torch.no_grad():
        wanted, given = module(images), ready(images)
        alone = ready(images[:1])
    assert (wanted - given).abs().max() <= 1e-5 * wanted.abs().max()
    assert (alone - given[:1]).abs().max() <= 1e-5 * wanted.abs().max()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_as_tensorflow_does_it(stride: int, side: int) -> None:
    for size in range(12, 12 + stride):  # every rest
        assert_padding_is_kept(size, stride, side, groups=4 if size % 2 else 1)


def assert_padding_is_kept(size: int, stride: int, side: int, groups: int) -> None:
    from timm.layers import Conv2dSame

    torch.manual_seed(0)
    conv = Conv2dSame(4, 8, side, stride=stride, groups=groups)
    module = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU6()).eval()
    images = torch.randn(3, 4, size, size + 3).contiguous(memory_format=torch.channels_last)
    ready, why = engine.prepared(module, images)
    assert why == ""
    assert not any(isinstance(layer, nn.Conv2d | nn.BatchNorm2d) for layer in ready.modules())
    with torch.no_grad():
        torch.testing.assert_close(ready(images), module(images), rtol=1e-5, atol=1e-6)


class Branching(nn.Module):
    """Everything that a finder of pairs can take for a pair and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(x))
        x = self.norm(self.first(x))
        y = self.norm2(self.second(x))
        y += x  # in place: the activation gets the tensor that the norm gave, but not its values
        head: torch.Tensor = self.head(self.act(y).mean((2, 3)))
        return head


def test_an_activation_after_a_sum_in_place_stays() -> None:
    module = used(Branching())
    ready, why = engine.prepared(module, pictures(16))
    assert why == ""
    assert count(ready, nn.BatchNorm2d) == 0
    assert count(ready, nn.ReLU) == 1


class Seen(nn.Module):
    """Uses what comes before the norm once more, which no finder of pairs sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return (x + self.norm(x)).mean((2, 3))


def test_what_would_change_answers_is_left_alone_and_said() -> None:
    module = used(Seen())
    ready, why = engine.prepared(module, pictures(16))
    assert ready is module
    assert "logits differ" in why


def test_a_network_with_nan_is_left_alone() -> None:
    module = used(Branching())
    with torch.no_grad():
        module.head.weight.fill_(float("nan"))
    assert engine.prepared(module, pictures(16))[0] is module


def test_scores_do_not_depend_on_being_prepared_and_training_goes_on() -> None:
    network = models.create("small_cnn", num_classes=3, weights="none")
    module = used(network.module)
    images = torch.randint(0, 256, (9, 3, 28, 28), dtype=torch.uint8)
    fast = Scorer(module, spec=network.input).over([images[:5], images[5:]])
    slow = Scorer(module, spec=network.input, prepare=False).over([images[:5], images[5:]])
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    assert torch.equal(fast, torch.cat([*map(Scorer(module, spec=network.input), images.split(5))]))
    module.train()(torch.zeros(2, 3, 28, 28)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
