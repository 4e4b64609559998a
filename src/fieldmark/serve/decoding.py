"""Decoding for the server: every picture in a process of its own, awaited.

The processes are a pool of :class:`Decoders`, which limits, ends and replaces them; a thread waits
for each. Here are only the answers that HTTP has for what they say.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from fieldmark.errors import ResourceError
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.isolated import FAILURES, Decoders
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture, Decoded
from fieldmark.serve.limits import Pace, Refusal

_STATUS = {"too many pixels": 413, "unsupported format": 415}


class AwaitedDecoders:
    """A fixed number of decoding processes, and as many threads that wait for them."""

    def __init__(
        self, count: int, *, spec: InputSpec | None, limits: PictureLimits, seconds: float
    ) -> None:
        self._count, self._limits = count, limits
        self._fit = None if spec is None else spec.to_json()
        self._pool = Decoders(count, seconds=seconds, patience=1, tries=1)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self.pace = Pace()

    async def start(self) -> None:
        """Start all processes and wait until they can work.

        Raises:
            ResourceError: if one cannot be started.
        """
        run = asyncio.get_running_loop().run_in_executor
        await asyncio.gather(*(run(self._threads, self._pool.start) for _ in range(self._count)))

    async def stop(self) -> None:
        """End all processes; pictures that still wait get no answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

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
        """Whether a process is alive, or can be started as far as is known."""
        return not self._pool.broken or self.working > 0

    async def decode(self, data: bytes, *, preview: int = 0) -> Decoded:
        """Decode one file, and resize it to the input; see ``Decoders.decode``.

        Whoever stops waiting takes back a picture that no process has yet. A process that has it
        goes on to its end or its limit of time, and its answer is left.

        Raises:
            Refusal: 4xx for what is no picture, 503 if the process died over it or took too long.
        """
        run = asyncio.get_running_loop().run_in_executor
        found = await run(self._threads, self._decode, data, preview)
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
                return Refusal(503, "decoder_failed", str(bad))
            status = _STATUS.get(bad.reason, 400)
            found = Refusal(status, bad.reason.replace(" ", "_"), str(bad))
        self.pace.saw((time.monotonic() - began) / self._count)
        return found
