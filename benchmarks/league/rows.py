"""The league's results: a row for every set, subset and method, stored after each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.league.methods import Scored
from benchmarks.machine import machine, revision, versions
from benchmarks.results import FORMAT, load, require_same
from fieldmark.files.writing import write_atomic


@dataclass(frozen=True)
class Row:
    """What one method gave on one subset: a score, or why there is none."""

    set: str
    subset: int
    method: str
    date: str
    revision: str
    """Commit of Fieldmark's source, where it lies in a repository."""
    train: int
    """Training pictures."""
    pool: int
    """Different test pictures that all subsets together can have."""
    old_default: str
    """The recipe that the rule of before takes."""
    right: int = 0
    n: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Processor time: what other programs on the machine change least."""
    peak_mb: float = 0.0
    how: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[str, int, str]:
        """Set, subset and method."""
        return self.set, self.subset, self.method

    @property
    def accuracy(self) -> float:
        """Right answers over test pictures; a row with an error has none."""
        return self.right / self.n

    @classmethod
    def of(cls, key: tuple[str, int, str], about: dict[str, Any], found: Scored | str) -> Row:
        """A row of now."""
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        outcome: dict[str, Any] = {"error": found} if isinstance(found, str) else asdict(found)
        return cls(
            set=key[0],
            subset=key[1],
            method=key[2],
            date=today,
            revision=revision(),
            **about,
            **outcome,
        )


class Rows:
    """All rows so far; each change is written at once."""

    def __init__(self, file: Path, *, quick: bool) -> None:
        self._file = file
        self._quick = quick
        self._rows: dict[tuple[str, int, str], Row] = {}
        self._skipped: dict[str, str] = {}

    def go_on(self) -> None:
        """Take what the file has.

        Raises:
            ConfigError: if it was measured on another machine or with other versions.
        """
        if self._file.is_file():
            value = load(self._file)
            require_same(self._file, value)
            self._rows = {row.key: row for row in read(value)}
            self._skipped = value["skipped"]

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def add(self, row: Row) -> None:
        """Put a row in, and write the file."""
        self._rows[row.key] = row
        self._skipped.pop(row.set, None)
        self._store()

    def skip(self, name: str, reason: str) -> None:
        """Note why a set is left out, and write the file."""
        self._skipped[name] = reason
        self._store()

    def forget(self, methods: Sequence[str], sets: Iterable[str], *, failed: bool) -> int:
        """Take out rows of these methods and sets, and those that failed; how many there were."""
        among = set(sets)
        out = [
            row.key
            for row in self
            if row.set in among and (row.method in methods or (failed and row.error))
        ]
        for key in out:
            del self._rows[key]
        if out:
            self._store()
        return len(out)

    def value(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "format": FORMAT,
            "name": "league",
            "quick": self._quick,
            "date": max((row.date for row in self), default=""),
            "machine": machine(),
            "versions": versions(),
            "skipped": self._skipped,
            "rows": [asdict(row) for row in self],
        }

    def _store(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.value(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self._file, (text + "\n").encode())


def read(value: dict[str, Any]) -> list[Row]:
    """The rows of a loaded file."""
    names = {field.name for field in fields(Row)}
    return [Row(**{k: v for k, v in row.items() if k in names}) for row in value["rows"]]
