"""Pure functions of the step: the learning rate as a factor of its peak, the size of pictures, and
where on its schedule a shortened training is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fieldmark.errors import ConfigError
from fieldmark.settings.resolved import Landing, Stage
from fieldmark.settings.spec import Spec, call, lookup, parse

Schedule = Callable[[float], float]
"""The factor of the peak rate at a place of the schedule, in steps."""
SizeAt = Callable[[float], int]


@dataclass(frozen=True)
class Length:
    """The length of training, in steps and epochs."""

    total_steps: int
    steps_per_epoch: int


def constant(length: Length) -> Schedule:
    """The peak rate throughout."""
    del length
    return lambda step: 1.0


def cosine(length: Length, final: float = 0.0) -> Schedule:
    """Half a cosine from 1 to ``final``."""
    _check_shares(final=final)
    return lambda step: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * _share(step, length)))


def one_cycle(
    length: Length, rise: float = 0.3, start: float = 0.04, final: float = 0.0001
) -> Schedule:
    """Up along a cosine from ``start`` for the share ``rise`` of all steps, then down to ``final``.

    Source: Smith and Topin, Super-convergence, 2017; ``rise`` and ``start`` as in torch's
    OneCycleLR, whose ``final`` is 0.000004.
    """
    if not 0 < rise < 1:
        raise ValueError(f"rise is {rise}; a share between 0 and 1 is accepted")
    _check_shares(start=start, final=final)

    def factor(step: float) -> float:
        share = _share(step, length)
        if share < rise:
            return _between(start, 1.0, share / rise)
        return _between(1.0, final, (share - rise) / (1 - rise))

    return factor


def linear(length: Length, final: float = 0.0) -> Schedule:
    """A straight line from 1 to ``final``."""
    _check_shares(final=final)
    return lambda step: 1 - (1 - final) * _share(step, length)


def step(length: Length, epochs: int = 30, factor: float = 0.1) -> Schedule:
    """Times ``factor`` after every ``epochs`` epochs."""
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; at least 1 is accepted")
    _check_shares(factor=factor)
    return lambda step: float(factor ** (step // (epochs * length.steps_per_epoch)))


def piecewise(length: Length, factors: dict[int, float]) -> Schedule:
    """``{80: 0.1, 120: 0.01}``: the factor that holds from each epoch on; 1 before the first.

    Keras's PiecewiseConstantDecay counts steps and changes after a boundary: epoch e is its
    boundary ``e * steps_per_epoch - 1``.
    """
    if not isinstance(factors, dict) or not factors:
        raise ValueError("a mapping of epochs to factors is needed, such as {80: 0.1, 120: 0.01}")
    if not all(isinstance(e, int) and e >= 0 for e in factors) or not all(
        isinstance(f, int | float) and f >= 0 for f in factors.values()
    ):
        raise ValueError(f"{factors!r} must map epochs (whole numbers) to factors (0 or more)")
    points = sorted(factors.items())

    def factor(step: float) -> float:
        epoch = step // length.steps_per_epoch
        passed = [value for start, value in points if epoch >= start]
        return float(passed[-1]) if passed else 1.0

    return factor


def exponential_decay(
    length: Length, steps: int = 1000, rate: float = 0.96, staircase: bool = False
) -> Schedule:
    """``rate ** (step / steps)``; whole powers with ``staircase``. Keras's ExponentialDecay."""
    del length
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least 1 is accepted")
    _check_shares(rate=rate)
    if staircase:
        return lambda step: float(rate ** (step // steps))
    return lambda step: float(rate ** (step / steps))


def inverse_time(length: Length, rate: float) -> Schedule:
    """``1 / (1 + rate * step)``. Keras's InverseTimeDecay, and ``decay=`` of its old optimizers."""
    del length
    if rate < 0:
        raise ValueError(f"rate is {rate}; 0 or more is accepted, such as 1e-4")
    return lambda step: 1 / (1 + rate * step)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "linear": linear,
    "step": step,
    "piecewise": piecewise,
    "exponential_decay": exponential_decay,
    "inverse_time": inverse_time,
}


def build(schedule: str | Spec, *, length: Length, warmup_steps: int = 0) -> Schedule:
    """Build a schedule from its spec; warm-up rises linearly to what the schedule says.

    Raises:
        ConfigError: if there is no such schedule, or its arguments do not fit.
    """
    spec = parse(schedule, what="schedule")
    factor = call(spec, lookup(spec, SCHEDULES, what="schedule"), length, what="schedule")
    if warmup_steps <= 0:
        return factor
    if spec.name == "one_cycle":
        raise ConfigError("one_cycle rises by itself; leave warmup_epochs at 0, or use cosine")
    return lambda step: factor(step) * min(1.0, (step + 1) / warmup_steps)


def landed(landings: Sequence[Landing], *, total_steps: int) -> Callable[[int], float]:
    """Return the place on a schedule of ``total_steps`` that a step has in a shortened training.

    From a landing on the rest of the schedule is gone through evenly, so that the training's end
    is the schedule's.
    """

    def place(step: int) -> float:
        begin, at, pace = 0, 0.0, 1.0
        for each in landings:
            if step < each.step:
                break
            at += (each.step - begin) * pace
            begin, pace = each.step, (total_steps - at) / (each.end - each.step)
        return at + (step - begin) * pace

    return place


def check_stages(stages: Sequence[Stage], *, full: int) -> None:
    """Refuse a stage that is not smaller than the network's input.

    Raises:
        ConfigError: naming its size.
    """
    for stage in stages:
        if stage.size >= full:
            raise ConfigError(
                f"progressive {stage.size}@{stage.until:g}: {stage.size} px is not below the "
                f"input's {full} px; leave the stage out, or choose a larger --size"
            )


def size_at(stages: Sequence[Stage], *, full: int, total_steps: int) -> SizeAt:
    """Return the size of the pictures at a step, a pure function of the step."""
    return lambda step: next((s.size for s in stages if step < s.until * total_steps), full)


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; 0 to 1 is accepted")


def _share(step: float, length: Length) -> float:
    return min(1.0, step / max(1, length.total_steps))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
