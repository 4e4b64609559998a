"""Decoding in processes of its own: a file that crashes a decoder, or hangs it, is a bad file.

Nothing can stop a decoder that runs in a thread, and one that writes where it must not takes all
threads along. So ``decode`` hands over here whatever is not of the plainest (``plain``). A process
(``worker``) has limits of memory and of time. Where it dies, a second one gets the file before the
file is blamed, for a process may be killed for other reasons.

The processes start when the first such file comes, are kept, and end with this one. The server has
a pool of its own, which decodes every file (``serve.decoding``).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fieldmark.errors import ResourceError
from fieldmark.machine.cores import cores
from fieldmark.machine.process import Lock
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture, Decoded, Deep

SECONDS = 10.0
"""Seconds of computing for one picture; a machine that is busy with other things does not count."""
LENGTH = struct.Struct("<I")
"""A message begins with the length of a JSON object; bytes that the object speaks of follow it."""
READY = LENGTH.pack(14) + b'{"shapes": []}'
"""The empty answer with which a process says that it can work. What comes before it is no answer:
an environment may have Python print something when it starts."""

_LONGEST_HEAD = 2**20
_START_SECONDS = 60.0
_PICTURES = 5000
"""After so many a process has a successor: what decoders leak goes with it."""
_TICK_SECONDS = 0.2
_KILLED = 4
"""Processes with a picture that somebody may kill before it is blamed all the same."""
_STARTS = 3
"""Tries to start a process, where it is killed before it can work."""
_TIMERS = {getattr(signal, name, None) for name in ("SIGPROF", "SIGALRM")}
"""What a process ends itself with when its time is up; there are none on Windows."""
_CRASHED, _LATE = FAILURES = ("decoder crashed", "took too long")
"""Why a picture is bad whose process did not answer."""


def _command(seconds: float) -> list[str]:
    """What starts a process that ends itself where a picture takes so many seconds of computing."""
    # -P: what lies in the current folder, which may be full of strangers' files, is not imported.
    return [interpreter(), "-P", "-m", "fieldmark.pictures.worker", str(seconds)]


def interpreter() -> str:
    """A Python of this one's version that a process can be started with; empty if there is none.

    A frozen program and one that has Python inside may name themselves: started, they would be the
    whole program once more, which would start itself again, and so on.
    """
    if getattr(sys, "frozen", False) or "__compiled__" in globals():
        return ""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = (Path(sys.exec_prefix), Path(sys.exec_prefix) / "bin")
    beside = [folder / name for folder in folders for name in (version, "python.exe")]
    for path in (Path(sys.executable or ""), *beside):
        if _PYTHON.fullmatch(path.name) and path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return ""


_PYTHON = re.compile(r"(python|pypy|graalpy)[\d.]*[dtw]{0,2}(_d)?(\.exe)?", re.IGNORECASE)


def _environment() -> dict[str, str]:
    """A decoding process imports from where this one does, and has one thread."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def request(
    data: bytes, limits: PictureLimits, *, fit: dict[str, Any] | None, preview: int
) -> list[bytes]:
    """A picture for a decoding process, to be written to its input in this order."""
    wanted = {"bytes": len(data), "limits": dataclasses.asdict(limits)}
    head = json.dumps({**wanted, "fit": fit, "preview": preview}).encode()
    return [LENGTH.pack(len(head)) + head, data]


def announced(head: dict[str, Any], limits: PictureLimits) -> list[tuple[tuple[int, ...], str]]:
    """The shapes and number types of the arrays that follow the head of an answer.

    Raises:
        ValueError: if they are not those of pictures that were allowed.
    """
    shapes = [tuple(map(int, shape)) for shape in head["shapes"]]
    found = list(zip(shapes, head["types"], strict=True))
    most = 3 * max(limits.max_pixels, 10**7)
    for shape, kind in found:
        if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > most:
            raise ValueError(f"a picture of shape {shape}")
        if kind not in ("uint8", "float32"):
            raise ValueError(f"a picture of {kind}")
    return found


