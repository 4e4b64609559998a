"""Learning-rate range test: raise the rate step by step and watch the loss.

Source: Smith, Cyclical learning rates for training neural networks, 2015, section 3.3. The
suggestion is the rate where the smoothed loss falls fastest, as in fastai's "steep".
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from fieldmark.errors import DivergedError
from fieldmark.fit.callbacks import Control
from fieldmark.fit.loop import BatchSource, Plan, _step, choose_trained
from fieldmark.fit.state import Tally, TrainState

_LOW, _HIGH = 1e-6, 10.0


@dataclass(frozen=True)
class LrCurve:
    """The result of the test."""

    lrs: list[float]
    losses: list[float]
    """Smoothed loss of each step."""
    suggestion: float


def find_lr(state: TrainState, source: BatchSource, plan: Plan, *, steps: int = 100) -> LrCurve:
    """Train a copy for ``steps`` steps with rates from 1e-6 to 10; the state is left as it was."""
    ratio = _HIGH / _LOW
    trial = copy.deepcopy(state)
    trial.ema, trial.epoch, trial.step, trial.control = None, 0, 0, Control()
    plan = dataclasses.replace(
        plan, lr=1.0, schedule=lambda step: _LOW * ratio ** (step / (steps - 1))
    )
    choose_trained(trial, plan)
    lrs: list[float] = []
    losses: list[float] = []
    average, epoch = 0.0, 0
    while len(lrs) < steps:
        for batch in source.epoch(epoch):
            trial.tally = Tally.empty(plan.device.torch_device)
            try:
                _step(trial, batch, plan)
            except DivergedError:
                return _curve(lrs, losses)
            average = 0.9 * average + 0.1 * float(trial.tally.loss) / trial.tally.seen
            smooth = average / (1 - 0.9 ** (len(lrs) + 1))
            if not math.isfinite(smooth) or (losses and smooth > 4 * min(losses)):
                return _curve(lrs, losses)
            lrs.append(trial.control.lr)
            losses.append(smooth)
            if len(lrs) == steps:
                break
        epoch += 1
    return _curve(lrs, losses)


def _curve(lrs: list[float], losses: list[float]) -> LrCurve:
    """Find the steepest descent between the start and the lowest point."""
    if len(lrs) < 8:
        raise DivergedError(
            f"the loss left all bounds after {len(lrs)} steps, at a rate of "
            f"{lrs[-1] if lrs else _LOW:.3g}; the pictures or weights may be broken"
        )
    low = max(int(np.argmin(losses)), 4)
    slope = np.gradient(np.array(losses[: low + 1]), np.log(np.array(lrs[: low + 1])))
    return LrCurve(lrs, losses, lrs[int(np.argmin(slope))])
