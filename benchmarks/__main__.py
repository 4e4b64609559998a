"""``python -m benchmarks NAME``: measure, store, and print the table."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from benchmarks import (
    cifar10,
    growth,
    inference,
    league,
    loading,
    results,
    startup,
    step,
    tables,
    transfer,
    tutorial,
)
from benchmarks.machine import kind
from benchmarks.measure import Benchmark, Contender, Options, Results, Skipped, interleave
from fieldmark.errors import ConfigError, FieldmarkError, did_you_mean

BENCHMARKS = {
    "tutorial": tutorial,
    "step": step,
    "cifar10": cifar10,
    "loading": loading,
    "transfer": transfer,
    "inference": inference,
    "growth": growth,
    "startup": startup,
}
PAGE: dict[str, ModuleType] = {"league": league, **BENCHMARKS}
"""What the page has: the league, which has rows of its own in place of rounds, and the others."""
QUICK_REPEATS = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark, list them, or write the page; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["league"]:
            return _until_stopped(lambda: league.main(words[1:]))
        given = _parser().parse_args(words)
        if given.name is None:
            for name, module in PAGE.items():
                print(f"{name:10} {tables.documented(module)[0]}")
            print(f"{'table':10} Writes docs/benchmarks.md from what was measured")
        elif given.name == "table":
            print(f"wrote {tables.write(PAGE).name}")
        else:
            return _until_stopped(lambda: 0 if _measure(given) else 1)
    except Skipped as skipped:
        print(f"skipped: {skipped}", file=sys.stderr)
        return 1
    except FieldmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Fieldmark beside its peers, on this machine."
    )
    parser.add_argument(
        "name",
        nargs="?",
        help="a benchmark, 'league' (python -m benchmarks league --help), or 'table'; "
        "left out, they are listed",
    )
    parser.add_argument(
        "--repeats",
        "--seeds",
        type=int,
        default=0,
        metavar="N",
        help="rounds; a round's number is its seed (default: the benchmark's own)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the machinery only")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with flowers/ and cifar10-jpeg/ in it"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PEER", help="those whose name contains a word"
    )
    parser.add_argument("--go-on", action="store_true", help="keep what was measured already")
    parser.add_argument(
        "--results", type=Path, default=results.FOLDER, metavar="DIR", help="folder for the JSON"
    )
    return parser


def _measure(given: argparse.Namespace) -> bool:
    """Measure, store and print one benchmark; whether anything could be measured."""
    module = BENCHMARKS.get(given.name)
    if module is None:
        raise ConfigError(
            f"no benchmark {given.name!r}{did_you_mean(given.name, PAGE)} "
            f"(known: {', '.join(PAGE)}, table)"
        )
    if given.repeats < 0:
        raise ConfigError(f"--repeats is {given.repeats}; at least 1 is accepted")
    repeats = given.repeats or (QUICK_REPEATS if given.quick else module.REPEATS)
    data = None if given.data is None else given.data.resolve()
    options = Options(repeats, given.quick, data, tuple(given.only))
    file = results.path_of(given.name, quick=given.quick, kind=kind(), folder=given.results)
    measured = results.go_on(file) if given.go_on else Results([], {})
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as scratch:
        benchmark = module.prepare(options, Path(scratch))
        interleave(
            _chosen(benchmark, options.only),
            repeats,
            results=measured,
            after=lambda found: results.store(file, given.name, options, benchmark, found),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    print(tables.section([results.load(file)]))
    print(f"wrote {file.name}")
    return any(one.measured for one in measured.rounds)


def _until_stopped(work: Callable[[], int]) -> int:
    """Work that SIGTERM ends as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        return work()
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> NoReturn:
    """End as on Ctrl-C: with the running contender, and without leaving files."""
    del frame
    sys.exit(128 + number)


def _chosen(benchmark: Benchmark, only: Sequence[str]) -> list[Contender]:
    """The contenders that were asked for.

    Raises:
        ConfigError: if a word names none.
    """
    names = [contender.name for contender in benchmark.contenders]
    for word in only:
        if not any(word in name for name in names):
            raise ConfigError(f"--only: nothing is called {word!r} (known: {'; '.join(names)})")
    return [c for c in benchmark.contenders if not only or any(word in c.name for word in only)]


if __name__ == "__main__":
    sys.exit(main())
