"""All limits of the server, and its refusals."""

from __future__ import annotations

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
    """Most pictures inside the server, from the first byte of the body to the answer; more: 429."""
    connections: int = 1024
    """Most open connections; further ones are closed at once."""
    header_bytes: int = 16_384
    """Most bytes of a request's line and headers."""
    header_seconds: float = 10.0
    """Seconds from the first byte of a request to the end of its headers."""
    body_seconds: float = 30.0
    """Seconds from the end of the headers to the end of the body."""
    decode_seconds: float = 5.0
    """Seconds to decode one picture; a decoding process that takes longer is killed."""
    answer_seconds: float = 10.0
    """Seconds from the end of the body to the answer."""
    drain_seconds: float = 10.0
    """Seconds for finishing the requests that are being answered when the server is stopped."""
    batch: int = 32
    """Most pictures scored at a time."""
    batch_seconds: float = 0.5
    """Seconds that scoring a batch may take: batches are kept so small that the next can start."""
    wait_seconds: float = 0.005
    """Seconds that a picture waits for others on their way, while nothing is being scored."""


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

    def take(self, number: int, *, own: int = 0) -> None:
        """Take places; a request alone in the server gets as many as it wants, up to ``queue``.

        Args:
            number: Number of places.
            own: How many of the places that are taken are the request's own.

        Raises:
            Refusal: 429 if there are not that many.
        """
        wanted = self.taken + number
        wait = wanted * max((pace.seconds for pace in self._paces), default=0.0)
        others_wait = self.taken > own and wait > self._limits.answer_seconds / 2
        if wanted > self._limits.queue or others_wait:
            raise Refusal(
                429,
                "busy",
                f"{self.taken} pictures are being worked on already; try again",
                retry_after=max(1, min(10, math.ceil(wait))),
            )
        self.taken = wanted

    def give_back(self, number: int) -> None:
        """Free places."""
        self.taken -= number
