"""Pictures are decoded in processes of their own: one that crashes or hangs takes no server along.

``python -m fieldmark.serve.decoding`` is such a process: requests come in on its standard input,
answers go out on its standard output, and it ends when its input does. :class:`Decoders` keeps some
of them, gives each picture to one that is free, and replaces those that die or take too long.

A request is ``<QI``: number of bytes and longest side of the preview (0 for none), then the bytes.
An answer is ``<I``: length of a JSON object, the object, then the arrays whose shapes it names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from fieldmark.config import FULL_SIDE
from fieldmark.data.dataset import U8, BadPicture
from fieldmark.data.decode import decode
from fieldmark.errors import ResourceError
from fieldmark.inputs import InputSpec, shrunk
from fieldmark.serve.limits import Pace, Refusal

_REQUEST, _LENGTH = struct.Struct("<QI"), struct.Struct("<I")
_STATUS = {"too many pixels": 413, "unsupported format": 415}
_START_SECONDS = 60.0
_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Decoded:
    """What came of one file."""

    pixels: U8
    """Fitted to the network's input, [3, S, S]; or, without a specification, as decoded."""
    preview: U8 | None
    """A small version of the whole picture, [h, w, 3], where one was asked for."""


class Decoders:
    """A fixed number of decoding processes."""

    def __init__(
        self,
        count: int,
        *,
        spec: InputSpec | None,
        max_pixels: int,
        seconds: float,
        at_least: int = FULL_SIDE,
    ) -> None:
        self._count, self._seconds = count, seconds
        self._job = json.dumps(
            {
                "input": None if spec is None else spec.to_json(),
                "max_pixels": max_pixels,
                "at_least": at_least,
                "seconds": seconds,
            }
        )
        self._free: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
        self._all: set[asyncio.subprocess.Process] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self.pace = Pace()
        self.replaced = 0
        """Processes that died or were killed, and have a successor."""

    async def start(self) -> None:
        """Start all processes and wait until they can work.

        Raises:
            ResourceError: if one cannot be started.
        """
        await asyncio.gather(*(self._add() for _ in range(self._count)))

    async def stop(self) -> None:
        """End all processes."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for process in list(self._all):
            await self._end(process)

    async def decode(self, data: bytes, *, preview: int = 0) -> Decoded:
        """Decode one file.

        Raises:
            Refusal: 4xx for what is no picture, 503 if the process died over it or took too long.
        """
        process = await self._free.get()
        whole, began = False, time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                answer = await _ask(process, data, preview)
            whole = True
        except TimeoutError:
            raise Refusal(
                503, "decoder_failed", f"decoding took more than {self._seconds:g} s"
            ) from None
        except (asyncio.IncompleteReadError, OSError, ValueError):
            raise Refusal(503, "decoder_failed", "the decoder died over the picture") from None
        finally:  # also when the client's time is up: half an answer would be the next one's
            if whole:
                self.pace.saw((time.monotonic() - began) / self._count)
                self._free.put_nowait(process)
            else:
                self._replace(process)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    def _replace(self, process: asyncio.subprocess.Process) -> None:
        self.replaced += 1

        async def successor() -> None:
            await self._end(process)
            await self._add()

        task = asyncio.get_running_loop().create_task(successor())
        self._starting.add(task)
        task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            task.exception()  # ends in a ResourceError where there is no memory for a process

    @property
    def working(self) -> int:
        """Processes that are alive."""
        return len(self._all)

    async def _add(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            self._job,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the server's to handle
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._all.add(process)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await _read_answer(process)
        except (asyncio.IncompleteReadError, OSError, TimeoutError) as error:
            await self._end(process)
            raise ResourceError(
                "a decoding process could not be started; is there memory left?"
            ) from error
        except asyncio.CancelledError:
            await self._end(process)
            raise
        self._free.put_nowait(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()  # its pipes are closed when they are read to their end
        self._all.discard(process)


async def _ask(process: asyncio.subprocess.Process, data: bytes, preview: int) -> Decoded | Refusal:
    assert process.stdin is not None
    process.stdin.write(_REQUEST.pack(len(data), preview))
    process.stdin.write(data)
    await process.stdin.drain()
    return await _read_answer(process)


async def _read_answer(process: asyncio.subprocess.Process) -> Decoded | Refusal:
    assert process.stdout is not None
    (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
    head = json.loads(await process.stdout.readexactly(length))
    if "refused" in head:
        return Refusal(*head["refused"])
    arrays = []
    for shape in head["shapes"]:
        raw = await process.stdout.readexactly(math.prod(shape))
        arrays.append(np.frombuffer(raw, np.uint8).reshape(shape))
    return Decoded(arrays[0], arrays[1] if len(arrays) > 1 else None)


# --- in the decoding process -----------------------------------------------------------------


def work(source: BinaryIO, sink: BinaryIO, job: str) -> None:
    """Answer requests until the input ends."""
    wanted = json.loads(job)
    spec = None if wanted["input"] is None else InputSpec.from_json(wanted["input"])
    _answer(sink, {"shapes": [[0]]})  # ready
    while head := source.read(_REQUEST.size):
        length, preview = _REQUEST.unpack(head)
        data = source.read(length)
        with _time_limit(wanted["seconds"]):
            try:
                picture, _ = decode(
                    data, max_pixels=wanted["max_pixels"], at_least=wanted["at_least"]
                )
                arrays = [picture if spec is None else spec.pixels(picture)]
                if preview:
                    arrays.append(shrunk(picture, preview))
            except BadPicture as bad:
                refused = [_STATUS.get(bad.reason, 400), bad.reason.replace(" ", "_"), str(bad)]
                _answer(sink, {"refused": refused})
                continue
            except MemoryError:
                _answer(sink, {"refused": [413, "too_many_pixels", "not enough memory for it"]})
                continue
        _answer(sink, {"shapes": [a.shape for a in arrays]}, *arrays)


def _answer(sink: BinaryIO, head: dict[str, object], *arrays: U8) -> None:
    text = json.dumps(head).encode()
    sink.write(_LENGTH.pack(len(text)) + text)
    for array in arrays:
        sink.write(np.ascontiguousarray(array).data)
    sink.flush()


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End this process when a picture takes too long and there is no server left to notice."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
    yield
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _main() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold pictures
    sink = os.fdopen(os.dup(1), "wb")
    # What libraries print of a broken file is nobody's answer, and belongs into no log.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    with contextlib.suppress(BrokenPipeError):
        work(sys.stdin.buffer, sink, sys.argv[1])


if __name__ == "__main__":
    _main()
