"""``fieldmark`` as a user types it, measured from the command to its end."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Curve
from benchmarks.processes import environment, run


@dataclass(frozen=True)
class Trained:
    """A training that came to its end."""

    seconds: float
    peak_mb: float
    epochs: list[dict[str, Any]]
    """The records of ``metrics.jsonl``."""
    scores: dict[str, dict[str, Any]]
    """The parts of ``evaluation.json``."""
    pictures: dict[str, int]
    """Pictures of each part."""
    curve: Curve
    """Validation accuracy over the seconds since the command."""
    config: dict[str, Any]
    """The settings of ``config.json``."""
    cpu_s: float = 0.0
    """Seconds of processor time."""

    def steady(self, quantity: str) -> float:
        """The mean of a quantity over the epochs after the first, which reads the pictures."""
        values = [float(epoch[quantity]) for epoch in self.epochs[1:]]
        return sum(values) / len(values)


def train(
    data: Path,
    scratch: Path,
    *flags: object,
    cache: Path | None = None,
    limit_s: float = math.inf,
) -> Trained:
    """Train with ``fieldmark train DATA FLAGS``; nothing is kept.

    Args:
        data: Folder of pictures.
        scratch: Folder for the run, which is removed afterwards.
        flags: As on the command line.
        cache: Folder of the cache; an empty one, removed afterwards, unless given.
        limit_s: Seconds after which it is stopped.

    Raises:
        Failed: if it ends with an error, or takes too long.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        out = Path(folder) / "run"
        argv = [sys.executable, "-m", "fieldmark", "train", str(data), "--out", str(out)]
        seen = _Curve(out / "metrics.jsonl")
        ran = run(
            [*argv, *map(str, flags)],
            environment=environment(cache or Path(folder) / "cache"),
            watch=seen.look,
            limit_s=limit_s,
        )
        parts = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["parts"]
        lines = _lines(out / "metrics.jsonl")
        seen.add(lines, ran.seconds)
        counts = json.loads((out / "data.json").read_text(encoding="utf-8"))["counts"]
        sizes = {part: sum(each) for part, each in counts.items()}
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        return Trained(
            ran.seconds, ran.peak_mb, lines, parts, sizes, seen.points, config, ran.cpu_s
        )


class _Curve:
    """Notes when each epoch's record appears."""

    def __init__(self, file: Path) -> None:
        self.points: Curve = []
        self._file = file

    def look(self, seconds: float) -> None:
        if self._file.is_file():
            self.add(_lines(self._file), seconds)

    def add(self, lines: list[dict[str, Any]], seconds: float) -> None:
        for line in lines[len(self.points) :]:
            self.points.append((round(seconds, 2), line["val_accuracy"]))


def _lines(file: Path) -> list[dict[str, Any]]:
    """The file's whole lines; none if there is no file."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def keep_run(data: Path, out: Path, model: str, cache: Path) -> Path:
    """A run to predict with: one epoch from random weights, which is enough to measure speed.

    Raises:
        Failed: if it ends with an error.
    """
    flags = ("--model", model, "--weights", "none", "--size", "224", "--epochs", "1")
    argv = [sys.executable, "-m", "fieldmark", "train", str(data), "--out", str(out)]
    run([*argv, *flags, "--batch-size", "8"], environment=environment(cache))
    return out
