"""One run, disturbed at every place it can be disturbed, and what became of it each time."""

from __future__ import annotations

import dataclasses
import errno
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import tiny_run
from tests.faults.boundaries import Boundary, Fault
from tests.faults.warm import Seen, Warm

STAYS = 10**9
"""Boundaries in a row that are refused by a disk that stays as it is."""
ERRORS = {
    "full": Fault("error", 0, errno.ENOSPC, STAYS),
    "full for a while": Fault("error", 0, errno.ENOSPC, 5),
    "quota": Fault("error", 0, errno.EDQUOT, STAYS),
    "read-only": Fault("error", 0, errno.EROFS, STAYS),
    "I/O error, once": Fault("error", 0, errno.EIO, 1),
}
KILLS = {
    "kill": Fault("kill", 0),
    "torn write": Fault("torn", 0),
    "power cut": Fault("power", 0),
}
FAULTS = KILLS | ERRORS


@dataclasses.dataclass(frozen=True)
class Row:
    """One disturbance and its end."""

    fault: str
    at: str
    """The boundary before which it happened, or the share of the run's time."""
    code: int
    """How the disturbed command ended."""
    went_on: str
    """resume; train, where nothing had been begun that can be resumed; or nothing, where the
    disturbed command itself came to its end."""
    wrong: str
    """What is not as promised; empty if all is."""


class Matrix:
    """A whole run to compare with, and cases."""

    def __init__(self, warm: Warm, work: Path) -> None:
        self._warm = warm
        self._work = work
        self._count = 0
        work.mkdir(parents=True, exist_ok=True)
        self.pictures = tiny_run.make_pictures(work / "stripes")
        self._tree = tiny_run.tree_digest(self.pictures)
        self.whole = work / "whole"
        begun = time.monotonic()
        seen = self._train(self.whole, watch=True)
        self.seconds = time.monotonic() - begun
        if seen.code or seen.missed:
            raise RuntimeError(f"the undisturbed run: {seen.code}, {seen.missed}, {seen.err}")
        self.boundaries: tuple[Boundary, ...] = seen.boundaries

    def points(self, fault: str) -> Iterator[Boundary]:
        """Boundaries at which a fault differs from a plain kill at the same place."""
        for boundary in self.boundaries:
            if fault == "torn write" and boundary.what != "write":
                continue
            if fault == "power cut" and boundary.what not in ("fsync", "close", "replace"):
                continue
            yield boundary

    def disturb(self, fault: str, boundary: Boundary) -> Row:
        """Have it happen at a boundary, and go on."""
        run = self._new()
        planned = dataclasses.replace(FAULTS[fault], at=boundary.number)
        seen = self._train(run, fault=planned, watch=True)
        return self._finish(run, fault, boundary.text, seen)

    def kill_often(self, first: Boundary, times: int, every: int) -> Row:
        """Kill at a boundary, then each resumed run after so many of its own, and let it be."""
        run = self._new()
        seen = self._train(run, fault=Fault("kill", first.number), watch=True)
        for _ in range(times - 1):
            if seen.code == 0:
                break
            fault = Fault("kill", every)
            seen = self._warm.run(["resume", str(run)], watched=[run], fault=fault)
        return self._finish(run, "kill", f"{first.text}, then every {every}", seen)

    def kill_at_random(self, draw: random.Random, seconds: float) -> Row:
        """Kill at a random time, half of the resumed runs once more, and go on."""
        run = self._new()
        first = draw.random()
        seen = self._train(run, kill_after=max(0.001, first * seconds))
        at = f"{first:.3f}"
        if draw.random() < 0.5 and self._can_resume(run):
            second = draw.random()
            seen = self._warm.run(["resume", str(run)], kill_after=max(0.001, second * seconds))
            at += f", resumed and killed at {second:.3f}"
        return self._finish(run, "random kill", at, seen)

    def _finish(self, run: Path, fault: str, at: str, seen: Seen) -> Row:
        wrong = [] if seen.code in _EXPECTED[fault] else [f"exit code {seen.code}"]
        went_on = ""
        if seen.code > 0 and (seen.traceback or not seen.err.startswith("error: ")):
            wrong.append("no proper message: " + seen.err[-200:])
        if seen.orphans:
            wrong.append(f"{seen.orphans} processes left")
        if seen.code != 0:
            went_on, last = self._go_on(run)
            if last.code:
                wrong.append(f"{went_on}: exit code {last.code}: {last.err[-300:]}")
        wrong += tiny_run.differences(run, self.whole)
        if parts := [p.name for p in run.rglob("*") if p.name.endswith(".part")]:
            wrong.append(f"left behind: {', '.join(parts)}")
        if tiny_run.tree_digest(self.pictures) != self._tree:
            wrong.append("the pictures changed")
        if not wrong:
            shutil.rmtree(run)
        return Row(fault, at, seen.code, went_on, "; ".join(wrong))

    def _go_on(self, run: Path) -> tuple[str, Seen]:
        """Resume; where the kill came before there was anything to resume, train anew.

        A folder that cannot be resumed must say so (exit code 4) and not half-work.
        """
        resumed = self._warm.run(["resume", str(run)])
        if resumed.code == 0 or self._can_resume(run):
            return "resume", resumed
        if resumed.code != 4 or resumed.traceback:
            return "resume", resumed
        shutil.rmtree(run, ignore_errors=True)
        return "train", self._train(run)

    def _can_resume(self, run: Path) -> bool:
        """Whether the run has begun: ``config.json`` is written when all else is there."""
        return (run / "config.json").is_file()

    def _train(
        self, run: Path, *, fault: Fault | None = None, watch: bool = False, kill_after: float = 0.0
    ) -> Seen:
        words = ["train", str(self.pictures), "--out", str(run), *tiny_run.flags(tiny_run.SETTINGS)]
        watched = [run, run.parent / "cache"] if watch else []
        cache = {"FIELDMARK_CACHE": str(run.parent / "cache")}
        return self._warm.run(words, watched=watched, fault=fault, kill_after=kill_after, env=cache)

    def _new(self) -> Path:
        self._count += 1
        return self._work / f"run-{self._count}"


_KILLED = (-9,)
_EXPECTED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(KILLS, _KILLED),
    **dict.fromkeys(ERRORS, (0, 6)),
    "random kill": (-9, 0),
}
