"""All limits of the server, and its refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on everything that a client decides. All of them are on by default."""

    body_bytes: int = 10_000_000
    """Largest body of a request in bytes, counted while it arrives."""
    pictures: int = 32
    """Most pictures in one request."""
    queue: int = 64
    """Most pictures inside the server, from the end of the body to the answer; more: 429. So many
    of the largest bodies are in memory at most; where they would be more, the upload that began
    first is ended with 429."""
    connections: int = 1024
    """Most open connections. One more, and the one that has kept the server waiting longest is
    closed, among those of the address that has most."""
    header_bytes: int = 16_384
    """Most bytes of a request's line and headers."""
    header_seconds: float = 10.0
    """Seconds from the first byte of a request to the end of its headers."""
    body_seconds: float = 30.0
    """Seconds from the end of the headers to the end of the body; see :func:`spread`."""
    decode_seconds: float = 5.0
    """Seconds to decode one picture; a decoding process that takes longer is killed."""
    answer_seconds: float = 10.0
    """Seconds from the end of the body to the answer; a picture that is not begun in half of them
    is refused with 429."""
    write_seconds: float = 15.0
    """Seconds in which a client has to take an answer; see :func:`spread`."""
    drain_seconds: float = 7.0
    """Seconds for finishing the requests that are being answered when the server is stopped."""
    stop_seconds: float = 9.0
    """Seconds after which a server that was told to stop ends, whatever it is doing."""
    batch: int = 32
    """Most pictures scored at a time."""
    batch_seconds: float = 0.5
    """Seconds that scoring a batch may take: batches are kept so small that the next can start."""
    wait_seconds: float = 0.005
    """Seconds that a picture waits for others on their way, while nothing is being scored."""


_numbers = itertools.count()
_GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, less their whole parts, lie evenly between 0 and 1."""


def spread(seconds: float) -> float:
    """So many seconds and up to a third more, each time others.

    A crowd that came together is not ended all at once, which would keep the server busy, and is
    not back all at once, either.
    """
    return seconds * (1 + next(_numbers) * _GOLDEN % 1 / 3)


class Refusal(Exception):  # noqa: N818 - the client's error, not the program's
    """A refused request: the HTTP status, a code for programs, a message for people."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: int = 0) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after = retry_after

    def to_json(self) -> dict[str, str]:
        """Return ``code`` and ``message``."""
        return {"code": self.code, "message": self.message}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        found = {}
        if self.retry_after:
            found["retry-after"] = str(self.retry_after)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


class Pace:
    """Seconds that a picture takes, smoothed over recent ones; 0 before the first."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def saw(self, seconds: float) -> None:
        """Add one more measurement."""
        self.seconds = 0.7 * self.seconds + 0.3 * seconds if self.seconds else seconds


class Slots:
    """Room for pictures inside the server; only used on the event loop, so it needs no lock.

    There are ``queue`` places, and on a slow machine fewer: as many as can be answered, at the
    present pace, in half the time that an answer may take. So under overload clients get 429 at
    once, and not 504 after all of them have waited.
    """

    def __init__(self, limits: Limits, *paces: Pace) -> None:
        self._limits, self._paces = limits, paces
        self.taken = 0

    def take(self, number: int) -> None:
        """Take places; a request alone in the server gets as many as it wants, up to ``queue``.

        Raises:
            Refusal: 429 if there are not that many.
        """
        self.check(number)
        self.taken += number

    def check(self, number: int = 1) -> None:
        """Make sure that there are so many places now, without taking them.

        Raises:
            Refusal: 429 if there are not that many.
        """
        others_wait = self.taken > 0 and self._wait(number) > self._limits.answer_seconds / 2
        if self.taken + number > self._limits.queue or others_wait:
            raise self.busy()

    def busy(self) -> Refusal:
        """The refusal of a picture that would have to wait too long."""
        return Refusal(
            429,
            "busy",
            f"{self.taken} pictures are being worked on already; try again, or send fewer at once",
            retry_after=max(1, min(10, math.ceil(self._wait(1)))),
        )

    def _wait(self, number: int) -> float:
        """Seconds until so many more would be answered, at the present pace."""
        return (self.taken + number) * max((pace.seconds for pace in self._paces), default=0.0)

    def give_back(self, number: int) -> None:
        """Free places."""
        self.taken -= number
