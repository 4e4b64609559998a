"""Optimizers: groups, decay, factors, the L2 penalty, and steps equal to torch's own."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fieldmark.errors import ConfigError
from fieldmark.fit import optimizers
from fieldmark.fit.optimizers import (
    OPTIMIZERS,
    add_l2_gradient,
    build,
    check_freezing,
    freeze,
    orthogonalized,
    penalty,
    regularized,
    set_lr,
    set_trainable,
)
from fieldmark.networks.small_cnn import small_cnn
from fieldmark.settings.resolved import FreezeAfter, freeze_after


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


KERAS = {
    "keras_sgd(0.9)": {"momentum": 0.9},
    "keras_sgd(0.9, nesterov=True)": {"momentum": 0.9, "nesterov": True},
    "keras_sgd": {"momentum": 0.0},
    "keras_adam(eps=1e-2)": {"eps": 1e-2},
    "keras_adam": {"eps": 1e-7},
}
RATES = (0.05, 0.05, 0.005, 0.02, 0.0)


def keras_step(
    w: torch.Tensor, g: torch.Tensor, state: Any, t: int, lr: float, decay: float, rule: Any
) -> torch.Tensor:
    """Keras's update of one weight, in float64 and as its formula is written."""
    w = w * (1 - lr * decay)
    if "eps" in rule:
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
        state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
        alpha = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return w - alpha * state["m"] / (state["v"].sqrt() + rule["eps"])
    state["v"] = rule["momentum"] * state.get("v", 0) - lr * g
    if rule.get("nesterov"):
        return w + rule["momentum"] * state["v"] - lr * g
    return w + state["v"]


@pytest.mark.parametrize("text", list(KERAS))
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_keras_steps_are_their_formulae(text: str, decay: float) -> None:
    module = net()
    optimizer = build(text, module, head="head", weight_decay=decay, backbone_lr=0.5)
    wanted = {n: p.detach().double() for n, p in module.named_parameters()}
    states: dict[str, Any] = {name: {} for name in wanted}
    for t, lr in enumerate(RATES, 1):
        gradients(module, t)
        for name, p in module.named_parameters():
            factor = 1.0 if name.startswith("head.") else 0.5
            wanted[name] = keras_step(
                wanted[name],
                p.grad.double(),
                states[name],
                t,
                lr * factor,
                decay if p.ndim > 1 else 0.0,
                KERAS[text],
            )
        set_lr(optimizer, lr)
        optimizer.step()
    for name, p in module.named_parameters():
        assert torch.allclose(p.double(), wanted[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("text", [*KERAS, *OPTIMIZERS])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_checkpoint_between_steps_changes_no_bit(text: str, frozen: bool) -> None:
    """Also where the backbone starts to train after the head."""

    def train(stop: int) -> list[torch.Tensor]:
        module = net()
        optimizer = build(text, module, head="head", weight_decay=0.1, backbone_lr=0.5)
        for step, lr in enumerate(RATES):
            if step == stop:
                buffer = io.BytesIO()
                torch.save([module.state_dict(), optimizer.state_dict()], buffer)
                buffer.seek(0)
                weights, state = torch.load(buffer, weights_only=True)
                module = Net()
                module.load_state_dict(weights)
                optimizer = build(text, module, head="head", weight_decay=0.1, backbone_lr=0.5)
                optimizer.load_state_dict(state)
            gradients(module, step)
            if frozen and step < 2:
                for name, parameter in module.named_parameters():
                    if not name.startswith("head."):
                        parameter.grad = None
            set_lr(optimizer, lr)
            optimizer.step()
        return [p.detach() for p in module.parameters()]

    straight = train(stop=-1)
    for stop in (1, 2, 4):
        for a, b in zip(train(stop), straight, strict=True):
            assert torch.equal(a, b)


def test_what_unfreezes_later_counts_its_own_steps() -> None:
    """The backbone's first step is one of step 1, as if its optimizer were new."""
    text = "keras_adam(eps=0.1)"
    late, fresh = net(), net()
    optimizer = build(text, late, head="head", weight_decay=0.0, backbone_lr=1.0)
    for step in range(3):
        gradients(late, step)
        for name, parameter in late.named_parameters():
            if step < 2 and not name.startswith("head."):
                parameter.grad = None
        set_lr(optimizer, 0.1)
        optimizer.step()
    optimizer = build(text, fresh, head="head", weight_decay=0.0, backbone_lr=1.0)
    gradients(fresh, 2)
    set_lr(optimizer, 0.1)
    optimizer.step()
    assert torch.equal(late.conv.weight, fresh.conv.weight)
    assert not torch.equal(late.head.weight, fresh.head.weight)


def test_l2_is_on_the_kernels_outside_the_head() -> None:
    module = net()
    kernels = regularized(module, "head")
    assert [id(p) for p in kernels] == [id(module.conv.weight), id(module.header.weight)]
    wanted = 0.01 * sum(p.detach().double().square().sum() for p in kernels)
    value = penalty(kernels, 0.01)
    assert value.dtype == torch.float32 and value.shape == () and not value.requires_grad
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)


def test_the_l2_gradient_is_that_of_the_penalty() -> None:
    ours, reference = net(), net()
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    ours(images).square().sum().backward()
    add_l2_gradient(regularized(ours, "head"), 0.01)
    kernels = (reference.conv.weight, reference.header.weight)
    loss = reference(images).square().sum() + 0.01 * sum(p.square().sum() for p in kernels)
    loss.backward()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-6)
    assert (ours.conv.weight.grad - 0.02 * ours.conv.weight).abs().max() > 0.01


