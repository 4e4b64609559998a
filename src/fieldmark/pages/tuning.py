"""What a search found: trials, what mattered, what of the gain is luck; table and page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fieldmark.files.csv_text import encode_csv
from fieldmark.names import shown
from fieldmark.pages import figures
from fieldmark.pages.html import duration, embedded, plain, templates
from fieldmark.scoring import significance
from fieldmark.scoring.significance import Difference

ENOUGH = 10
"""Complete trials for each searched setting, from which on importances are worth reading."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial."""

    number: int
    """0 is the default."""
    settings: Mapping[str, Any]
    """The searched settings, those of the default too."""
    state: str
    value: float
    """The monitored metric of the epoch that was kept; NaN if it failed."""
    kept: int
    epochs: int
    """Planned epochs."""
    done: int
    """Epochs that were trained."""
    seconds: float
    at: float
    """Seconds of the search that were used when it ended."""
    why: str


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A trial that was trained again with other seeds."""

    trial: int
    first: float
    """The value that made it a finalist."""
    fresh: tuple[float, ...]
    mean: float
    """Over all seeds; by it the run is chosen."""
    loss: float

    @property
    def again(self) -> float:
        """Mean over the other seeds alone."""
        return sum(self.fresh) / len(self.fresh)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The result of a search."""

    path: Path
    """Its folder."""
    run: Path
    """The run directory of the chosen settings; ``fieldmark.load`` opens it."""
    data: str
    monitor: str
    validation: int
    """Number of validation pictures."""
    seconds: float
    """Time used."""
    space: tuple[tuple[str, str], ...]
    """Each searched setting, and its range or values."""
    rows: tuple[Row, ...]
    chosen: int
    """Number of the trial that became the run."""
    finalists: tuple[Finalist, ...]
    """None where validation is large, or there was no time."""
    difference: tuple[Difference, float] | None
    """Accuracy on validation, chosen less default, and p for as many trials as were looked at;
    None if the default was chosen."""
    importances: Mapping[str, float]
    scores: Mapping[str, tuple[float, float, float, int]]
    """The run's accuracy by split, with its interval and the number of pictures."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The searched settings as the run has them."""
        return self.rows[self.chosen].settings

    @property
    def less_is_better(self) -> bool:
        """Whether the monitored metric is a loss."""
        return self.monitor.endswith("loss")

    def verdict(self) -> list[str]:
        """What came out, in sentences."""
        best, default = self.rows[self.chosen], self.rows[0]
        count = sum(row.state == "complete" for row in self.rows)
        base = f"the default has {self.monitor} {default.value:.4f}"
        if not self.chosen:
            text = (
                f"No setting was better on validation than the default, of {count} that were "
                f"trained to the end; {base}. The run has the default's settings."
            )
            return [text, *self._luck()]
        lines = [
            (
                f"Trial {self.chosen} was chosen, of {count} that were trained to the end: "
                f"{self.monitor} {best.value:.4f}; {base} (n = {self.validation:,})."
            )
        ]
        lines += self._luck()
        assert self.difference is not None
        difference, p = self.difference
        told = (
            f"difference in validation accuracy {100 * difference.value:+.2f} points, 95 % "
            f"interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f}, "
            f"p = {p:.2g} after correction for the trials that were looked at"
        )
        if p < significance.LEVEL and difference.value > 0:
            lines.append(f"It is better than the default on validation ({told}).")
        else:
            lines.append(
                f"It is not shown to be better than the default ({told}): the gain may be chance."
            )
        return lines

    def _luck(self) -> list[str]:
        """How much of the gain was selection."""
        if not self.finalists:
            if not self.chosen:
                return []
            text = (
                "How much of the gain is selection was not measured: the best was not trained "
                "again with other seeds."
            )
            return [text]
        default = next(each for each in self.finalists if each.trial == 0)
        sign = -1 if self.less_is_better else 1
        top = max(self.finalists, key=lambda each: (sign * each.first, -each.trial))
        gain, left = (
            sign * (top.first - default.first),
            sign * (top.again - default.again),
        )
        if gain == 0:
            return ["No trial had a better value than the default, so there is no gain to explain."]
        text = (
            f"Of the gain of {gain:.4f} that made trial {top.trial} the best, {left:.4f} was left "
            f"with {len(top.fresh)} other seed{'s' * (len(top.fresh) > 1)}: "
            f"{max(0.0, gain - left):.4f} was selection, the luck of one seed."
        )
        return [text]

    def notes(self) -> list[str]:
        """What must be known before believing the figures."""
        notes: list[str] = []
        if "test" in self.scores:
            notes.append(
                "All trials were judged on validation; the test split was scored once, at the end, "
                "for the run alone. Its figure is the one to report."
            )
        else:
            notes.append(
                "There is no test split: the run's scores are of the pictures that chose its "
                "settings, so they are better than new pictures will show."
            )
        complete = sum(row.state == "complete" for row in self.rows)
        if complete == 1:
            notes.append(
                "Nothing but the default was trained to its end, so nothing was searched: give "
                "more --minutes or --trials, or fewer --epochs."
            )
        if self.importances and complete < ENOUGH * len(self.space):
            notes.append(
                f"{complete} complete trials are too few to say what mattered among "
                f"{len(self.space)} settings: take the importances as a hint "
                f"({ENOUGH} for each setting would be enough)."
            )
        failed = [row for row in self.rows if row.state == "failed"]
        if failed:
            notes.append(f"{len(failed)} trials failed, the last of them: {failed[-1].why}")
        return notes

    def scored(self) -> list[str]:
        """The run's scores."""
        return [
            f"{part}: accuracy {accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}, n = {n:,})"
            for part, (accuracy, low, high, n) in self.scores.items()
        ]

    def columns(self) -> list[str]:
        """The table's heads."""
        return [
            "trial",
            *(name for name, _ in self.space),
            self.monitor,
            "epochs (kept)",
            "time",
            "at",
            "state",
        ]

    def cells(self) -> list[list[str]]:
        """The table's rows."""
        return [
            [
                str(row.number)
                + " (default)" * (row.number == 0)
                + " (the run)" * (row.number == self.chosen),
                *(_told(row.settings[name]) for name, _ in self.space),
                "–" if math.isnan(row.value) else f"{row.value:.4f}",
                f"{row.done} of {row.epochs} ({row.kept})" if row.epochs else str(row.kept),
                duration(row.seconds),
                duration(row.at),
                row.state,
            ]
            for row in self.rows
        ]

    def table(self) -> list[str]:
        """The result as lines of text."""
        rows = [self.columns(), *self.cells()]
        widths = [max(map(figures.columns, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell + " " * (width - figures.columns(cell))
                for cell, width in zip(row, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        mattered = ", ".join(f"{name} {share:.0%}" for name, share in self.importances.items())
        return [
            *lines,
            "",
            *([f"what mattered (fANOVA): {mattered}"] if mattered else []),
            *self.verdict(),
            *(f"note: {note}" for note in self.notes()),
            *self.scored(),
        ]

    def curve(self) -> dict[str, Any]:
        """What ``figures.tuning`` draws."""
        return {
            "points": [(row.at / 60, row.value, row.state) for row in self.rows],
            "metric": self.monitor,
            "chosen": self.chosen,
        }

    def csv(self) -> bytes:
        """One row a trial; figures unrounded."""
        columns = (
            "trial", *(f"set_{name}" for name, _ in self.space), self.monitor, "kept_epoch",
            "epochs", "seconds", "at_seconds", "state", "chosen",
        )  # fmt: skip
        rows = [
            (
                row.number, *(row.settings[name] for name, _ in self.space),
                None if math.isnan(row.value) else row.value, row.kept, row.epochs, row.seconds,
                row.at, row.state, row.number == self.chosen,
            )
            for row in self.rows
        ]  # fmt: skip
        return encode_csv(columns, rows)

    def page(self) -> str:
        """The page."""
        missing: list[str] = []
        chart = embedded(
            figures.tuning(**self.curve(), missing=missing),
            f"Best {self.monitor} so far against time, with every trial",
        )
        return (
            templates()
            .get_template("tune.html.j2")
            .render(
                title=self.data,
                subtitle=f"{len(self.rows)} trials in {duration(self.seconds)}",
                notes=self.notes(),
                tuning=self,
                chart_of_time=chart,
                link=quote(f"{self.run.name}/report.html"),
                undrawn="",
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Every figure, as plain values."""
        difference = None
        if self.difference is not None:
            found, corrected = self.difference
            difference = {**dataclasses.asdict(found), "p_corrected": corrected}
        return {
            "run": self.run.name,
            "monitor": self.monitor,
            "validation": self.validation,
            "chosen": self.chosen,
            "settings": dict(self.settings),
            "space": dict(self.space),
            "trials": [
                {
                    **dataclasses.asdict(row),
                    "settings": dict(row.settings),
                    "value": None if math.isnan(row.value) else row.value,
                }
                for row in self.rows
            ],
            "finalists": [
                {**dataclasses.asdict(each), "again": each.again} for each in self.finalists
            ],
            "difference": difference,
            "importances": dict(self.importances),
            "verdict": self.verdict(),
            "notes": self.notes(),
            "scores": {
                part: dict(zip(("accuracy", "low", "high", "n"), each, strict=True))
                for part, each in self.scores.items()
            },
        }


def _told(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else shown(plain(value)) or "''"
