"""The check that every request passes before the server works for it: who sends it, and how much.

Strangers can reach even a server on the loopback address: any page in a browser on this machine can
send requests to it. So the Host header must name this server (a name that was rebound to 127.0.0.1
does not), a POST must not come from another site, no header allows other origins to read answers,
and outside of the loopback address a token is needed.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fieldmark.serve.counters import Counters
from fieldmark.serve.limits import Limits, Refusal, spread

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/openapi.json"})
"""Paths that are answered without the token; they tell nothing about the model or its pictures."""

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
_DISCARD_SECONDS = 1.0
_UNCLEAR = ("two_lengths", "upgrade")
"""Refusals after which nothing that comes on the connection is read."""
_WHOLE = re.compile(r"(\s*bytes\s*=\s*0+\s*-\s*[0-9]{0,18}\s*)?", re.IGNORECASE)
"""Ranges that may be answered with the whole: they begin where it begins."""


def refused(refusal: Refusal) -> JSONResponse:
    """Turn a refusal into an answer."""
    return JSONResponse(
        {"error": refusal.to_json()}, status_code=refusal.status, headers=refusal.headers
    )


class Uploads:
    """The bodies in memory, all of them together: at most ``queue`` of the largest.

    Where they would be more, the upload that began first, and has not ended, makes room: so many
    that only begin keep nobody out.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.queue * limits.body_bytes
        self._arriving: dict[Body, None] = {}
        """In the order in which they began."""
        self.held = 0
        """Bytes."""

    def begin(self, body: Body) -> None:
        """A body begins to arrive."""
        self._arriving[body] = None

    def grow(self, body: Body, number: int) -> None:
        """So many bytes of it have arrived."""
        body.held += number
        self.held += number
        while self.held > self._most and self._arriving:
            first = next(iter(self._arriving))
            self.forget(first)
            first.make_room()

    def arrived(self, body: Body) -> None:
        """It is whole: it is worked on, and makes no room for others."""
        self._arriving.pop(body, None)

    def forget(self, body: Body) -> None:
        """It is in memory no more."""
        self._arriving.pop(body, None)
        self.held -= body.held
        body.held = 0


class Body:
    """A request's body, counted while it arrives and under a time limit."""

    def __init__(
        self, receive: Receive, headers: Headers, limits: Limits, uploads: Uploads
    ) -> None:
        self._receive, self._limits, self._uploads = receive, limits, uploads
        self._count = 0
        self._waiting: asyncio.Timeout | None = None
        self._makes_room = False
        self.held = 0
        """Bytes of it that are in memory, as :class:`Uploads` counts them."""
        self._deadline: float | None = None
        self._waits_for_go = "100-continue" in headers.get("expect", "").lower()
        self.finished = False

    async def __call__(self) -> Message:
        """Return the next message, as a handler receives it.

        Raises:
            Refusal: 413 if the body is too large, 408 if it takes too long, 429 if others need its
                room.
        """
        if self.finished:
            return await self._receive()
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + spread(self._limits.body_seconds)
            self._uploads.begin(self)
        self._waits_for_go = False
        try:
            async with asyncio.timeout_at(self._deadline) as self._waiting:
                message = await self._receive()
        except TimeoutError:
            if self._makes_room:
                raise _no_room() from None
            raise Refusal(
                408,
                "body_too_slow",
                f"the body did not arrive within {self._limits.body_seconds:g} s",
            ) from None
        finally:
            self._waiting = None
        if message["type"] == "http.request":
            number = len(message.get("body", b""))
            self._count += number
            self._uploads.grow(self, number)
            self.finished = not message.get("more_body", False)
        else:
            self.finished = True
        if self._makes_room:
            raise _no_room()
        if self._count > self._limits.body_bytes:
            raise too_large(self._limits)
        if self.finished:
            self._uploads.arrived(self)
        return message

    def make_room(self) -> None:
        """End the upload: whoever waits for it gets a refusal."""
        self._makes_room = True
        if self._waiting is not None:
            self._waiting.reschedule(0)

    async def discard(self) -> None:
        """Read the rest of the body for a moment, and drop it.

        A client that is still sending does not read; closing the connection would lose the answer.
        """
        if self._waits_for_go:
            return
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not self.finished:
                    message = await self._receive()
                    self.finished = not message.get("more_body", False)
        except TimeoutError:
            pass