def test_frozen_kernels_have_no_penalty() -> None:
    module = net()
    kernels = regularized(module, "head")
    module.conv.weight.requires_grad_(False)
    module.header.weight.grad = torch.zeros(4, 4)
    wanted = 0.5 * module.header.weight.detach().square().sum()
    assert float(penalty(kernels, 0.5)) == pytest.approx(float(wanted))
    add_l2_gradient(kernels, 0.5)
    assert module.conv.weight.grad is None
    assert torch.allclose(module.header.weight.grad, module.header.weight)
    set_trainable(module, head="head", head_only=True)
    module.zero_grad(set_to_none=True)
    assert float(penalty(kernels, 0.5)) == 0.0
    add_l2_gradient(kernels, 0.5)
    assert all(p.grad is None for p in kernels)
    assert float(penalty([], 0.5)) == 0.0


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
        "keras_sgd(momentum=1.0)",
        "keras_sgd(momentum=-0.1)",
        "keras_sgd(nesterov=True)",
        "keras_adam(beta2=1.0)",
        "keras_adam(eps=-1)",
        "adam(beta1=1.5)",
        "adamw(eps=-1)",
        "adamw(0.9, 0.999, 1e-8, 4)",
        "adam(beta1='x')",
        "muon(kernel_lr=0)",
        "muon(momentum=1)",
        "muon(kernel_momentum=-0.5)",
        "muon(iterations=0)",
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


def test_biases_and_norms_have_a_factor_of_their_own() -> None:
    module = net()
    optimizer = build("sgd", module, head="head", weight_decay=0.01, backbone_lr=0.25, bias_lr=64.0)
    factors = {id(p): g["factor"] for g in optimizer.param_groups for p in g["params"]}
    assert {n: factors[id(p)] for n, p in module.named_parameters()} == {
        "conv.weight": 0.25,
        "conv.bias": 16.0,
        "norm.weight": 16.0,
        "norm.bias": 16.0,
        "header.weight": 0.25,
        "header.bias": 16.0,
        "head.weight": 1.0,
        "head.bias": 64.0,
    }


@pytest.fixture(params=[False, True], ids=["f32", "bf16"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both number types of Muon's products, whichever is faster on this processor."""
    monkeypatch.setattr(optimizers, "_fast_bf16", lambda device: request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 3, 3, 3), (3, 16, 2, 2), (1, 5)])
