"""Pure functions of the step: the learning rate as a factor of its peak, and pictures' size; and
how many pictures an epoch has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fieldmark.errors import ConfigError
from fieldmark.settings.spec import call, lookup, parse

Schedule = Callable[[int], float]
SizeAt = Callable[[int], int]


@dataclass(frozen=True)
class Length:
    """How long training is."""

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

    def factor(step: int) -> float:
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

    def factor(step: int) -> float:
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


def build(text: str, *, length: Length, warmup_steps: int = 0) -> Schedule:
    """Build a schedule from its spec; warm-up rises linearly to what the schedule says.

    Raises:
        ConfigError: if there is no such schedule, or its arguments do not fit.
    """
    spec = parse(text, what="schedule")
    schedule = call(spec, lookup(spec, SCHEDULES, what="schedule"), length, what="schedule")
    if warmup_steps <= 0:
        return schedule
    if spec.name == "one_cycle":
        raise ConfigError("one_cycle rises by itself; leave warmup_epochs at 0, or use cosine")
    return lambda step: schedule(step) * min(1.0, (step + 1) / warmup_steps)


def stages(text: str, *, full: int) -> tuple[tuple[float, int], ...]:
    """Read ``24@0.35|28@0.7``: 24 px for the first 35 % of the steps, 28 px up to 70 %, then full.

    Pictures that are smaller at first cost less, and what is learned from them serves the larger
    ones. The result is (share at which it ends, size) for each stage but the last, the full one;
    ``none`` has no such stage.

    Raises:
        ConfigError: if it is not of that form, shares do not rise, or a size is not below ``full``
            (which is not known yet where it is 0).
    """
    found: list[tuple[float, int]] = []
    for part in [] if text.strip() in ("", "none") else text.split("|"):
        form = _STAGE.fullmatch(part)
        if form is None:
            raise ConfigError(
                f"progressive {text!r}: {part!r} is not of the form SIZE@SHARE; "
                "accepted is such as 24@0.35|28@0.7, or none"
            )
        size, share = int(form.group(1)), float(form.group(2))
        if not (found[-1][0] if found else 0) < share <= 1:
            raise ConfigError(
                f"progressive {text!r}: the share {share:g} is out of order; shares of all steps "
                "rise from above 0 to at most 1"
            )
        if size < 1 or (full and size >= full):
            raise ConfigError(
                f"progressive {text!r}: {size} px is not below the input's {full} px; leave the "
                "stage out, or choose a larger --size"
            )
        found.append((share, size))
    return tuple(found)


def size_at(stages: Sequence[tuple[float, int]], *, full: int, total_steps: int) -> SizeAt:
    """The size of the pictures at a step, a pure function of it, by what :func:`stages` gave."""
    return lambda step: next((size for end, size in stages if step < end * total_steps), full)


@dataclass(frozen=True)
class Hardest:
    """Epochs that train on the pictures with the highest losses only; :func:`hardest` reads it."""

    share: float = 1.0
    after: int = 0
    """Epochs that train on all pictures first."""

    def count(self, pictures: int, epoch: int) -> int:
        """Pictures of the epoch after ``epoch`` finished ones, of so many that there are."""
        return pictures if epoch < self.after else math.ceil(self.share * pictures)


ALL_PICTURES = Hardest()


def hardest(text: str) -> Hardest:
    """Read ``0.75@3``: from the fourth epoch on the hardest 75 % of the pictures; ``none`` is all.

    Raises:
        ConfigError: if it is not of that form, or the share is not above 0 and below 1.
    """
    if text.strip() in ("", "none"):
        return ALL_PICTURES
    form = _HARDEST.fullmatch(text)
    if form is None or not 0 < float(form.group(1)) < 1 or int(form.group(2)) < 1:
        raise ConfigError(
            f"hardest {text!r} is not of the form SHARE@EPOCHS, with a share between 0 and 1 "
            "and at least 1 epoch; accepted is such as 0.75@3, or none"
        )
    return Hardest(float(form.group(1)), int(form.group(2)))


_HARDEST = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)@(\d{1,6})\s*")
_STAGE = re.compile(r"\s*(\d{1,4})@(\d+(?:\.\d+)?|\.\d+)\s*")


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; 0 to 1 is accepted")


def _share(step: int, length: Length) -> float:
    return min(1.0, step / max(1, length.total_steps))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
