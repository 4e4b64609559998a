"""Train, kill, resume, evaluate and predict for hours, and write down what is left over.

    python scripts/soak.py --minutes 120 --out soak.jsonl --source src --work /tmp/soak

Two kinds of rounds take turns. In a *killed* round a command line trains, is killed at random
moments, resumed until it is finished, and must have come to what an undisturbed run comes to; then
it is scored and asked for predictions. In a *living* round one process, as old as the test, trains,
stops by a signal of its own, resumes, scores and predicts: leaks show in its memory, threads and
open files. Each round is one line of JSON; the last line is the verdict, which `--summary` writes
alone for `docs/reliability/soak.json`. The source is copied first, so that editing it does not
disturb the test.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults import tiny_run
from tests.faults.processes import held, left_of

MAX_KILLS = 4
"""Kills of one run, after which it is let through."""
COMMAND_SECONDS = 600
"""A command that takes longer hangs."""
WARM_UP = 5
"""Living rounds until memory has its size."""


class Living:
    """A process that does one round after the other, and tells what it holds."""

    def __init__(self, env: dict[str, str], pictures: Path, log: Path) -> None:
        self._log = log.open("ab")
        words = [sys.executable, __file__, "--live", str(pictures)]
        self._process = subprocess.Popen(
            words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )

    def round(self, folder: Path, stop_at: int) -> dict[str, Any]:
        """One round; stopped by a signal after that epoch."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), stop_at]).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the living process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._log.close()


