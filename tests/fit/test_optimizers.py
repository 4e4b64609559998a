"""Optimizers: groups, decay, factors, and steps equal to torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fieldmark.errors import ConfigError
from fieldmark.fit.optimizers import OPTIMIZERS, build, set_lr, set_trainable
from fieldmark.models.small_cnn import small_cnn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.header = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(torch.tanh(self.header(x)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def gradients(module: nn.Module, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=rng)


def test_groups_are_head_or_not_and_decayed_or_not() -> None:
    module = net()
    optimizer = build("sgd", module, head="head", weight_decay=0.01, backbone_lr=0.25)
    names = {id(p): n for n, p in module.named_parameters()}
    groups = {
        (g["factor"], g["weight_decay"]): {names[id(p)] for p in g["params"]}
        for g in optimizer.param_groups
    }
    assert groups == {
        (0.25, 0.01): {"conv.weight", "header.weight"},
        (0.25, 0.0): {"conv.bias", "norm.weight", "norm.bias", "header.bias"},
        (1.0, 0.01): {"head.weight"},
        (1.0, 0.0): {"head.bias"},
    }


def test_the_rate_of_every_group_is_its_share() -> None:
    optimizer = build("adamw", net(), head="head", weight_decay=0.01, backbone_lr=0.25)
    set_lr(optimizer, 0.4)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.1, 0.1, 0.4, 0.4])
    assert all(type(g["lr"]) is float for g in optimizer.param_groups)


REFERENCES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd(momentum=0.9, nesterov=True)": lambda p, wd: torch.optim.SGD(
        p, 0.05, momentum=0.9, nesterov=True, weight_decay=wd
    ),
    "sgd(0.0)": lambda p, wd: torch.optim.SGD(p, 0.05, weight_decay=wd),
    "adam(beta1=0.8, eps=1e-6)": lambda p, wd: torch.optim.Adam(
        p, 0.05, betas=(0.8, 0.999), eps=1e-6, weight_decay=wd
    ),
    "adamw(beta2=0.99)": lambda p, wd: torch.optim.AdamW(
        p, 0.05, betas=(0.9, 0.99), weight_decay=wd
    ),
}


@pytest.mark.reference
@pytest.mark.parametrize("text", list(REFERENCES))
def test_steps_are_torchs(text: str) -> None:
    ours, theirs = net(), net()
    optimizer = build(text, ours, head="head", weight_decay=0.1, backbone_lr=1.0)
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    plain = [p for p in theirs.parameters() if p.ndim == 1]
    references = [REFERENCES[text](decayed, 0.1), REFERENCES[text](plain, 0.0)]
    set_lr(optimizer, 0.05)
    for step in range(3):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        for reference in references:
            reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_backbones_factor_scales_its_step() -> None:
    full, slow = net(), net()
    start = {n: p.detach().clone() for n, p in full.named_parameters()}
    for module, factor in ((full, 1.0), (slow, 0.1)):
        optimizer = build("sgd", module, head="head", weight_decay=0.0, backbone_lr=factor)
        set_lr(optimizer, 0.5)
        gradients(module, 1)
        optimizer.step()
    moved = dict(full.named_parameters())
    for name, parameter in slow.named_parameters():
        share = 1.0 if name.startswith("head.") else 0.1
        wanted = (moved[name] - start[name]) * share
        assert torch.allclose(parameter - start[name], wanted, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "sgdd",
        "sgd(momentum=1.0)",
        "sgd(momentum=-0.1)",
        "sgd(momentum=0.0, nesterov=True)",
        "sgd(lr=0.1)",
        "sgd(groups=1)",
        "adam(beta1=1.5)",
        "adamw(eps=-1)",
        "adamw(0.9, 0.999, 1e-8, 4)",
        "adam(beta1='x')",
        "none|sgd",
    ],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(ConfigError, match="optimizer"):
        build(text, net(), head="head", weight_decay=0.0, backbone_lr=1.0)


@pytest.mark.parametrize("text", list(OPTIMIZERS))
def test_every_optimizer_builds_with_its_defaults(text: str) -> None:
    optimizer = build(text, small_cnn(2, 1), head="head", weight_decay=0.0, backbone_lr=1.0)
    count = sum(len(g["params"]) for g in optimizer.param_groups)
    assert count == len(list(small_cnn(2, 1).parameters()))


def test_set_trainable() -> None:
    module = net()
    set_trainable(module, head="head", head_only=True)
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    assert not module.norm.training
    assert not module.header.training
    assert module.head.training
    before = module.norm.running_mean.clone()
    module(torch.randn(4, 3, 5, 5)).sum().backward()
    assert torch.equal(module.norm.running_mean, before)
    assert module.conv.weight.grad is None
    assert module.header.weight.grad is None
    set_trainable(module, head="head", head_only=False)
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.modules())