def too_large(limits: Limits) -> Refusal:
    """Make the refusal of a body that is too large."""
    return Refusal(413, "too_large", f"a request may have {limits.body_bytes} bytes at most")


def _no_room() -> Refusal:
    return Refusal(
        429, "busy", "too much is being sent to the server at once; try again", retry_after=1
    )


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        counters: Counters,
        paths: Collection[str],
        hosts: Collection[str] = (),
        token: str = "",
        root_path: str = "",
    ) -> None:
        self._app, self._limits, self._counters = app, limits, counters
        self._root = root_path
        self.uploads = Uploads(limits)
        self.paths = frozenset(paths)
        self._hosts = frozenset(host.lower() for host in hosts) | {"localhost"}
        self._token = token.encode()
        self.draining = False
        """Whether the server was told to stop; new requests are then refused."""
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, pass it on, and add the headers that every answer has."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = Body(receive, headers, self._limits, self.uploads)
        started = time.monotonic()
        scope = {**scope, "path": self._below_root(scope["path"]), "root_path": ""}
        path = scope["path"] if scope["path"] in self.paths else "other"
        refusal = self._refusal(scope, path, headers)
        unclear = refusal is not None and refusal.code in _UNCLEAR

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start":
                if not unclear:
                    await body.discard()
                found = MutableHeaders(raw=message["headers"])
                for name, value in SECURITY_HEADERS.items():
                    found.setdefault(name, value)
                if not body.finished or self.draining or unclear:
                    found["connection"] = "close"
                self._counters.answered(path, message["status"], time.monotonic() - started)
            await send(message)

        if refusal is not None:
            await refused(refusal)(scope, body, finish)
            return
        self.in_flight += 1
        try:
            await self._app(scope, body, finish)
        except asyncio.CancelledError:
            if not self.draining:  # else the server has waited long enough
                raise
        finally:
            self.in_flight -= 1
            self.uploads.forget(body)

    def _below_root(self, path: str) -> str:
        """The path as the routes have it: proxies take the prefix off, or leave it."""
        if self._root and (path + "/").startswith(self._root + "/"):
            return path[len(self._root) :] or "/"
        return path

    def _refusal(self, scope: Scope, path: str, headers: Headers) -> Refusal | None:
        # h11 counts only what it has to keep: headers that arrive at once are not counted there.
        size = len(scope["query_string"]) + sum(len(k) + len(v) for k, v in headers.raw)
        if size + len(scope["path"]) > self._limits.header_bytes:
            return Refusal(431, "headers_too_large", "the request's line and headers are too long")
        if "transfer-encoding" in headers and (
            "content-length" in headers or scope["http_version"] == "1.0"
        ):
            return Refusal(
                400, "two_lengths", "Transfer-Encoding and another length: where it ends is unclear"
            )
        if "websocket" in headers.get("upgrade", "").lower():
            return Refusal(400, "upgrade", "there are no web sockets here")
        if not _WHOLE.fullmatch(headers.get("range", "")):
            return Refusal(416, "range", "answers are whole; leave the Range header out")
        host = headers.get("host", "")
        if not self._is_ours(host):
            return Refusal(400, "wrong_host", "the Host header does not name this server")
        if self.draining and path not in ("/health", "/ready", "/metrics"):
            return Refusal(503, "stopping", "the server is being stopped", retry_after=5)
        if scope["method"] == "POST" and not _same_origin(headers, host):
            return Refusal(403, "other_site", "pages of other sites may not send pictures")
        if self._token and path not in OPEN_PATHS and not self._knows_token(headers):
            return Refusal(
                401, "token", "the header 'Authorization: Bearer TOKEN' is missing or wrong"
            )
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether the Host header is this server's. Any address is: only names can be rebound."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or is_address(name)

    def _knows_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self._token)
        return right and kind.lower() == "bearer"


def is_address(name: str) -> bool:
    """Whether this is an IP address and not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same_origin(headers: Headers, host: str) -> bool:
    """Whether the request is from this server's page or from a program, not from another site."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc == host
    except ValueError:  # no address at all
        return False
