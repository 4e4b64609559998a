"""Commands in children of a process that has everything imported: a start takes no time.

    with Warm(folder) as warm:
        warm.run(["train", "photos", "--out", "run"], fault=Fault("kill", 17), watched=[run])

The warm process has one thread, which is what makes forking it safe, and runs no command itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tests.drawing import undrawn
from tests.faults.boundaries import Boundaries, Boundary, Fault
from tests.faults.processes import left_of
from tests.warming import import_what

ROOT = Path(__file__).resolve().parents[2]
HANGS_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a command did."""

    code: int
    """Exit code; negative for the signal that ended it."""
    out: str
    err: str
    boundaries: tuple[Boundary, ...]
    """Empty where the command was killed: the dead tell nothing."""
    missed: tuple[str, ...]
    orphans: int
    """Processes it began that outlived it."""

    @property
    def traceback(self) -> bool:
        """Whether Python's traceback was shown to the user."""
        return "Traceback (most recent call last)" in self.out + self.err


class Warm:
    """Runs commands of fieldmark, each in a fork of a process that is ready."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        clean = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "FIELDMARK_CACHE": str(folder / "cache"),
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm", str(folder / "warm-up")],
            env=clean | dict(env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._answer() != {"ready": True}:
            raise RuntimeError("the warm process did not become ready")

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def run(
        self,
        words: Sequence[str],
        *,
        watched: Sequence[Path] = (),
        fault: Fault | None = None,
        kill_after: float = 0.0,
        env: Mapping[str, str] | None = None,
        memory: int = 0,
        file_size: int = 0,
    ) -> Seen:
        """Run one command and say what became of it.

        Args:
            words: What follows ``fieldmark`` on the command line.
            watched: Folders in which boundaries are counted.
            fault: What goes wrong there.
            kill_after: Seconds after which it is killed; 0 for never.
            env: Variables over those of the warm process.
            memory: Bytes of address space it may have beyond what it has; 0 for no limit.
            file_size: Bytes that a file may have; 0 for no limit.
        """
        self._count += 1
        place = self._folder / f"command-{self._count}"
        order = {
            "words": list(words),
            "watched": [str(path) for path in watched],
            "fault": dataclasses.asdict(fault) if fault else None,
            "kill_after": kill_after,
            "env": dict(env or {}),
            "memory": memory,
            "file_size": file_size,
            "place": str(place),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer()
        told = Path(f"{place}.json")
        trace = json.loads(told.read_text()) if told.is_file() else {"seen": [], "missed": []}
        out, err = (Path(f"{place}.{end}").read_text("utf-8", "replace") for end in ("out", "err"))
        for end in ("json", "out", "err"):
            Path(f"{place}.{end}").unlink(missing_ok=True)
        return Seen(
            answer["code"],
            out,
            err,
            tuple(Boundary(*row) for row in trace["seen"]),
            tuple(trace["missed"]),
            answer["orphans"],
        )

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the warm process ended with {self._process.wait()}")
        return json.loads(line)


def serve(warm_up: Path) -> None:
    """The warm process: an order in, a forked command, an answer out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _warm_up(warm_up)
    with undrawn():
        _serve(answers)


def _serve(answers: TextIO) -> None:
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            raise RuntimeError(f"the warm process has {threads} threads: forking it is not safe")
        child = os.fork()
        if child == 0:
            _be(order)
        code = _wait(child, order["kill_after"])
        print(json.dumps({"code": code, "orphans": _end_orphans(child)}), file=answers, flush=True)


def _warm_up(folder: Path) -> None:
    """Import all that a run needs."""
    from tests.faults import tiny_run

    folder.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        pictures = tiny_run.make_pictures(folder / "stripes")
        import fieldmark

        run = fieldmark.train(
            pictures, out=folder / "run", progress=False, **tiny_run.SETTINGS | {"epochs": 1}
        )
        run.predict([str(pictures)], progress=False)
        run.evaluate(progress=False)

    import_what(work, folder.with_suffix(".modules"))
    import fieldmark.cli
    from fieldmark.machine.process import spin_less

    assert fieldmark.cli
    spin_less()


def _be(order: dict[str, Any]) -> None:
    """Become the command; never returns."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    place = order["place"]
    for number, end in ((1, "out"), (2, "err")):
        handle = os.open(f"{place}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.update(order["env"])
    boundaries = Boundaries([Path(p) for p in order["watched"]], _fault(order["fault"]))
    code = 1
    try:
        from fieldmark.cli import main

        if order["memory"]:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            _limit(resource.RLIMIT_AS, now + order["memory"])
        if order["file_size"]:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            _limit(resource.RLIMIT_FSIZE, order["file_size"])
        boundaries.install()
        main(order["words"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        rows = [dataclasses.astuple(b) for b in boundaries.seen]
        told = json.dumps({"seen": rows, "missed": boundaries.missed})
        Path(f"{place}.json").write_text(told, encoding="utf-8")
        os._exit(code)


def _limit(which: int, size: int) -> None:
    resource.setrlimit(which, (size, resource.getrlimit(which)[1]))


def _fault(value: dict[str, Any] | None) -> Fault | None:
    return Fault(**value) if value else None


def _wait(child: int, kill_after: float) -> int:
    """Wait for a command, which is killed when told to and when it hangs."""
    end = time.monotonic() + (kill_after or HANGS_SECONDS)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if not kill_after:
                raise RuntimeError(f"a command was still running after {HANGS_SECONDS} s")
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def _end_orphans(session: int) -> int:
    """Count processes of a session that outlived it, and kill them."""
    alive = left_of(session)
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(alive)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
