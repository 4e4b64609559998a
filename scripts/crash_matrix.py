"""Disturb a run at every change it makes to files, and at random times; see that nothing is lost.

    python scripts/crash_matrix.py --jobs 2

It is killed at every boundary, its writes are torn and the power is cut; at every fifth the disk is
full, over quota, read-only or fails once; and 200 times it is killed at a random moment. Each time
it is resumed and must come to the same weights, metrics, scores, predictions and report as the run
that nobody disturbed. More than 1000 cases of 3 seconds each; `--step` and `--error-step` do fewer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.matrix import ERRORS, FAULTS, Matrix, Row
from tests.faults.warm import Warm

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "reliability" / "crashes.json"
Case = Callable[[Matrix], Row]


def cases(first: Matrix, given: argparse.Namespace) -> list[Case]:
    """All that is to be done, each with a matrix that is free."""
    at_boundaries: list[Case] = [
        lambda matrix, fault=fault, boundary=boundary: matrix.disturb(fault, boundary)
        for fault in given.faults
        for boundary in list(first.points(fault))[
            :: given.error_step if fault in ERRORS else given.step
        ]
    ]
    at_random: list[Case] = [
        lambda matrix, seed=seed: matrix.kill_at_random(random.Random(seed), first.seconds)  # noqa: S311
        for seed in range(given.random)
    ]
    return at_boundaries + at_random


def run_all(matrices: list[Matrix], todo: list[Case]) -> Iterator[Row]:
    """Rows in the order of the cases."""
    free: SimpleQueue[Matrix] = SimpleQueue()
    for matrix in matrices:
        free.put(matrix)

    def one(case: Case) -> Row:
        matrix = free.get()
        try:
            return case(matrix)
        finally:
            free.put(matrix)

    with ThreadPoolExecutor(len(matrices)) as pool:
        yield from pool.map(one, todo)


def write(path: Path, rows: list[Row], boundaries: int) -> None:
    """The file that the page is made from, a row a line."""
    lines = ",\n".join(json.dumps(dataclasses.asdict(row)) for row in rows)
    head = json.dumps({"boundaries": boundaries, "cases": len(rows)})[:-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the cases; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON")
    parser.add_argument("--faults", nargs="*", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--step", type=int, default=1, help="take every Nth boundary for kills")
    parser.add_argument("--error-step", type=int, default=5, help="every Nth for a disk's refusals")
    parser.add_argument("--random", type=int, default=200, help="kills at random times")
    parser.add_argument("--jobs", type=int, default=1, help="cases at the same time")
    parser.add_argument("--work", type=Path, help="folder that keeps what failed")
    given = parser.parse_args(argv)
    work = given.work or Path(tempfile.mkdtemp(prefix="crash-matrix-"))
    warms: list[Warm] = []
    matrices: list[Matrix] = []
    rows: list[Row] = []
    try:
        for job in range(given.jobs):
            warms.append(Warm(work / f"warm-{job}"))
            matrices.append(Matrix(warms[-1], work / f"cases-{job}"))
        first = matrices[0]
        todo = cases(first, given)
        begun = time.monotonic()
        for row in run_all(matrices, todo):
            rows.append(row)
            if row.wrong:
                print(f"{row.fault} at {row.at}: {row.wrong}", flush=True)
            if len(rows) % 10 == 0:
                write(given.out, rows, len(first.boundaries))
                pace = (time.monotonic() - begun) / len(rows)
                print(f"{len(rows)} of {len(todo)}, {pace:.1f} s each", flush=True)
    finally:
        for warm in warms:
            warm.__exit__()
    write(given.out, rows, len(first.boundaries))
    wrong = sum(bool(row.wrong) for row in rows)
    print(f"{len(rows)} cases, {wrong} not as promised; {given.out}")
    if not wrong and not given.work:
        shutil.rmtree(work)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
