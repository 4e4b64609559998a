"""Commands in processes of their own: how long, how much memory, what they said."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.05
GRACE_SECONDS = 10
"""Time that a command whose limit is over has for ending by itself."""


class Missing(Exception):  # noqa: N818 - a peer that is not installed is an outcome
    """A peer that is not installed."""


class Failed(Exception):  # noqa: N818
    """A peer that stopped with an error; the message is the error's last line."""


class TooLong(Failed):
    """A command that was stopped because its time was over."""


@dataclass(frozen=True)
class Ran:
    """A command that ended well."""

    seconds: float
    """From before the process to after its end."""
    peak_mb: float
    """Largest resident memory of the process, in MB of 10^6 bytes."""
    stdout: str
    cpu_s: float = 0.0
    """Seconds of processor time, of all its threads and of processes that it waited for."""


def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[float], None] = lambda seconds: None,
    limit_s: float = math.inf,
) -> Ran:
    """Run a command to its end; ``watch`` is called meanwhile with the seconds since its start.

    The peak of its memory is at least the size of this process, of which it begins as a copy.

    Raises:
        Missing: if the command lacks a module.
        Failed: if it ends with an error.
        TooLong: if it takes longer than ``limit_s``; it is stopped then.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - our own programs and installed peers
            argv,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        status, usage, seconds = _wait(process, start, watch, limit_s)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode("utf-8", "replace")
        stderr = err.read().decode("utf-8", "replace")
    if seconds > limit_s:
        raise TooLong(f"over {limit_s:g} s")
    if status != 0:
        raise _error(stderr or stdout, status)
    kilobyte = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    peak_mb = usage.ru_maxrss * kilobyte / 1e6
    return Ran(seconds, peak_mb, stdout, usage.ru_utime + usage.ru_stime)


def _wait(
    process: subprocess.Popen[bytes],
    start: float,
    watch: Callable[[float], None],
    limit_s: float,
) -> tuple[int, resource.struct_rusage, float]:
    """Exit status, what it used as the system counts it, and seconds.

    Only ``wait4`` tells the memory of this one process, so the end is looked for again and again.
    """
    asked_to_end = False
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - start
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage, seconds
            watch(seconds)
            if seconds > limit_s + GRACE_SECONDS:
                process.kill()
            elif seconds > limit_s and not asked_to_end:
                asked_to_end = True
                process.terminate()
            time.sleep(POLL_SECONDS if seconds > 5 else POLL_SECONDS / 50)
    except BaseException:
        process.kill()
        raise


@dataclass(frozen=True)
class Answer:
    """What a program of ``benchmarks/peers`` found out, and what it cost."""

    value: Any
    """The JSON value in the last line it printed."""
    ran: Ran


def program(
    name: str,
    *words: object,
    cache: Path | None = None,
    python: str = sys.executable,
    limit_s: float = math.inf,
) -> Answer:
    """Run a program of ``benchmarks/peers``.

    Args:
        name: The program's module in ``benchmarks.peers``.
        words: Its arguments.
        cache: Folder for whatever is kept between commands; see :func:`environment`.
        python: The interpreter.
        limit_s: Seconds after which it is stopped.

    Raises:
        Missing: if it lacks a module.
        Failed: if it ends with an error, says nothing, or takes too long.
    """
    argv = [python, "-m", f"benchmarks.peers.{name}", *map(str, words)]
    ran = run(argv, environment=environment(cache), limit_s=limit_s)
    lines = ran.stdout.strip().splitlines()
    try:
        return Answer(json.loads(lines[-1]), ran)
    except (IndexError, ValueError):
        raise Failed(f"{name} gave no figures: {anonymous(lines[-1] if lines else '')}") from None


def environment(cache: Path | None) -> dict[str, str]:
    """What makes a command keep its cache in this folder; nothing for the usual one."""
    return {} if cache is None else {"FIELDMARK_CACHE": str(cache), "XDG_CACHE_HOME": str(cache)}


def _error(text: str, status: int) -> Missing | Failed:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    last = anonymous(lines[-1]) if lines else f"ended with status {status}"
    found = re.match(r"ModuleNotFoundError: (.*)", last)
    return Missing(f"not installed: {found.group(1)}") if found else Failed(f"failed: {last}")


def anonymous(text: str) -> str:
    """Keep the last part only of whatever looks like an absolute path."""
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])+", "", text)