class Decoders:
    """A number of decoding processes for the threads of this one. Thread-safe.

    Args:
        count: Processes at most.
        seconds: Of computing for one picture.
        patience: Times the seconds that a process has, until one that does not even compute is
            given up.
        tries: Processes that may die of a picture before it is blamed.
        command: What starts a process, for tests.
    """

    def __init__(
        self,
        count: int,
        *,
        seconds: float = SECONDS,
        patience: float = 2.5,
        tries: int = 2,
        command: Sequence[str] | None = None,
    ) -> None:
        self._count, self._seconds, self._tries = count, seconds, tries
        self._wait = patience * seconds
        self._command = command or _command(seconds)
        if not self._command[0]:
            raise ResourceError(
                "no decoding process can be started: this is a frozen program, or Python inside "
                "another program; run fieldmark with a Python of its own"
            )
        self.failed = 0
        """Processes that died or were killed, over a picture or without one."""
        self._room = threading.BoundedSemaphore(count)
        self._lock = threading.Lock()
        self._all: set[_Process] = set()
        self._idle: list[_Process] = []
        self._closed = threading.Event()
        self._watch: threading.Thread | None = None

    def start(self) -> None:
        """Start a process before it is needed, unless all are there.

        Raises:
            ResourceError: if it cannot be started.
        """
        with self._room:
            process = self._start()
            if process is not None:
                self._give_back(process)

    def decode(
        self,
        data: bytes,
        limits: PictureLimits,
        *,
        fit: dict[str, Any] | None = None,
        preview: int = 0,
    ) -> Decoded:
        """Decode a picture file.

        Args:
            data: The file.
            limits: As for ``decode``; the process's memory is limited in proportion.
            fit: An ``InputSpec`` as JSON: the pixels come resized to it.
            preview: Longest side of a small second picture; 0 for none.

        Raises:
            BadPicture: also if it takes too long, or processes died of it (:data:`FAILURES`).
            ResourceError: if no process can be started.
        """
        message = request(data, limits, fit=fit, preview=preview)
        failure = BadPicture(_CRASHED)
        died = killed = 0
        while died < self._tries and killed < _KILLED:
            with self._room:
                process = self._take()
                try:
                    return process.ask(message, limits, self._wait)
                except (EOFError, OSError, ValueError, KeyError, TypeError):
                    failure = process.failure(self._seconds)
                    self.failed += 1
                finally:
                    self._give_back(process)
            if failure.reason == _LATE:  # and would again
                break
            if failure.detail in ("SIGKILL", "SIGTERM"):
                killed += 1  # by somebody, or for want of memory: hardly the picture's fault
            else:
                died += 1
        raise failure

    def close(self) -> None:
        """End all processes; none starts any more."""
        with self._lock:
            self._closed.set()
            processes = list(self._all)
        for process in processes:
            self._end(process)

    def mend(self) -> None:
        """Replace the processes that died while they waited, and start those that are missing.

        Raises:
            ResourceError: if one cannot be started.
        """
        with self._lock:
            dead = [process for process in self._idle if not process.alive]
            self._idle = [process for process in self._idle if process not in dead]
        for process in dead:
            self.failed += 1
            self._end(process)
        while len(self._all) < self._count and not self._closed.is_set():
            if not self._room.acquire(blocking=False):
                return  # as many pictures are being decoded, or begun, as there may be
            try:
                if (started := self._start()) is not None:
                    self._give_back(started)
            finally:
                self._room.release()

    @property
    def pids(self) -> set[int]:
        """Process IDs of those that are alive."""
        with self._lock:
            return {process.pid for process in self._all if process.alive}

    @property
    def able(self) -> bool:
        """Whether a process is alive that can take a picture, or has one."""
        with self._lock:
            return any(process.started and process.alive for process in self._all)

    def _take(self) -> _Process:
        while not self._closed.is_set():
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                if (process := self._start()) is not None:
                    return process
            elif process.alive:
                return process
            else:  # somebody killed it, which is no picture's fault
                self.failed += 1
                self._end(process)
        raise ResourceError("the decoding processes were ended; nothing is decoded any more")

    def _give_back(self, process: _Process) -> None:
        if process.usable and not self._closed.is_set():
            with self._lock:
                self._idle.append(process)
        else:
            self._end(process)

    def _start(self) -> _Process | None:
        """A new process that can work; None if all are there, or none may start any more.

        One that is killed before it can work says nothing of the next, which is tried.

        Raises:
            ResourceError: if it cannot be started.
        """
        for _ in range(_STARTS - 1):
            try:
                return self._start_once()
            except _KilledEarlyError:
                self.failed += 1
        return self._start_once()

    def _start_once(self) -> _Process | None:
        process = None
        try:
            with self._lock:
                if self._closed.is_set() or len(self._all) == self._count:
                    return None
                process = _Process(self._command)
                self._all.add(process)
                if self._watch is None:
                    self._watch = threading.Thread(
                        target=self._watching, name="decoders", daemon=True
                    )
                    self._watch.start()
            process.wait_until_ready(_START_SECONDS)
        except BaseException as error:
            killed = process is not None and process.killed
            if process is not None:
                self._end(process)
            if isinstance(error, OSError | EOFError | ValueError | struct.error):
                raise (_KilledEarlyError if killed else ResourceError)(
                    "a decoding process could not be started; is there memory left, and may "
                    f"{self._command[0]} be run?"
                ) from error
            raise
        return process

    def _end(self, process: _Process) -> None:
        process.end()
        with self._lock:
            self._all.discard(process)

    def _watching(self) -> None:
        """Kill what takes too long: the thread that waits for it reads the end of its output.

        Time is counted in ticks: while this whole program is stopped, it does not pass.
        """
        while not self._closed.wait(_TICK_SECONDS):
            with self._lock:
                processes = list(self._all)
            for process in processes:
                process.tick(_TICK_SECONDS)


class _KilledEarlyError(ResourceError):
    """A process was killed before it could work."""


