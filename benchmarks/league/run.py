"""``python -m benchmarks league``: measure what is missing, row after row, and print the table."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks import results
from benchmarks.league import table
from benchmarks.league.methods import METHODS, Method, Scored, Task
from benchmarks.league.rows import Row, Rows
from benchmarks.league.sets import FASHION, SETS, Place, build, old_default
from benchmarks.machine import kind
from benchmarks.measure import Skipped
from benchmarks.processes import Failed, Missing
from fieldmark.errors import ConfigError, did_you_mean

Thing = TypeVar("Thing")
NAME = "league"
QUICK_SETS = ("birds", "digits", "cifar-20")
FAILED = "failed"


def main(argv: Sequence[str]) -> int:
    """Run the league; returns the exit code."""
    given = _parser().parse_args(argv)
    methods = _asked(given.methods, {method.name: method for method in METHODS}, "--methods")
    sets = list(_asked(given.sets or (QUICK_SETS if given.quick else ()), SETS, "--sets"))
    repeatable = dict.fromkeys([*(method.name for method in METHODS), FAILED])
    again = list(_asked(given.again, repeatable, "--again")) if given.again else []
    if given.subsets < 1:
        raise ConfigError(f"--subsets is {given.subsets}; at least 1 is accepted")
    file = results.path_of(NAME, quick=given.quick, kind=kind(), folder=given.results)
    if file.is_file() and not (given.go_on or again or given.quick):
        raise ConfigError(
            f"{file.name} has rows already; add --go-on to measure what is missing, "
            "--again NAME to measure a method anew, or move the file away"
        )
    rows = Rows(file, quick=given.quick)
    if given.go_on or again:
        rows.go_on()
        rows.forget([name for name in again if name != FAILED], sets, failed=FAILED in again)
    until = time.monotonic() + 3600 * given.hours
    place = Place(None if given.data is None else given.data.resolve(), given.fashion.resolve())
    left = _left(rows, range(given.subsets), sets, list(methods.values()))
    _find(dict.fromkeys(name for name, _ in left), place)
    for (name, number), missing in left.items():
        if time.monotonic() < until:
            _measure(name, number, missing, rows, place, given, until)
    print(table.section([rows.value()]))
    still = sum(map(len, _left(rows, range(given.subsets), sets, list(methods.values())).values()))
    print(f"wrote {file.name}" + (f"; rows left: {still}; --go-on measures them" if still else ""))
    return 0 if any(not row.error for row in rows) else 1


def _left(
    rows: Rows, numbers: Iterable[int], sets: Sequence[str], methods: Sequence[Method]
) -> dict[tuple[str, int], list[Method]]:
    """The methods without a row, by set and subset: the first subset of every set comes first."""
    found = {
        (name, number): [m for m in methods if (name, number, m.name) not in rows]
        for number in numbers
        for name in sets
    }
    return {key: missing for key, missing in found.items() if missing}


def _find(sets: Iterable[str], place: Place) -> None:
    """Look for the pictures of every set before hours are spent on the first.

    Raises:
        ConfigError: if some are not below --data.
    """
    for name in sets:
        with contextlib.suppress(Skipped):  # said when its turn comes
            SETS[name].source(place)


def _measure(
    name: str,
    number: int,
    methods: Sequence[Method],
    rows: Rows,
    place: Place,
    given: argparse.Namespace,
    until: float,
) -> None:
    """Run the methods on one subset, one after the other."""
    with tempfile.TemporaryDirectory(prefix="fieldmark-league-") as scratch:
        try:
            subset = build(name, number, place, Path(scratch) / name, quick=given.quick)
        except Skipped as skipped:
            _say(f"{name}: skipped: {skipped}")
            rows.skip(name, str(skipped))
            return
        task = Task(
            name,
            subset,
            number,
            Path(scratch),
            given.limit_s,
            given.quick,
            given.keras_python,
        )
        about = {"train": subset.train, "pool": subset.pool, "old_default": old_default(subset)}
        for method in methods:
            if time.monotonic() >= until:
                return
            _say(f"{name}, subset {number}: {method.name}")
            row = Row.of((name, number, method.name), about, _run(method, task))
            rows.add(row)
            _say("  " + (row.error or f"{row.accuracy:.3f} of {row.n}, {row.seconds:.1f} s"))


def _run(method: Method, task: Task) -> Scored | str:
    """A score, or why there is none."""
    reason = method.applies(task.subset)
    if reason:
        return f"does not apply: {reason}"
    try:
        return method.run(task)
    except (Missing, Failed) as error:
        return str(error)


def _asked(names: Sequence[str], known: Mapping[str, Thing], flag: str) -> dict[str, Thing]:
    """What has these names, in the order of the table; everything for no names.

    Raises:
        ConfigError: if a name is not known.
    """
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{flag}: nothing is called {name!r}{did_you_mean(name, known)} "
                f"(known: {', '.join(known)})"
            )
    return {name: thing for name, thing in known.items() if not names or name in names}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks league",
        description="Fieldmark without flags beside its recipes and its peers, on many sets.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with cifar10-jpeg/, flowers/, hanzi/, plates/ and birds/ in it",
    )
    parser.add_argument(
        "--fashion",
        type=Path,
        default=FASHION,
        metavar="DIR",
        help="folder with the IDX files of Debian's dataset-fashion-mnist",
    )
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME", help=", ".join(SETS))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="NAME",
        help=", ".join(method.name for method in METHODS),
    )
    parser.add_argument("--subsets", type=int, default=3, metavar="N", help="of each set")
    parser.add_argument("--go-on", action="store_true", help="keep what was measured already")
    parser.add_argument(
        "--again",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"forget the rows of these methods, or those that '{FAILED}', and go on",
    )
    parser.add_argument(
        "--hours", type=float, default=math.inf, metavar="H", help="start no row after so long"
    )
    parser.add_argument(
        "--limit-s",
        type=float,
        default=3600,
        metavar="S",
        help="stop a row after so many seconds, and record that (default: 3600)",
    )
    parser.add_argument(
        "--keras-python",
        default=sys.executable,
        metavar="FILE",
        help="interpreter that has Keras and TensorFlow, if this one has not",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the machinery only")
    parser.add_argument(
        "--results", type=Path, default=results.FOLDER, metavar="DIR", help="folder for the JSON"
    )
    return parser
