"""What follows from the league's rows: a line for every set, and the findings with their goals."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.league.methods import DEFAULT, LABELS
from benchmarks.league.methods import METHODS as METHODS
from benchmarks.league.rows import Row, read
from benchmarks.league.sets import SETS
from benchmarks.measure import Goal, at_least
from benchmarks.tables import about, rounded, table

OLD = "old default"
BEST_RECIPE, BEST_PEER = "best single recipe", "best peer"
POINT = 0.01
SLACK = 1e-9
"""Below what a difference of two shares of pictures can be, above what rounding makes of them."""


@dataclass(frozen=True)
class Score:
    """A method on the subsets of a set."""

    name: str
    accuracy: float
    """Mean over the subsets."""
    n: int
    """Different test pictures."""
    low: float
    high: float
    seconds: float
    """Mean over the subsets."""
    cpu_s: float
    """Mean processor time."""


@dataclass(frozen=True)
class Standing:
    """The default on a set, and what it is held against, all on the same subsets."""

    set: str
    subsets: int
    default: Score
    recipe: Score | None
    peer: Score | None
    old: Score | None

    def gain(self, other: Score | None) -> float | None:
        """The default's accuracy less another's."""
        return None if other is None else self.default.accuracy - other.accuracy

    @property
    def beats_peer(self) -> bool:
        """Whether the default is better than the best peer, in no more processor time."""
        gain = self.gain(self.peer)
        if gain is None or self.peer is None:
            return False
        return gain > SLACK and self.default.cpu_s <= self.peer.cpu_s


def standings(rows: Sequence[Row]) -> list[Standing]:
    """One for each set on which the default was measured, in the order of the table of sets."""
    by_set: dict[str, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if not row.error:
            by_set[row.set][row.method][row.subset] = row
    kinds = {method.name: method.kind for method in METHODS}
    found = []
    for name in SETS:
        of_default = by_set[name].get(DEFAULT)
        if not of_default:
            continue
        whole = {  # what has a score on every subset that the default has one on
            method: _score(method, [of_each[number] for number in sorted(of_default)])
            for method, of_each in by_set[name].items()
            if of_default.keys() <= of_each.keys()
        }
        best = {
            kind: max(
                (score for method, score in whole.items() if kinds.get(method) == kind),
                key=lambda score: (score.accuracy, -score.seconds),
                default=None,
            )
            for kind in ("recipe", "peer")
        }
        found.append(
            Standing(
                name,
                len(of_default),
                whole[DEFAULT],
                best["recipe"],
                best["peer"],
                _old(of_default, by_set[name]),
            )
        )
    return found


def _old(of_default: Mapping[int, Row], methods: Mapping[str, Mapping[int, Row]]) -> Score | None:
    """What the old default reaches: on each subset the recipe that it takes there."""
    try:
        rows = [methods[row.old_default][number] for number, row in sorted(of_default.items())]
    except KeyError:
        return None
    return _score(", ".join(sorted({row.method for row in rows})), rows)


def _score(name: str, rows: Sequence[Row]) -> Score:
    from fieldmark.scoring.metrics import wilson

    accuracy = statistics.fmean(row.accuracy for row in rows)
    n = min(sum(row.n for row in rows), max(row.pool for row in rows))
    low, high = wilson(round(accuracy * n), n)
    seconds, cpu_s = (
        statistics.fmean(getattr(row, each) for row in rows) for each in ("seconds", "cpu_s")
    )
    return Score(name, accuracy, n, low, high, seconds, cpu_s)


def section(values: Sequence[Mapping[str, Any]]) -> str:
    """The tables of each kind of machine; too wide for side by side, they follow one another."""
    return "\n".join(map(_of_kind, values))


def _of_kind(value: Mapping[str, Any]) -> str:
    rows = read(dict(value))
    found = standings(rows)
    lines = [about(value), _by_set(found), _findings(found), _every(rows)]
    lines += [f"- {name}: skipped: {reason}\n" for name, reason in value["skipped"].items()]
    return "\n".join(line for line in lines if line)


def _by_set(found: Sequence[Standing]) -> str:
    columns = ["set", "subsets", DEFAULT, BEST_RECIPE, "less it", BEST_PEER, "less it", OLD]
    return table(
        [*columns, "less it"],
        [
            [
                one.set,
                str(one.subsets),
                _with_interval(one.default),
                *(
                    cell
                    for other in (one.recipe, one.peer, one.old)
                    for cell in (_named(other), _points(one.gain(other)))
                ),
            ]
            for one in found
        ],
    )


def _with_interval(score: Score) -> str:
    interval = f"{score.low:.3f} to {score.high:.3f}, n = {score.n}"
    return f"**{score.accuracy:.3f}** ({interval}), {_seconds(score)}"


def _named(score: Score | None) -> str:
    if score is None:
        return "not measured"
    return f"{LABELS.get(score.name, score.name)} {score.accuracy:.3f}, {_seconds(score)}"


def _seconds(score: Score) -> str:
    wall, cpu = (rounded(float(f"{each:.3g}")) for each in (score.seconds, score.cpu_s))
    return f"{wall} s (processor {cpu} s)" if score.cpu_s else f"{wall} s"


def _points(gain: float | None) -> str:
    return "" if gain is None else f"{100 * gain:+.1f}"


def _findings(found: Sequence[Standing]) -> str:
    gains = {
        f"{DEFAULT} less {what}, the worst of the sets, points": [
            (one.set, gain)
            for one in found
            if (gain := one.gain({BEST_RECIPE: one.recipe, OLD: one.old}[what])) is not None
        ]
        for what in (BEST_RECIPE, OLD)
    }
    rows = [
        _finding(
            what,
            min((100 * gain for _, gain in each), default=None),
            len(each),
            at_least(-100 * POINT),
            [name for name, gain in each if gain < -POINT - SLACK],
        )
        for what, each in gains.items()
    ]
    against = [one for one in found if one.peer is not None]
    share = sum(one.beats_peer for one in against) / len(against) if against else None
    rows.append(
        _finding(
            f"share of the sets where the {DEFAULT} beats the {BEST_PEER} in no more processor "
            "time",
            share,
            len(against),
            at_least(0.9),
            [_how_not(one) for one in against if not one.beats_peer],
        )
    )
    return table(["finding", "value", "sets", "goal", "", "not on"], rows)


def _how_not(one: Standing) -> str:
    gain = one.gain(one.peer) or 0.0
    why = "equal" if abs(gain) <= SLACK else "worse" if gain < 0 else "slower"
    return f"{one.set} ({why})"


def _finding(
    what: str, value: float | None, sets: int, goal: Goal, where: Sequence[str]
) -> list[str]:
    met = "" if value is None else "met" if goal.met(value + SLACK) else "missed"
    shown = "not measured" if value is None else rounded(value)
    return [what, shown, str(sets), f"{goal.word} {goal.value:g}", met, ", ".join(where)]


def _every(rows: Sequence[Row]) -> str:
    """Every method on every set: mean accuracy and seconds, or why there is none."""
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.set, row.method].append(row)
    names = [method.name for method in METHODS]
    measured = [name for name in SETS if any((name, method) in cells for method in names)]
    return table(
        ["every method", *(LABELS.get(name, name) for name in names)],
        [[name, *(_cell(cells[name, method]) for method in names)] for name in measured],
    )


def _cell(rows: Sequence[Row]) -> str:
    scored = [row for row in rows if not row.error]
    if scored:
        score = _score("", scored)
        missing = f" ({len(scored)} of {len(rows)})" if len(scored) < len(rows) else ""
        return f"{score.accuracy:.3f}, {_seconds(score)}{missing}"
    return "; ".join(sorted({row.error.partition(":")[0] for row in rows}))
