"""The contracts of what training is made of: losses, optimizers, schedules, callbacks, recipes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from fieldmark.fit.callbacks import MONITORS, Callback, Control
from fieldmark.fit.schedules import Length, Schedule
from fieldmark.settings.config import DataFacts, Facts, TrainConfig
from fieldmark.testing.promises import check_described, require, untouched


def check_loss(function: Callable[..., torch.Tensor]) -> None:
    """Check a loss: one number a picture, that torch differentiates.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(function, given=2)
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=draw).requires_grad_()
    targets = torch.randn(6, 4, generator=draw).softmax(1)
    with untouched("it"):
        losses = function(logits, targets)
    shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
    require(shape == (6,), f"it gives {shape} for 6 pictures; one number for each is needed")
    require(torch.isfinite(losses).all(), "its losses are not finite numbers")
    torch.autograd.backward(losses.sum())
    gradient = logits.grad
    finite = gradient is not None and bool(torch.isfinite(gradient).all())
    require(finite, "it has no finite gradient")
    part = function(logits[2:5], targets[2:5])
    require(torch.allclose(part, losses[2:5]), "a picture's loss depends on others in its batch")


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups as training makes them."""
    kernels = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim < 2]
    return [
        {"params": kernels, "weight_decay": 0.01, "factor": 1.0, "kernels": True},
        {"params": rest, "weight_decay": 0.0, "factor": 1.0, "kernels": False},
    ]


def check_optimizer(factory: Callable[..., torch.optim.Optimizer]) -> None:
    """Check an optimizer: it goes on from a stored state with the same weights, bit for bit.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(factory, given=1)

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
        return module, factory(_groups(module))

    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, which: Iterable[int]) -> None:
        for step in which:
            draw = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            module(torch.randn(2, 3, 4, 4, generator=draw)).square().mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
            optimizer.step()

    (whole, optimizer), (first, before), (later, after) = begin(), begin(), begin()
    with untouched("a step"):
        steps(whole, optimizer, range(6))
    steps(first, before, range(3))
    buffer = io.BytesIO()
    torch.save(before.state_dict(), buffer)
    buffer.seek(0)
    later.load_state_dict(first.state_dict())
    after.load_state_dict(torch.load(buffer, weights_only=True))
    steps(later, after, range(3, 6))
    pairs = list(zip(whole.parameters(), later.parameters(), strict=True))
    same = all(torch.equal(a, b) for a, b in pairs)
    require(same, "after its state was stored and loaded it goes on to other weights")
    moved = any(not torch.equal(a, b) for a, b in zip(pairs[0], begin()[0].parameters()))  # noqa: B905
    require(moved, "its steps change no weight")


def check_schedule(factory: Callable[..., Schedule]) -> None:
    """Check a schedule: a pure function of the step, a Python number from 0 on.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(factory, given=1)
    schedule = factory(Length(total_steps=60, steps_per_epoch=10))
    forward = [schedule(step) for step in range(61)]
    backward = [schedule(step) for step in reversed(range(61))][::-1]
    require(forward == backward, "its factor at a step depends on what it was asked before")
    for step, value in enumerate(forward):
        require(
            type(value) in (int, float) and math.isfinite(value) and value >= 0,
            f"its factor at step {step} is {value!r}; a Python number from 0 on is needed",
        )


def check_callback(factory: Callable[..., Callback]) -> None:
    """Check a callback: what it decides after a stored state is what it would have decided.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(factory, given=1)
    epochs = [dict.fromkeys(MONITORS, 1 / (1 + e % 7)) for e in range(40)]

    def run(callback: Callback, which: Iterable[int]) -> list[tuple[float, str]]:
        decided = []
        for epoch in which:
            control = Control(lr=0.1)
            with untouched("it"):
                callback.after_epoch(epoch + 1, epochs[epoch], control)
            decided.append((control.lr_scale, control.stop))
        return decided

    whole = run(factory("val_accuracy"), range(40))
    first, later = factory("val_accuracy"), factory("val_accuracy")
    decided = run(first, range(17))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    later.load_state_dict(torch.load(buffer, weights_only=True))
    decided += run(later, range(17, 40))
    require(decided == whole, "after its state was stored and loaded it decides otherwise")


def check_recipe(function: Callable[[Facts], TrainConfig]) -> None:
    """Check a recipe: the same settings for the same facts.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(function, given=1)
    for side, count in ((8, 20), (32, 50_000), (500, 900)):
        data = DataFacts(
            num_classes=4,
            num_train=count,
            smallest_class=count // 5,
            largest_class=count // 3,
            median_side=side,
        )
        facts = Facts(data=data, device="cpu", pretrained="")
        with untouched("it"):
            config = function(facts)
        require(isinstance(config, TrainConfig), f"it gives a {type(config).__name__}")
        require(function(facts) == config, "equal facts give other settings each time")
