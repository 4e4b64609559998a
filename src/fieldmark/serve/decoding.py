"""Decoding for the server: every picture in a process of its own, awaited.

The processes are a pool of :class:`Decoders`, which limits, ends and replaces them; a thread waits
for each. Here are the turns in which pictures get one, and the answers that HTTP has for what they
say. One that dies while it waits for a picture is replaced before the next picture comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from fieldmark.errors import ResourceError
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.isolated import FAILURES, Decoders
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture, Decoded
from fieldmark.serve.limits import Pace, Refusal

_MEND_SECONDS, _MOST_MEND_SECONDS = 0.25, 10.0
"""Seconds between looks at the processes; they grow while none can be started."""
_STATUS = {"too many pixels": 413, "unsupported format": 415}


class AwaitedDecoders:
    """A fixed number of decoding processes, and as many threads that wait for them."""

    def __init__(
        self, count: int, *, spec: InputSpec | None, limits: PictureLimits, seconds: float
    ) -> None:
        self._count, self._limits = count, limits
        self._fit = None if spec is None else spec.to_json()
        self._pool = Decoders(count, seconds=seconds, patience=1)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._mender = ThreadPoolExecutor(1, thread_name_prefix="mend")
        self._mending: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(count)
        self.pace = Pace()

    async def start(self) -> None:
        """Start all processes and wait until they can work.

        Raises:
            ResourceError: if one cannot be started.
        """
        run = asyncio.get_running_loop().run_in_executor
        await asyncio.gather(*(run(self._threads, self._pool.start) for _ in range(self._count)))
        self._mending = asyncio.get_running_loop().create_task(self._mend())

    async def stop(self) -> None:
        """End all processes; pictures that still wait get no answer."""
        if self._mending is not None:
            self._mending.cancel()
        for threads in (self._threads, self._mender):
            threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def kill(self) -> None:
        """End all processes from any thread, at once."""
        self._pool.close()

    async def _mend(self) -> None:
        """Replace processes that died, again and again."""
        pause = _MEND_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await asyncio.get_running_loop().run_in_executor(self._mender, self._pool.mend)
                pause = _MEND_SECONDS
            except ResourceError:  # which ``ready`` and the next picture say
                pause = min(2 * pause, _MOST_MEND_SECONDS)

    @property
    def replaced(self) -> int:
        """Processes that died or were killed; each has a successor once it is needed."""
        return self._pool.failed

    @property
    def working(self) -> int:
        """Processes that are alive."""
        return len(self._pool.pids)

    @property
    def able(self) -> bool:
        """Whether a process is alive that can take a picture, or has one."""
        return self._pool.able

    async def decode(
        self, data: bytes, *, preview: int = 0, turn_by: float | None = None
    ) -> Decoded:
        """Decode one file, and resize it to the input; see ``Decoders.decode``.

        Whoever stops waiting takes back a picture that no process has yet. A process that has it
        goes on to its end or its limit of time, and its answer is left.

        Args:
            data: The file.
            preview: Longest side of a small second picture; 0 for none.
            turn_by: Time of the loop's clock at which a process must be free for it.

        Raises:
            Refusal: 4xx for what is no picture, 503 if two processes died over it or one took too
                long.
            TimeoutError: if no process was free in time.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(turn_by):
            await self._turns.acquire()

        def free(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._turns.release)

        try:
            deciding = self._threads.submit(self._decode, data, preview)
        except RuntimeError:
            self._turns.release()  # and so the next one hears of it
            raise Refusal(503, "stopping", "the server is being stopped") from None
        deciding.add_done_callback(free)  # not before: who is gone may have left a process at work
        found = await asyncio.wrap_future(deciding)
        if isinstance(found, Refusal):
            raise found
        return found

    def _decode(self, data: bytes, preview: int) -> Decoded | Refusal:
        began = time.monotonic()
        found: Decoded | Refusal
        try:
            found = self._pool.decode(data, self._limits, fit=self._fit, preview=preview)
        except ResourceError as error:
            return Refusal(503, "no_decoder", str(error))
        except BadPicture as bad:
            if bad.reason in FAILURES:
                found = Refusal(503, "decoder_failed", str(bad))
            else:
                status = _STATUS.get(bad.reason, 400)
                found = Refusal(status, bad.reason.replace(" ", "_"), str(bad))
        self.pace.saw((time.monotonic() - began) / self._count)
        return found
