"""Pictures are decoded in processes of their own: one that crashes or hangs takes no server along.

They are those that training has for unusual files (``pictures.worker``); here they get every file,
and resize it to the input as well. :class:`Decoders` keeps some of them, gives each picture to one
that is free, and replaces those that die or take too long, all of it on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldmark.errors import ResourceError
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.isolated import LENGTH, command, environment, request, shapes
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture
from fieldmark.serve.limits import Pace, Refusal

_STATUS = {"too many pixels": 413, "unsupported format": 415}
_START_SECONDS = 60.0


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
        limits: PictureLimits,
        seconds: float,
    ) -> None:
        self._count, self._seconds = count, seconds
        self._limits = limits
        self._fit = None if spec is None else spec.to_json()
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
                answer = await self._ask(process, data, preview)
            whole = True
        except TimeoutError:
            raise Refusal(
                503, "decoder_failed", f"decoding took more than {self._seconds:g} s"
            ) from None
        except (asyncio.IncompleteReadError, OSError, ValueError, KeyError, TypeError):
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
            *command(self._seconds),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the server's to handle
            env=environment(),
        )
        self._all.add(process)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await _read_head(process)
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

    async def _ask(
        self, process: asyncio.subprocess.Process, data: bytes, preview: int
    ) -> Decoded | Refusal:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.writelines(request(data, self._limits, fit=self._fit, preview=preview))
        await process.stdin.drain()
        head = await _read_head(process)
        arrays = []
        for shape in shapes(head, self._limits):
            raw = await process.stdout.readexactly(math.prod(shape))
            arrays.append(np.frombuffer(raw, np.uint8).reshape(shape))
        if "bad" in head:
            bad = BadPicture(*head["bad"])
            status = _STATUS.get(bad.reason, 400)
            return Refusal(status, bad.reason.replace(" ", "_"), str(bad))
        return Decoded(arrays[0], arrays[1] if len(arrays) > 1 else None)


async def _read_head(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    head: dict[str, Any] = json.loads(await process.stdout.readexactly(length))
    return head
