"""Results as JSON: every raw figure with the machine and the versions it was measured with."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import KINDS, machine, versions
from benchmarks.measure import Benchmark, Measured, Options, Results, Round, conclude
from fieldmark.errors import ConfigError
from fieldmark.files.writing import write_atomic

FOLDER = Path(__file__).resolve().parent / "results"
FORMAT = 1


def path_of(name: str, *, quick: bool, kind: str, folder: Path = FOLDER) -> Path:
    """Where a benchmark's results of a kind of machine are.

    Those of ``--quick`` lie apart, so no table takes them.
    """
    return folder / f"{name}.{kind}{'.quick' if quick else ''}.json"


def of_all_kinds(name: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """What was measured of a benchmark, one value for each kind of machine."""
    files = [path_of(name, quick=False, kind=kind, folder=folder) for kind in KINDS]
    return [load(file) for file in files if file.is_file()]


def store(file: Path, name: str, options: Options, benchmark: Benchmark, results: Results) -> None:
    """Replace the file with what is known by now."""
    value = {
        "format": FORMAT,
        "name": name,
        "quick": options.quick,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "repeats": options.repeats,
        "remarks": list(benchmark.remarks),
        "contenders": [contender.name for contender in benchmark.contenders],
        "errors": results.errors,
        "findings": conclude(benchmark.findings, results.rounds),
        "rounds": [
            {
                contender: {"figures": measured.figures, "curve": measured.curve}
                for contender, measured in one.measured.items()
            }
            for one in results.rounds
        ],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(file, (text + "\n").encode())


def load(file: Path) -> dict[str, Any]:
    """What :func:`store` wrote.

    Raises:
        ConfigError: if it is another version's.
    """
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if value.get("format") != FORMAT:
        raise ConfigError(
            f"{file.name} has format {value.get('format')!r}; {FORMAT} is read; measure it again"
        )
    return value


def go_on(file: Path) -> Results:
    """The rounds of an unfinished file, to measure only what is missing.

    Raises:
        ConfigError: if it was measured on another machine or with other versions.
    """
    if not file.is_file():
        return Results([], {})
    value = load(file)
    require_same(file, value)
    rounds = [
        Round(
            {
                contender: Measured(one["figures"], [(x, y) for x, y in one["curve"]])
                for contender, one in measured.items()
            }
        )
        for measured in value["rounds"]
    ]
    return Results(rounds, {})


def require_same(file: Path, value: dict[str, Any]) -> None:
    """Make sure that this is the machine, with the versions, of a stored value.

    Raises:
        ConfigError: if it is not.
    """
    for what, now in (("machine", machine()), ("versions", versions())):
        if value[what] != now:
            raise ConfigError(
                f"{file.name} was measured with another {what}: {_differences(value[what], now)}; "
                "figures of two machines do not go into one table: measure it again without "
                "--go-on"
            )


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return ", ".join(f"{key} {then.get(key)} then, {now.get(key)} now" for key in keys)