def live(pictures: Path) -> None:
    """What the living process does: a folder in, figures out, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is not an answer
    from fieldmark import Interrupted, api
    from fieldmark.progress import Silent

    class Stopping(Silent):
        def __init__(self, epoch: int) -> None:
            self.at = epoch

        def epoch(self, record: Any, epochs: int) -> None:
            if record.epoch == self.at:
                os.kill(os.getpid(), signal.SIGINT)

    for line in sys.stdin:
        folder, stop_at = json.loads(line)
        start = time.monotonic()
        stopped = False
        try:
            api.train(pictures, out=folder, progress=Stopping(stop_at), **tiny_run.SETTINGS)
        except Interrupted:
            stopped = True
            api.resume(folder, progress=False)
        run = api.load(folder)
        run.evaluate(progress=False)
        run.predict([str(pictures)], progress=False)
        figures = held(os.getpid()) | {
            "stopped": stopped,
            "seconds": round(time.monotonic() - start, 2),
        }
        print(json.dumps(figures), file=answers, flush=True)


class Killing:
    """Rounds in which commands are killed."""

    def __init__(self, env: dict[str, str], pictures: Path, log: Path, draw: random.Random) -> None:
        self._env, self._pictures, self._log, self._draw = env, pictures, log, draw
        self.took = 10.0
        """Seconds of an undisturbed training; kills fall within."""
        self.stopping: list[float] = []
        """Seconds from each signal of this round to the end of the process."""

    def command(self, *words: str, kill_after: float = 0.0, by: int = signal.SIGKILL) -> int:
        """Run the command line; its exit code, negative for a signal."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fieldmark", *words],
                env=self._env,
                stdout=subprocess.DEVNULL,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._session = process.pid
        try:
            process.wait(kill_after or COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            if not kill_after:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise RuntimeError(f"fieldmark {words[0]} hangs") from None
            process.send_signal(by)
            asked = time.monotonic()
            process.wait(COMMAND_SECONDS)
            self.stopping.append(round(time.monotonic() - asked, 2))
        return process.returncode

    def train(self, run: Path) -> int:
        """Undisturbed."""
        start = time.monotonic()
        code = self.command("train", str(self._pictures), "--out", str(run), *self._flags())
        self.took = time.monotonic() - start
        return code

    def round(self, run: Path) -> dict[str, Any]:
        """Train with kills until it is finished; then score and predict."""
        kills: list[str] = []
        codes: list[int] = []
        self.stopping = []
        orphans = begun_anew = 0
        for attempt in range(MAX_KILLS + 1):
            if not (run / "config.json").is_file():  # killed before there was anything to go on
                if attempt > 0:
                    begun_anew += 1
                    self.took *= 1.2  # the machine is busier than it was: kill later
                shutil.rmtree(run, ignore_errors=True)
                words = ["train", str(self._pictures), "--out", str(run), *self._flags()]
            else:
                words = ["resume", str(run)]
            last = attempt == MAX_KILLS
            by = self._draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            after = 0.0 if last else self._draw.uniform(0.1, 1.1) * self.took
            begun = time.monotonic()
            code = self.command(*words, kill_after=after, by=by)
            orphans += len(left_of(self._session))
            codes.append(code)
            if code == 0:
                if attempt == 0:  # the machine is as busy as this says
                    self.took = time.monotonic() - begun
                break
            kills.append(signal.Signals(by).name)
        codes.append(self.command("evaluate", str(run), "--json"))
        codes.append(self.command("predict", str(run), str(self._pictures), "--json"))
        return {
            "kills": kills,
            "codes": codes,
            "orphans": orphans,
            "begun_anew": begun_anew,
            "stopping": self.stopping,
        }

    def _flags(self) -> list[str]:
        return tiny_run.flags(tiny_run.SETTINGS)


def tree(folder: Path) -> dict[str, int]:
    """Files below a folder, their bytes, and the unfinished ones among them."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {
        "files": len(files),
        "bytes": sum(p.stat().st_size for p in files),
        "parts": sum(p.name.endswith(".part") for p in files),
    }


def allowed(kills: list[str], codes: list[int]) -> bool:
    """Whether exit codes are those of a run that was stopped so and then came through."""
    stopped = {
        "SIGKILL": {-signal.SIGKILL},
        "SIGTERM": {128 + signal.SIGTERM, -signal.SIGTERM},  # the latter while Python starts
        "SIGINT": {128 + signal.SIGINT, -signal.SIGINT, 1},
    }
    trained = codes[: len(kills)]
    fine = all(code in stopped[by] for by, code in zip(kills, trained, strict=True))
    return fine and codes[len(kills) :] == [0, 0, 0]


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What all rounds come to."""
    killed = [row for row in rows if row["kind"] == "killed"]
    living = [row for row in rows if row["kind"] == "living" and "rss_kib" in row][WARM_UP:]
    result: dict[str, Any] = {
        "minutes": round(rows[-1]["at"] / 60, 1) if rows else 0.0,
        "killed_rounds": len(killed),
        "kills": sum(len(row.get("kills", ())) for row in killed),
        "living_rounds": len(living),
        "failed_rounds": sum(not row["ok"] for row in rows),
        "longest_stop_seconds": max(
            (s for row in killed for s in row.get("stopping", ())), default=0
        ),
        "orphans": sum(row.get("orphans", 0) for row in killed),
        "cache_files_most": max((row["cache"]["files"] for row in rows), default=0),
        "scratch_files_most": max((row["scratch"]["files"] for row in rows), default=0),
    }
    if len(living) >= 4:
        quarter = len(living) // 4
        for key in ("rss_kib", "open_files", "threads", "children"):
            first = statistics.median(row[key] for row in living[:quarter])
            last = statistics.median(row[key] for row in living[-quarter:])
            result[key] = {"first_quarter": first, "last_quarter": last}
    return result


def run_rounds(given: argparse.Namespace, env: dict[str, str], work: Path) -> list[dict[str, Any]]:
    """All rounds, each written down as soon as it is over."""
    log, cache = work / "log.txt", Path(env["FIELDMARK_CACHE"])
    pictures = tiny_run.make_pictures(work / "stripes")
    killing = Killing(env, pictures, log, random.Random(given.seed))  # noqa: S311 - not a secret
    whole = work / "whole"
    if killing.train(whole) or tiny_run.differences(whole, whole):
        raise RuntimeError(f"the undisturbed run failed; see {log}")
    living = Living(env, pictures, log)
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    with given.out.open("a", encoding="utf-8") as out:
        while (time.monotonic() - start) < 60 * given.minutes:
            for kind in ("killed", "living"):
                run = work / kind
                shutil.rmtree(run, ignore_errors=True)
                row: dict[str, Any] = {"kind": kind, "round": len(rows) // 2}
                begun = time.monotonic()
                try:
                    if kind == "killed":
                        row |= killing.round(run)
                        fine = allowed(row["kills"], row["codes"]) and not row["orphans"]
                    else:
                        row |= living.round(run, stop_at=1 + len(rows) % 3)
                        fine = row["stopped"] and not row["children"]
                    row["different"] = tiny_run.differences(run, whole)
                    row["left"] = tree(run)
                    row["ok"] = fine and not row["different"] and not row["left"]["parts"]
                except (RuntimeError, OSError) as error:
                    row |= {"ok": False, "error": str(error)}
                    if kind == "living":
                        living = Living(env, pictures, log)
                if not row["ok"]:
                    _keep_failed(run, work / f"failed-{len(rows)}")
                row["took"] = round(time.monotonic() - begun, 1)
                row["at"] = round(time.monotonic() - start, 1)
                row["cache"] = tree(cache)
                row["scratch"] = tree(Path(env["TMPDIR"]))
                rows.append(row)
                out.write(json.dumps(row) + "\n")
                out.flush()
        living.close()
        out.write(json.dumps({"kind": "verdict", **verdict(rows)}) + "\n")
    return rows


def _keep_failed(run: Path, place: Path) -> None:
    with contextlib.suppress(OSError):
        run.rename(place)


def main(argv: list[str] | None = None) -> int:
    """Run for so many minutes; 1 if a round failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=Path("soak.jsonl"), help="lines are added")
    parser.add_argument("--source", type=Path, help="folder with fieldmark in it; default is src")
    parser.add_argument("--work", type=Path, default=Path("soak"), help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", type=Path, help="file for the verdict alone")
    parser.add_argument("--live", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.live:
        live(given.live)
        return 0
    # A shell's background job ignores SIGINT, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = given.work.absolute()
    work.mkdir(parents=True)
    source = given.source or Path(__file__).resolve().parents[1] / "src"
    copied = shutil.copytree(source, work / "source", ignore=shutil.ignore_patterns("__pycache__"))
    (work / "scratch").mkdir()
    env = os.environ | {
        "PYTHONPATH": str(copied),
        "FIELDMARK_CACHE": str(work / "cache"),
        "MPLCONFIGDIR": str(work / "matplotlib"),
        "TMPDIR": str(work / "scratch"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_DIR": os.devnull,  # the commit stands in every report, and may move meanwhile
    }
    env.pop("PYTHONSTARTUP", None)
    rows = run_rounds(given, env, work)
    found = verdict(rows)
    print(json.dumps(found, indent=2))
    if given.summary:
        given.summary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(found["failed_rounds"] > 0)


if __name__ == "__main__":
    sys.exit(main())
