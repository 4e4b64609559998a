"""Scores pictures together that arrive at about the same time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fieldmark.pictures.picture import U8
from fieldmark.seeding import F64
from fieldmark.serve.limits import Limits, Pace

T = TypeVar("T")
_Job = tuple[U8, "asyncio.Future[F64]"]


class Batcher:
    """Collects pictures into batches, and runs the network on one of them at a time.

    Pictures that arrive while a batch is being scored form the next batch. Only when nothing is
    being scored does a picture wait for others that are on their way, a few milliseconds at most.
    """

    def __init__(self, score: Callable[[Sequence[U8]], F64], limits: Limits) -> None:
        self._score, self._limits = score, limits
        self.pace = Pace()
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._task: asyncio.Task[None] | None = None
        self._coming = 0
        self._began = 0.0
        self._scored: set[asyncio.Future[F64]] = set()
        """Those who wait for the batch that is being scored."""
        self.batches = self.pictures = 0
        """Number of batches and of pictures that were scored."""

    async def start(self) -> None:
        """Begin to accept pictures."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Stop; pictures that still wait get no answer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Announce, for the length of the block, that a picture is on its way."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def score(self, pixels: U8, *, turn_by: float | None = None) -> F64:
        """Score one picture; return the probabilities of its classes.

        Args:
            pixels: The picture.
            turn_by: Time of the loop's clock at which its batch must have begun.

        Shape:
            [K]

        Raises:
            TimeoutError: if it had not.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[F64] = loop.create_future()
        self._queue.put_nowait((pixels, answer))
        late = None if turn_by is None else loop.call_at(turn_by, self._give_up, answer)
        try:
            return await answer
        finally:
            if late is not None:
                late.cancel()

    def _give_up(self, answer: asyncio.Future[F64]) -> None:
        """End the waiting of a picture whose batch has not begun."""
        if answer not in self._scored and not answer.done():
            answer.set_exception(TimeoutError())

    async def alone(self, function: Callable[[], T]) -> T:
        """Run a function that needs the network between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def stuck_for(self) -> float:
        """Seconds since the present batch was begun; 0 if none is being scored."""
        return time.monotonic() - self._began if self._began else 0.0

    async def _work(self) -> None:
        while True:
            jobs = [job for job in await self._collect() if not job[1].done()]
            if jobs:
                await self._run(jobs)

    async def _collect(self) -> list[_Job]:
        jobs = [await self._queue.get()]
        now = asyncio.get_running_loop().time
        deadline = now() + self._limits.wait_seconds
        while len(jobs) < self._largest():
            if not self._queue.empty():
                jobs.append(self._queue.get_nowait())
                continue
            if not self._coming or now() >= deadline:
                break
            try:
                async with asyncio.timeout_at(deadline):
                    jobs.append(await self._queue.get())
            except TimeoutError:
                break
        return jobs

    def _largest(self) -> int:
        fitting = self._limits.batch_seconds / self.pace.seconds if self.pace.seconds else 1
        return max(1, min(self._limits.batch, int(fitting)))

    async def _run(self, jobs: list[_Job]) -> None:
        began = self._began = time.monotonic()
        self._scored = {answer for _, answer in jobs}
        try:
            rows = await self.alone(lambda: self._score([pixels for pixels, _ in jobs]))
        except Exception as error:  # every picture of the batch is answered with the error
            for _, answer in jobs:
                if not answer.done():
                    answer.set_exception(error)
            return
        finally:
            self._began = 0.0
            self._scored = set()
        self.pace.saw((time.monotonic() - began) / len(jobs))
        self.batches += 1
        self.pictures += len(jobs)
        for (_, answer), row in zip(jobs, rows, strict=True):
            if not answer.done():  # the client may be gone
                answer.set_result(row)