class _Process:
    """One decoding process, used by one thread at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._popen = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is this process's to handle
            env=_environment(),
        )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._sink: BinaryIO = self._popen.stdin  # type: ignore[assignment]
        self._source: BinaryIO = self._popen.stdout  # type: ignore[assignment]
        self.pid = self._popen.pid
        self._left = math.inf
        """Seconds until the answer must be there."""
        self.usable = False
        """Whether it waits for a picture; not so after half an answer."""
        self.started = False
        """Whether it can work, or could."""
        self._late = False
        self._said = b""
        self._pictures = 0

    @property
    def alive(self) -> bool:
        """Whether it runs, or would if it were not stopped."""
        return self._popen.poll() is None

    def wait_until_ready(self, seconds: float) -> None:
        """Wait for the empty answer that a process begins with."""
        self._left = seconds
        while not self._said.endswith(READY):  # before it, what Python's start had to say
            self._said = (self._said + _read(self._source, 1))[-len(READY) :]
        self._left, self.usable, self.started = math.inf, True, True

    def ask(self, message: Sequence[bytes], limits: PictureLimits, seconds: float) -> Decoded:
        """Have one picture decoded.

        Raises:
            BadPicture: as the process says.
            EOFError: if it died, or was ended by :meth:`tick`; or OSError.
            ValueError: if it answers what no such process does; or KeyError, or TypeError.
        """
        self.usable = False
        self._left = seconds
        for part in message:
            self._sink.write(part)
        self._sink.flush()
        head = _read_head(self._source)
        arrays = [_read_array(self._source, *each) for each in announced(head, limits)]
        self._left = math.inf
        self._pictures += 1
        self.usable = self._pictures < _PICTURES
        if "bad" in head:
            raise BadPicture(*map(str, head["bad"]))
        pixels, *more = arrays
        notes = tuple(map(str, head["notes"]))
        preview = more[0] if more else None
        deep = None
        if head["deep"] is not None:
            identity, low, high, kind = head["deep"]
            deep = Deep(str(identity), float(low), float(high), str(kind))
        side, orientation = int(head["side"]), int(head["orientation"])
        return Decoded(pixels, notes, side, orientation, preview, deep)

    def failure(self, seconds: float) -> BadPicture:
        """What is to be said of the picture that it failed over."""
        try:
            code = self._popen.wait(1)  # after the end of its output, for the code it ends with
        except subprocess.TimeoutExpired:
            return BadPicture(_CRASHED, "its answer makes no sense")
        if self._late or -code in _TIMERS:
            return BadPicture(_LATE, f"more than {seconds:g} s to decode")
        return BadPicture(_CRASHED, _signal(-code) if code < 0 else f"exit code {code}")

    @property
    def killed(self) -> bool:
        """Whether somebody killed it, other than :meth:`tick`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(1) < 0 and not self._late
        return False

    def tick(self, seconds: float) -> None:
        """Let time pass, and kill the process where that was too much."""
        self._left -= seconds
        if self._left < 0 and not self._late:
            self._late = True
            self._popen.kill()

    def end(self) -> None:
        """Kill it if it lives, and leave nothing of it behind."""
        self.usable = False
        self._popen.kill()
        self._popen.wait()
        for stream in (self._sink, self._source):
            with contextlib.suppress(OSError):  # what was written and never read
                stream.close()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read_head(source: BinaryIO) -> dict[str, Any]:
    (length,) = LENGTH.unpack(_read(source, LENGTH.size))
    if length > _LONGEST_HEAD:
        raise ValueError("not an answer")
    head: dict[str, Any] = json.loads(_read(source, length))
    return head


def _read_array(source: BinaryIO, shape: tuple[int, ...], kind: str) -> npt.NDArray[Any]:
    array = np.empty(shape, kind)
    if source.readinto(array.reshape(-1).data) != array.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return array


def _read(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    if len(data) < length:
        raise EOFError
    return data


_pools: dict[int, Decoders] = {}
"""By process: a fork has no share in the processes of its parent."""
_pools_lock = Lock()


def decode(data: bytes, limits: PictureLimits) -> Decoded:
    """Decode a picture file in a process of its own, as many at once as there are processors.

    Raises:
        BadPicture: also if it takes too long, or two processes died of it.
        ResourceError: if no process can be started.
    """
    return _pool().decode(data, limits)


def can_start() -> bool:
    """Whether processes can be started; a warning says, once, what is done without them."""
    if interpreter():
        return True
    _warn_once()
    return False


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        f"pictures other than plain JPEG and PNG are decoded in this program itself, as "
        f"{sys.executable or 'it'} is no Python that a process could be started with: a damaged "
        "file may end it",
        RuntimeWarning,
        stacklevel=2,
    )


def pids() -> set[int]:
    """Process IDs of the decoding processes that this one has now."""
    return _pool().pids


def _pool() -> Decoders:
    with _pools_lock:
        pool = _pools.get(os.getpid())
        if pool is None:
            pool = _pools[os.getpid()] = Decoders(cores())
            atexit.register(functools.partial(_close, pool, os.getpid()))
        return pool


def _close(pool: Decoders, owner: int) -> None:
    """End the processes with the program; a fork of it leaves them alone."""
    if os.getpid() == owner:
        pool.close()
