"""Contenders in turn, round after round, and what follows from the rounds.

Timings of one machine drift, so contenders are interleaved (A B C, A B C, ...) and compared within
a round: what is reported is the median of the ratios and their spread, not the ratio of two
medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import Need, lacks
from benchmarks.processes import Failed, Missing

Figures = dict[str, float]
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    repeats: int
    quick: bool = False
    data: Path | None = None
    only: tuple[str, ...] = ()
    """Parts of contenders' names; others are left out."""


@dataclass(frozen=True)
class Measured:
    """What one contender gave in one round."""

    figures: Figures
    """By quantity; the quantity's name says the unit."""
    curve: Curve = field(default_factory=list)
    """Points of something over seconds, where a benchmark draws it."""


@dataclass(frozen=True)
class Contender:
    """Ourselves, a peer, or a bound of the machine."""

    name: str
    measure: Callable[[int], Measured]
    """Takes the number of the round."""
    needs: tuple[Need, ...] = ()
    """What a machine must have; on one that lacks it this is left out, and the table says why."""


@dataclass(frozen=True)
class Round:
    """What the contenders gave one after the other."""

    measured: dict[str, Measured]

    def of(self, contender: str, quantity: str) -> float:
        """A figure of this round; KeyError if the contender did not give it."""
        return self.measured[contender].figures[quantity]

    def all_of(self, contenders: Iterable[str], quantity: str) -> list[float]:
        """The figure of those that gave it; KeyError if none did."""
        found = [
            self.measured[name].figures[quantity]
            for name in contenders
            if name in self.measured and quantity in self.measured[name].figures
        ]
        if not found:
            raise KeyError(quantity)
        return found


@dataclass(frozen=True)
class Goal:
    """What a finding should be."""

    word: str
    """at least, or at most."""
    value: float

    def met(self, value: float) -> bool:
        """Whether it is."""
        return value >= self.value if self.word == "at least" else value <= self.value


def at_least(value: float) -> Goal:
    """More is better."""
    return Goal("at least", value)


def at_most(value: float) -> Goal:
    """Less is better."""
    return Goal("at most", value)


@dataclass(frozen=True)
class Finding:
    """A ratio (or difference) of figures of one round; a round that lacks one of them has none."""

    what: str
    compute: Callable[[Round], float]
    goal: Goal | None = None
    unit: str = "x"
    by: Literal["median", "mean"] = "median"
    """What stands for all rounds, and is held against the goal."""
    needs: tuple[Need, ...] = ()
    """What a machine must have for the goal to make sense."""


@dataclass(frozen=True)
class Benchmark:
    """What is to be measured, and what is to be said of it."""

    contenders: Sequence[Contender]
    findings: Sequence[Finding]
    remarks: Sequence[str] = ()
    """What a reader of the table must know of this run, such as a peer that was left out."""


class Skipped(Exception):  # noqa: N818 - nothing is wrong with the benchmark
    """There is nothing to measure yet; the message says what is missing."""


@dataclass
class Results:
    """Rounds so far, and why a contender gave none."""

    rounds: list[Round]
    errors: dict[str, str]


def interleave(
    contenders: Sequence[Contender],
    repeats: int,
    *,
    results: Results,
    after: Callable[[Results], None],
    say: Callable[[str], None],
) -> None:
    """Measure every contender once a round, and tell ``after`` whenever there is something new.

    What ``results`` holds already is not measured again. A contender that fails is left out of the
    rounds that follow; it may be asked again by another call.
    """
    out: set[str] = set()
    for number in range(repeats):
        if number == len(results.rounds):
            results.rounds.append(Round({}))
        done = results.rounds[number].measured
        for contender in contenders:
            if contender.name in done or contender.name in out:
                continue
            if lacking := lacks(contender.needs):
                out.add(contender.name)
                results.errors[contender.name] = f"skipped: {lacking}"
                say(f"{contender.name}: skipped: {lacking}")
                continue
            say(f"round {number + 1}/{repeats}: {contender.name}")
            try:
                done[contender.name] = contender.measure(number)
                results.errors.pop(contender.name, None)
                say(
                    "  "
                    + ", ".join(f"{k} {v:.4g}" for k, v in done[contender.name].figures.items())
                )
            except (Missing, Failed) as error:
                out.add(contender.name)
                results.errors[contender.name] = str(error)
                say(f"  {error}")
            after(results)
    after(results)


def conclude(findings: Sequence[Finding], rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """The findings with their value in every round that has one, as plain values."""
    concluded: list[dict[str, Any]] = []
    for finding in findings:
        values = []
        for one in rounds:
            try:
                values.append(finding.compute(one))
            except KeyError:
                continue
        lacking = lacks(finding.needs)
        goal = None if lacking else finding.goal
        average = statistics.fmean if finding.by == "mean" else statistics.median
        middle = average(values) if values else None
        concluded.append(
            {
                "what": finding.what,
                "unit": finding.unit,
                "values": values,
                finding.by: middle,
                "goal": None if goal is None else f"{goal.word} {goal.value:g}",
                "met": None if goal is None or middle is None else goal.met(middle),
                "lacks": lacking,
            }
        )
    return concluded


def figure(
    what: str,
    contender: str,
    quantity: str,
    *,
    goal: Goal | None = None,
    unit: str = "",
    by: Literal["median", "mean"] = "median",
    needs: tuple[Need, ...] = (),
) -> Finding:
    """One contender's figure as it is."""
    return Finding(what, lambda one: one.of(contender, quantity), goal, unit, by, needs)


def ratio(
    top: str,
    bottom: str,
    quantity: str,
    *,
    goal: Goal | None = None,
    needs: tuple[Need, ...] = (),
) -> Finding:
    """One contender's figure over another's."""
    return Finding(
        f"{quantity}: {top} over {bottom}",
        lambda one: one.of(top, quantity) / one.of(bottom, quantity),
        goal,
        needs=needs,
    )