def test_orthogonalizing_makes_singular_values_nearly_equal(shape: tuple[int, ...]) -> None:
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalized(kernel, 6)
    assert result.shape == kernel.shape
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result.flatten(1).double())
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    # The directions stay: it is the polar factor, up to those values.
    left, _, right = torch.linalg.svd(kernel.flatten(1).double(), full_matrices=False)
    core = left.T @ result.flatten(1).double() @ right.T
    assert float((core - torch.diag(core.diag())).abs().max()) < 0.05


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("iterations", [1, 3, 20])
@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
def test_orthogonalizing_is_the_iteration_up_to_rounding(decay: float, iterations: int) -> None:
    draws = torch.Generator().manual_seed(2)
    left, _ = torch.linalg.qr(torch.randn(24, 24, generator=draws))
    right, _ = torch.linalg.qr(torch.randn(216, 24, generator=draws))
    kernel = left * torch.arange(1, 25.0) ** -decay @ right.T
    x = kernel.double() / kernel.double().norm()
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result = orthogonalized(kernel.reshape(24, 24, 3, 3), iterations).reshape(24, 216)
    if iterations <= 3:
        assert torch.linalg.matrix_norm(result - x, 2) < 0.15 * torch.linalg.matrix_norm(x, 2)
    else:  # the exact iteration's values wander, too
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.5
        assert values.max() < 1.4


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_orthogonalizing_takes_any_scale(scale: float) -> None:
    result = orthogonalized(torch.eye(4) * scale, 5)
    assert bool(torch.isfinite(result).all())
    if scale == 0:
        assert not bool(result.any())


@pytest.mark.parametrize("hold", [True, False])
def test_muon_steps_are_their_formulae(hold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_fast_bf16", lambda device: False)
    module = net()
    text = f"muon(kernel_lr=0.3, kernel_momentum=0.6, momentum=0.8, hold_norms={hold})"
    optimizer = build(text, module, head="head", weight_decay=0.1, backbone_lr=0.5)
    wanted = {n: p.detach().clone() for n, p in module.named_parameters()}
    velocity = {n: torch.zeros_like(p) for n, p in wanted.items()}
    for step, lr in enumerate((0.05, 0.02, 0.01)):
        gradients(module, step)
        for name, p in module.named_parameters():
            w, g = wanted[name], p.grad.clone()
            kernel = name in ("conv.weight", "header.weight")
            rate = lr * (1.0 if name.startswith("head.") else 0.5)
            if name == "head.weight":
                g += 0.1 * w
            beta = 0.6 if kernel else 0.8
            velocity[name] = beta * velocity[name] + g
            move = g + beta * velocity[name]
            if kernel:
                rate *= 0.3
                w = w * len(w) ** 0.5 / w.norm() if hold else w * (1 - rate * 0.1)
                move = orthogonalized(move, 3)
            wanted[name] = w - rate * move
        set_lr(optimizer, lr)
        optimizer.step()
    for name, p in module.named_parameters():
        assert torch.allclose(p, wanted[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.reference
def test_muon_leaves_the_rest_to_torchs_sgd() -> None:
    ours, theirs = net(), net()
    optimizer = build("muon(momentum=0.85)", ours, head="head", weight_decay=0.1)
    reference = torch.optim.SGD(
        [
            {"params": [theirs.head.weight], "weight_decay": 0.1},
            {"params": [p for p in theirs.parameters() if p.ndim == 1]},
        ],
        0.05,
        momentum=0.85,
        nesterov=True,
    )
    set_lr(optimizer, 0.05)
    for step in range(3):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        reference.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name not in ("conv.weight", "header.weight"):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name


def test_a_part_that_is_frozen_takes_no_gradient_and_no_statistics() -> None:
    module = net()
    set_trainable(module, head="head", head_only=False)
    freeze(module, "norm")
    before = {n: v.clone() for n, v in module.norm.state_dict().items()}
    module(torch.randn(4, 3, 5, 5)).sum().backward()
    assert module.norm.weight.grad is None
    assert module.conv.weight.grad is not None
    assert all(torch.equal(v, before[n]) for n, v in module.norm.state_dict().items())
    set_trainable(module, head="head", head_only=False)
    assert module.norm.training
    assert module.norm.weight.requires_grad


def test_parts_to_freeze_are_named_with_their_epochs() -> None:
    found = freeze_after("conv@3 | norm@12")
    assert found == (FreezeAfter("conv", 3), FreezeAfter("norm", 12))
    check_freezing(found, net(), head="head")
    assert freeze_after("none") == freeze_after("") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("conv", "'conv' is not of the form NAME@EPOCHS"),
        ("conv@0", "not of the form"),
        ("conv@1.5", "not of the form"),
        ("conv@3|", "not of the form"),
        ("comv@3", "no part 'comv' with weights; did you mean 'conv'"),
        ("@3", "no part ''"),
        ("head@3", "'head' has the head, which always trains"),
    ],
)
def test_parts_that_cannot_be_frozen_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match="freeze_after") as error:
        check_freezing(freeze_after(text), net(), head="head")
    assert says in str(error.value)
