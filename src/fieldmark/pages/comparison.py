"""What a comparison found: figures, verdicts, and the table and page that tell them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fieldmark.files.csv_text import encode_csv
from fieldmark.names import shown
from fieldmark.pages import figures
from fieldmark.pages.html import duration, embedded, plain, templates
from fieldmark.scoring import significance
from fieldmark.scoring.significance import Accuracy, Difference

_PANELS: tuple[figures.Panel, ...] = ("accuracy", "loss")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one run gave."""

    run: str
    """Its folder."""
    seed: int
    epochs: int
    """Epochs that were trained; early stopping may make them fewer than planned."""
    best_epoch: int
    """The epoch whose weights were kept, chosen on the validation split."""
    train_accuracy: float | None
    """In that epoch, on augmented pictures while the weights changed."""
    val_accuracy: float
    test_accuracy: float | None
    seconds: float
    """Training and validation."""
    images_per_second: float
    """Training pictures a second, median of the epochs."""
    memory: int | None
    """Largest number of bytes in use while it trained; see ``comparing.py``."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model, or a point of a grid of settings, with its runs."""

    name: str
    spec: str
    weights: str
    """What training started from."""
    num_params: int
    flops: int
    """FLOPs of a forward pass of one picture; a multiplication and an addition are two."""
    accuracy: Accuracy
    """On the split that is compared."""
    runs: tuple[Trained, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    """The varied settings, each with its value here."""

    def mean(self, name: str) -> float | None:
        """Mean of one of the runs' figures; None if a run lacks it."""
        values = [getattr(run, name) for run in self.runs]
        return None if None in values else statistics.fmean(values)

    @property
    def images_per_second(self) -> float:
        """Median of the runs: the first one in a process warms up."""
        return statistics.median(run.images_per_second for run in self.runs)

    @property
    def memory(self) -> int | None:
        """The least of the runs' peaks: what earlier runs left behind only adds to later ones."""
        return min((run.memory for run in self.runs if run.memory is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        value = dataclasses.asdict(self)
        runs = value.pop("runs")
        if not self.values:  # as before settings could be varied
            del value["values"]
        for name in ("train_accuracy", "val_accuracy", "seconds"):
            value[name] = self.mean(name)
        return {
            **value,
            "images_per_second": self.images_per_second,
            "memory": self.memory,
            "runs": list(runs),
        }


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models, and whether one is better."""

    first: str
    second: str
    difference: Difference
    """First minus second."""
    corrected: float
    """p corrected for the number of pairs (Holm)."""

    @property
    def differs(self) -> bool:
        """Whether a difference is shown."""
        return self.corrected < significance.LEVEL

    @property
    def verdict(self) -> str:
        """The result in words."""
        d, first, second = self.difference, shown(self.first), shown(self.second)
        p = "p < 0.0001" if self.corrected < 1e-4 else f"p = {self.corrected:.2g}"
        if not self.differs:
            return (
                f"{first} and {second}: no difference shown (difference {_points(d.value)} points, "
                f"95 % interval {_points(d.low)} to {_points(d.high)}, {p})"
            )
        low, high = (d.low, d.high) if d.value > 0 else (-d.high, -d.low)
        better, worse = (first, second) if d.value > 0 else (second, first)
        return (
            f"{better} is better than {worse} by {100 * abs(d.value):.2f} points "
            f"(95 % interval {_points(low)} to {_points(high)}, {p})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "first": self.first,
            "second": self.second,
            **dataclasses.asdict(self.difference),
            "p_corrected": self.corrected,
            "differs": self.differs,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, kw_only=True)
class Level:
    """One value of what varies, over the rest of the grid."""

    name: str
    accuracy: Accuracy
    """Mean over the rest of the grid."""


@dataclass(frozen=True, kw_only=True)
class Marginal:
    """One thing that varies, by itself: means over the rest of the grid."""

    setting: str
    levels: tuple[Level, ...]
    pairs: tuple[Pair, ...]
    """Every two of the values, on the same pictures."""
    higher: tuple[int, ...]
    """Of each pair: with how many settings of the rest the first had the higher accuracy."""
    lower: tuple[int, ...]
    """With how many it had the lower one."""
    rest: int
    """How many there are."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "setting": self.setting,
            "rest": self.rest,
            "values": [dataclasses.asdict(level) for level in self.levels],
            "pairs": [
                {**pair.to_json(), "higher": higher, "lower": lower}
                for pair, higher, lower in zip(self.pairs, self.higher, self.lower, strict=True)
            ],
        }

    def lines(self) -> list[str]:
        """As text: the means, then every pair."""
        means = "; ".join(
            f"{shown(level.name)} {_percent(level.accuracy.mean)}" for level in self.levels
        )
        return [
            f"{self.setting}, mean over the rest of the grid ({self.rest} each): {means}",
            *(f"  {text}" for text in self.verdicts()),
        ]

    def verdicts(self) -> list[str]:
        """Of every pair, with how many settings of the rest it holds."""
        return [
            f"{pair.verdict}; {shown(pair.first)} is higher with {higher} and lower with {lower} "
            f"of the {self.rest}"
            for pair, higher, lower in zip(self.pairs, self.higher, self.lower, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result."""

    path: Path
    data: str
    """Name of the data set."""
    part: str
    """The split that is compared: test, or val where there is no test split."""
    n: int
    """Its pictures."""
    seeds: int
    recipe: str
    models: tuple[Candidate, ...]
    """In the order given."""
    pairs: tuple[Pair, ...]
    """Every two of them."""
    settings: Mapping[str, Any]
    """Settings that all runs share."""
    differing: Mapping[str, tuple[str, ...]]
    """Settings in which models differ: the value of each model."""
    notes: tuple[str, ...]
    """What must be known before believing the figures."""
    varied: tuple[str, ...] = ()
    """The settings that vary; none where models alone are compared."""
    marginals: tuple[Marginal, ...] = ()
    """Each thing that varies by itself, where there are several."""

    @property
    def each(self) -> str:
        """What is compared, in a word."""
        return "candidate" if self.varied else "model"

    def table(self) -> list[str]:
        """The result as lines of text."""
        rows = [self.columns(), *self.cells()]
        widths = [max(map(figures.columns, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                _pad(cell, width, left=i == 0)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        names = [shown(model.name) for model in self.models]
        differing = "; ".join(
            f"{key}: " + ", ".join(map(" ".join, zip(names, values, strict=True)))
            for key, values in self.differing.items()
            if key not in self.varied
        )
        return [
            *lines,
            "",
            *(line for marginal in self.marginals for line in [*marginal.lines(), ""]),
            *(pair.verdict for pair in self.pairs),
            "",
            *self.explanation(),
            *([f"settings that differ: {differing}"] if differing else []),
            *(f"note: {note}" for note in self.notes),
        ]

    def columns(self) -> list[str]:
        """The table's heads."""
        part = "test" if self.part == "test" else "validation"
        return [
            self.each,
            "train",
            "val",
            f"{part} ± std" if self.seeds > 1 else part,
            "95 % interval",
            "epochs (best)",
            "parameters",
            "FLOPs",
            "images/s",
            "time",
            "memory",
        ]

    def cells(self) -> list[list[str]]:
        """The table's rows."""
        return [
            [
                shown(model.name),
                _percent(model.mean("train_accuracy")),
                _percent(model.mean("val_accuracy")),
                _percent(model.accuracy.mean)
                + ("" if model.accuracy.std is None else f" ± {100 * model.accuracy.std:.2f}"),
                f"{_percent(model.accuracy.low)} to {_percent(model.accuracy.high)}",
                _epochs(model.runs),
                f"{model.num_params:,}",
                _magnitude(model.flops),
                f"{model.images_per_second:,.0f}",
                duration(model.mean("seconds") or 0.0),
                "–" if model.memory is None else f"{model.memory / 2**20:,.0f} MiB",
            ]
            for model in self.models
        ]

    def explanation(self) -> list[str]:
        """What the columns and the tests mean."""
        part = "test" if self.part == "test" else "validation"
        if self.seeds > 1:
            chance = (
                f"Figures are means over {self.seeds} seeds, ± their standard deviation. "
                "Intervals and tests cover both chances: other seeds, and other pictures than "
                f"these {self.n:,} {part} pictures."
            )
        else:
            chance = (
                f"One seed each: intervals (Wilson) and tests (McNemar) cover other pictures than "
                f"these {self.n:,} {part} pictures, and not what other seeds would give."
            )
        pairs = (
            f"p is corrected for {len(self.pairs)} pairs (Holm); the interval of a difference is "
            "that of its pair alone."
        )
        rest = (
            "train is the kept epoch's accuracy on augmented pictures while the weights changed; "
            "FLOPs are those of one picture forward, time is that of a run's training and "
            "validation, memory the most that the process held, or on a GPU that torch used."
        )
        grid = (
            "A mean over the rest of the grid is that of its own other settings, and says nothing "
            "of settings that are not in it; where a value is higher with some of them and lower "
            "with others, look at the candidates instead. p is corrected for all "
            f"{self._marginal} pairs of means."
            + (
                ""
                if self.seeds > 1
                else " How a difference changes over the rest stands in for other seeds."
            )
        )
        told = [chance, pairs, rest] if len(self.pairs) > 1 else [chance, rest]
        return [*told, grid] if self.marginals else told

    @property
    def _marginal(self) -> int:
        return sum(len(marginal.pairs) for marginal in self.marginals)

    def csv(self) -> bytes:
        """One row a candidate; figures unrounded, for a spreadsheet."""
        names = ("candidate", "model", *(f"set_{key}" for key in self.varied))
        columns = (
            *(names if self.varied else ("model",)),
            "train_accuracy", "val_accuracy", f"{self.part}_accuracy_mean",
            f"{self.part}_accuracy_std", "low", "high", f"{self.part}_pictures", "seeds", "epochs",
            "parameters", "flops", "images_per_second", "seconds", "memory_bytes",
        )  # fmt: skip
        rows = [
            (
                m.name, *([m.spec, *m.values.values()] if self.varied else []),
                m.mean("train_accuracy"), m.mean("val_accuracy"), m.accuracy.mean,
                m.accuracy.std, m.accuracy.low, m.accuracy.high, self.n, self.seeds,
                m.mean("epochs"), m.num_params, m.flops, m.images_per_second,
                m.mean("seconds"), m.memory,
            )
            for m in self.models
        ]  # fmt: skip
        return encode_csv(columns, rows)

    def page(self, curves: Sequence[tuple[str, Sequence[figures.Records]]]) -> str:
        """The page, from the same figures and the epochs of every run."""
        missing: list[str] = []
        charts = [
            embedded(
                figures.convergence(curves, panel=panel, missing=missing),
                f"{panel.capitalize()} of every {self.each} by epoch, for training and validation",
            )
            for panel in _PANELS
        ]
        runs = [run.run for model in self.models for run in model.runs]
        return (
            templates()
            .get_template("compare.html.j2")
            .render(
                title=self.data,
                subtitle=f"{len(self.models)} {self.each}s, {self.seeds} "
                f"seed{'s' if self.seeds > 1 else ''} each, recipe {self.recipe}",
                notes=self.notes,
                comparison=self,
                charts=charts,
                links={run: quote(f"{run}/report.html") for run in runs},
                settings=[(key, plain(value)) for key, value in self.settings.items()],
                undrawn=" ".join(f"{char} (U+{ord(char):04X})" for char in missing[:200]),
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Every figure and every pair, as plain values."""
        grid = {
            "varied": list(self.varied),
            "marginals": [marginal.to_json() for marginal in self.marginals],
        }
        return {
            "part": self.part,
            "n": self.n,
            "models": [model.to_json() for model in self.models],
            "pairs": [pair.to_json() for pair in self.pairs],
            "settings": dict(self.settings),
            "differing": {key: list(values) for key, values in self.differing.items()},
            "notes": list(self.notes),
            **(grid if self.varied else {}),
        }


def _pad(text: str, width: int, *, left: bool) -> str:
    """To a width on the screen, where a Chinese character takes two columns."""
    space = " " * (width - figures.columns(text))
    return text + space if left else space + text


def _percent(value: float | None) -> str:
    """Two decimals, and never 100 for something that is less."""
    if value is None:
        return "–"
    return f"{100 * value if value == 1 else min(99.99, 100 * value):.2f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _magnitude(value: int) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return str(value)


def _epochs(runs: Sequence[Trained]) -> str:
    """How many were trained and, in brackets, which were kept, seed by seed."""
    trained = ", ".join(map(str, dict.fromkeys(run.epochs for run in runs)))
    return f"{trained} ({', '.join(str(run.best_epoch) for run in runs)})"
