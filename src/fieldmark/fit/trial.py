"""A few steps on one batch: whether a network can learn it, and with which learning rate.

What learns 32 pictures by heart can learn; what cannot, cannot with more of them either. The state
of the training is copied, so it stays as it was.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import torch
from torch import nn

from fieldmark.errors import FieldmarkError
from fieldmark.fit.callbacks import Control
from fieldmark.fit.doctor import TRIAL_LEARNED, Trial
from fieldmark.fit.loop import Batch, Plan, _step, choose_trained
from fieldmark.fit.state import Tally, TrainState
from fieldmark.settings.resolved import ALL_PICTURES

STEPS = 30
"""Steps with each learning rate."""
UP = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
DOWN = (0.1, 0.01, 1e-3)
"""Factors of the learning rate, tried until one learns."""


def tried(
    state: TrainState,
    batch: Batch,
    plan: Plan,
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    down_first: bool = False,
    only_down: bool = False,
) -> Trial:
    """Train copies on one batch, with the run's learning rate and with others.

    Args:
        state: Its network is copied; what is frozen stays so.
        batch: Training pictures as they are.
        plan: The run's plan.
        optimizer: Makes the run's optimizer for a copy.
        down_first: Try lower rates before higher ones.
        only_down: Try the run's rate and the lower ones, all of them.
    """
    counts = torch.bincount(batch.labels.cpu()).double()
    shares = counts[counts > 0] / counts.sum()
    constant = float(-(shares * shares.log()).sum())
    losses: dict[float, float] = {}
    moved, first = False, None
    orders: tuple[tuple[float, ...], ...]
    orders = (UP[:1], DOWN, UP[1:]) if down_first else (UP, DOWN)
    if only_down:
        orders = (UP[:1], DOWN[:2])
    for order in orders:
        for factor in order:
            start, loss, any_moved = _run(state, batch, plan, optimizer, factor)
            losses[factor] = loss
            first = start if first is None else first
            moved = moved or any_moved
            if loss < TRIAL_LEARNED * constant and not only_down:
                return Trial(len(batch.labels), STEPS, constant, losses, first or 0.0, moved)
            if not moved or (not math.isfinite(loss) and factor > 1):
                break
        if not moved:
            break
    return Trial(len(batch.labels), STEPS, constant, losses, first or 0.0, moved)


def _run(
    state: TrainState,
    batch: Batch,
    plan: Plan,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    factor: float,
) -> tuple[float, float, bool]:
    """Train one copy; return first and last loss, and whether any gradient was not zero."""
    module = copy.deepcopy(state.module)
    device = plan.device.torch_device
    trial = TrainState(module, optimizer(module), [], Tally.empty(device), control=Control())
    trial.halvings, trial.epoch = state.halvings, max(0, state.epoch - 1)
    choose_trained(trial, plan)  # as in the last epoch
    plain = dataclasses.replace(
        plan, lr=plan.lr * factor, schedule=lambda step: 1.0, mix=None, smoothing=0.0, weights=None,
        loss=None, l2=0.0, hardest=ALL_PICTURES, size_at=None,
    )  # fmt: skip
    moved, first = False, math.inf
    for number in range(STEPS):
        trial.tally = Tally.empty(device)
        try:
            _step(trial, batch, plain)
        except (FieldmarkError, RuntimeError):  # a network without any gradient is an error, too
            return first, math.inf, moved
        if number == 0:
            first = float(trial.tally.loss) / len(batch.labels)
        moved = moved or bool(trial.tally.norm > 0)
        if not moved or trial.tally.not_finite():
            break
    loss = float(trial.tally.loss) / len(batch.labels)
    return first, (loss if math.isfinite(loss) else math.inf), moved
