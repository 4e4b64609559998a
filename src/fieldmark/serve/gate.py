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
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fieldmark.serve.counters import Counters
from fieldmark.serve.limits import Limits, Refusal

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


def refused(refusal: Refusal) -> JSONResponse:
    """Turn a refusal into an answer."""
    return JSONResponse(
        {"error": refusal.to_json()}, status_code=refusal.status, headers=refusal.headers
    )


class Body:
    """A request's body, counted while it arrives and under a time limit."""

    def __init__(self, receive: Receive, headers: Headers, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._count = 0
        self._deadline: float | None = None
        self._waits_for_go = "100-continue" in headers.get("expect", "").lower()
        self.finished = False

    async def __call__(self) -> Message:
        """Return the next message, as a handler receives it.

        Raises:
            Refusal: 413 if the body is too large, 408 if it takes too long.
        """
        if self.finished:
            return await self._receive()
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._limits.body_seconds
        self._waits_for_go = False
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(
                408,
                "body_too_slow",
                f"the body did not arrive within {self._limits.body_seconds:g} s",
            ) from None
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            self.finished = not message.get("more_body", False)
        else:
            self.finished = True
        if self._count > self._limits.body_bytes:
            raise too_large(self._limits)
        return message

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
    ) -> None:
        self._app, self._limits, self._counters = app, limits, counters
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
        body = Body(receive, headers, self._limits)
        started = time.monotonic()
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.discard()
                found = MutableHeaders(raw=message["headers"])
                for name, value in SECURITY_HEADERS.items():
                    found.setdefault(name, value)
                if not body.finished or self.draining:
                    found["connection"] = "close"
                self._counters.answered(path, message["status"], time.monotonic() - started)
            await send(message)

        refusal = self._refusal(scope, path, headers)
        if refusal is not None:
            await refused(refusal)(scope, body, finish)
            return
        self.in_flight += 1
        try:
            await self._app(scope, body, finish)
        finally:
            self.in_flight -= 1

    def _refusal(self, scope: Scope, path: str, headers: Headers) -> Refusal | None:
        # h11 counts only what it has to keep: headers that arrive at once are not counted there.
        size = len(scope["query_string"]) + sum(len(k) + len(v) for k, v in headers.raw)
        if size + len(scope["path"]) > self._limits.header_bytes:
            return Refusal(431, "headers_too_large", "the request's line and headers are too long")
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
    return origin is None or urlsplit(origin).netloc == host
