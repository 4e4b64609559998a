"""A run that is killed, torn, cut off from power or refused by the disk loses nothing.

A few cases of each kind here; all of them by ``scripts/crash_matrix.py``, whose results are in
``docs/reliability.md``.
"""

from __future__ import annotations

import random
import sys

import pytest

from tests.faults import tiny_run
from tests.faults.matrix import ERRORS, KILLS, Matrix

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_the_run_has_all_the_state_that_can_be_lost(matrix: Matrix) -> None:
    """Otherwise the matrix would prove less than it says."""
    records = tiny_run.records(matrix.whole)
    log = (matrix.whole / "log.txt").read_text(encoding="utf-8")
    assert len(records) < tiny_run.SETTINGS["epochs"]
    assert "stopped early" in log
    assert "learning rate reduced" in log
    assert 0 < sum(record["best"] for record in records) <= len(records)
    assert len(matrix.boundaries) > 200


@pytest.mark.parametrize("text", ["write .last.ckpt.part", "replace last.ckpt"])
@pytest.mark.parametrize("fault", KILLS)
def test_killed_while_saving(matrix: Matrix, fault: str, text: str) -> None:
    places = [b for b in matrix.points(fault) if b.text == text]
    if not places:
        pytest.skip("this fault is no other than a kill there")
    row = matrix.disturb(fault, places[len(places) // 2])
    assert not row.wrong, row
    assert row.went_on == "resume"


def test_killed_before_there_is_anything_to_resume(matrix: Matrix) -> None:
    row = matrix.disturb("kill", next(b for b in matrix.boundaries if b.text.startswith("write")))
    assert not row.wrong, row
    assert row.went_on == "train"


def test_killed_again_and_again(matrix: Matrix) -> None:
    """One run, killed five times: before its first epoch, between checkpoints, while writing."""
    names = [boundary.text for boundary in matrix.boundaries]
    first = matrix.boundaries[names.index("replace config.json") + 1]
    row = matrix.kill_often(first, times=5, every=len(matrix.boundaries) // 8)
    assert not row.wrong, row
    assert row.code == -9, "the run was over before it could be killed"


@pytest.mark.parametrize("fault", ["full", "I/O error, once"])
def test_refused_while_saving(matrix: Matrix, fault: str) -> None:
    places = [b for b in matrix.boundaries if b.text == "write .last.ckpt.part"]
    row = matrix.disturb(fault, places[len(places) // 2])
    assert not row.wrong, row


def test_killed_at_a_random_moment(matrix: Matrix) -> None:
    row = matrix.kill_at_random(random.Random(0), matrix.seconds)
    assert not row.wrong, row


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fault", KILLS | ERRORS)
def test_disturbed_everywhere(matrix: Matrix, fault: str) -> None:
    """Every boundary for kills, every seventh for the rest: the script does them all."""
    step = 1 if fault == "kill" else 7
    rows = [matrix.disturb(fault, boundary) for boundary in list(matrix.points(fault))[::step]]
    assert not [row for row in rows if row.wrong]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_200_random_moments(matrix: Matrix) -> None:
    rows = [matrix.kill_at_random(random.Random(seed), matrix.seconds) for seed in range(200)]
    assert not [row for row in rows if row.wrong]
