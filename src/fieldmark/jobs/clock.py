"""``--minutes``: the wall time of a job, and where a training has to be shortened to end within it.

A training that is too long for the time *lands*: it goes through the rest of its learning-rate
schedule faster (the setting ``landing``), so that it ends trained, not cut off. The setting is in
the run's ``config.json``: a repeat needs no clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from fieldmark.fit.loop import Plan
from fieldmark.fit.state import TrainState
from fieldmark.settings.resolved import Landing

NOTED = 5.0
"""Seconds after which the time used is written down again: a kill costs no more of it."""
REPORT = 7.0
"""Seconds that figures and report take, at most, on a slow machine."""
FORWARD = 1 / 3
"""Share of a training step's time that a picture's forward pass takes."""
SPARE = 0.03
"""Share of the time left that is kept for what slows down."""
FIRST_LOOK = 0.05
"""Share of the time left after which a training's speed is known well enough."""


class Clock:
    """The time of a job: how much there is, and how much is used, by earlier processes too."""

    def __init__(self, minutes: float | None, *, before: float = 0.0) -> None:
        self.minutes = minutes
        """None where it is not limited: then nothing is decided by the clock."""
        self._before = before
        self._begin = time.monotonic()
        self._noted = self._begin
        self.note: Callable[[], None] = lambda: None
        """Writes down the time used."""

    @property
    def used(self) -> float:
        """Seconds."""
        return self._before + time.monotonic() - self._begin

    @property
    def left(self) -> float:
        """Seconds; negative when there was not enough, infinite where it is not limited."""
        return math.inf if self.minutes is None else 60 * self.minutes - self.used

    def tick(self) -> None:
        """Write down the time used, if that was a while ago."""
        if time.monotonic() - self._noted >= NOTED:
            self._noted = time.monotonic()
            self.note()


@dataclass
class Pace:
    """A training's speed, and whether it ends in time at that speed."""

    clock: Clock
    validation: int
    """Pictures that are validated after each epoch."""
    scored: int
    """Pictures, times their views, that are scored at the end."""
    batch_size: int

    def __post_init__(self) -> None:
        self._steps, self._seconds, self._validating = 0, 0.0, 0.0
        self._last: float | None = None
        self._look = FIRST_LOOK * max(0.0, self.clock.left)

    def step(self) -> None:
        """Take note of a step that was finished just now."""
        now = time.monotonic()
        if self._last is not None:
            self._seconds += now - self._last
            self._steps += 1
        self._last = now

    def epoch(self) -> None:
        """Take note of an epoch that was finished and validated just now."""
        now = time.monotonic()
        if self._last is not None:
            self._validating = now - self._last
        self._last = now

    @property
    def ending(self) -> float:
        """Seconds that scores and the report will take."""
        return REPORT + self.scored * self._forward

    @property
    def _forward(self) -> float:
        """Seconds of a picture's forward pass."""
        if self._validating:
            return self._validating / max(1, self.validation)
        return FORWARD * self._seconds / max(1, self._steps) / self.batch_size

    def landing(self, state: TrainState, plan: Plan) -> Landing | None:
        """Where to shorten a training that is at this step; None if it ends in time."""
        end = plan.total_steps if plan.last_step is None else plan.last_step
        if not self._steps or self._seconds < self._look or state.step >= end - 1:
            return None  # the last step is not shortened
        validation = self._validating or self.validation * self._forward
        one = self._seconds / self._steps + validation * plan.epochs / plan.total_steps
        left = self.clock.left - self.ending
        if (end - state.step) * one <= left:
            return None
        possible = int(((1 - SPARE) * left - validation) / one)
        # The pictures of the next step are read anew; whether this suffices is seen after a while.
        self._last, self._look = None, self._seconds + FIRST_LOOK * max(0.0, left)
        return Landing(state.step, min(end - 1, state.step + max(1, possible)))
