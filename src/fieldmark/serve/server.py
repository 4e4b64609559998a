"""uvicorn, with a time limit for headers, a limit on connections, and a stop that answers.

uvicorn waits for a request's headers as long as the client likes, and stops accepting at the first
signal, so that clients who come during the stop see a refused connection. Here headers have a time
limit, and after SIGTERM or Ctrl-C the server accepts connections for a while to answer 503, until
the requests that it had begun are answered; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fieldmark.errors import ConfigError, ResourceError
from fieldmark.serve.app import Service
from fieldmark.serve.limits import Limits

_LINGER_SECONDS = 0.3
"""Seconds after a signal for which new requests are answered 503, at least."""


def run(service: Service, listener: socket.socket, *, ready: Callable[[], None]) -> None:
    """Serve until a signal comes.

    Raises:
        ResourceError: if the server cannot be started.
    """
    # One line for each malformed request would let anybody fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        make(service, ready=ready).run(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the application did not start
        raise ResourceError("the server could not be started; the lines above say why") from None


def make(service: Service, *, ready: Callable[[], None]) -> uvicorn.Server:
    """Make the server for a service; ``ready`` is called once it answers."""
    config = uvicorn.Config(
        service.gate,
        http=_protocol(service.limits),
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,  # what is being answered was waited for already
        h11_max_incomplete_event_size=service.limits.header_bytes,
    )
    return _Server(config, service, ready)


class _Server(uvicorn.Server):
    """Answers 503 while it drains."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._told_at = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call ``ready``."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal; at the second, stop as uvicorn does."""
        if self._service.gate.draining:
            super().handle_exit(sig, frame)
            return
        self._service.gate.draining = True
        self._told_at = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Decide, ten times a second, whether to stop now."""
        if self._service.gate.draining and not self.should_exit:
            waited = time.monotonic() - self._told_at
            done = self._service.gate.in_flight == 0 and waited >= _LINGER_SECONDS
            self.should_exit = done or waited >= self._service.limits.drain_seconds
        return await super().on_tick(counter)


def _protocol(limits: Limits) -> type[H11Protocol]:
    class Guarded(H11Protocol):
        """Closes connections whose headers take too long, and those above the limit."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.close()
                return
            self._wait_for_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self._wait_for_headers()
            else:
                self._stop_waiting()

        def _wait_for_headers(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self._refuse(408, "headers_too_slow", "the headers did not arrive in time")

        def send_400_response(self, msg: str) -> None:
            """Answer a request that is no HTTP, with the right status."""
            error = sys.exc_info()[1]
            status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
            self._refuse(status, "bad_request", "this is no HTTP request that can be answered")

        def _refuse(self, status: int, code: str, message: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                text = json.dumps({"error": {"code": code, "message": message}}).encode()
                headers = [
                    ("content-type", "application/json"),
                    ("content-length", str(len(text))),
                    ("connection", "close"),
                ]
                for event in (
                    h11.Response(status_code=status, headers=headers),
                    h11.Data(data=text),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Guarded


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket.

    Raises:
        ConfigError: if the address does not belong to this machine.
        ResourceError: if the port is taken or not allowed.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"cannot find the address of --host {host}: {error.strerror}") from None
    try:
        listener = socket.create_server(address[4][:2], family=address[0], backlog=1024)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another with --port"
        ) from None
    # Connections inherit it; asyncio sets it only where a socket knows that its protocol is TCP.
    # Without it the body of an answer waits 40 ms for the client to acknowledge the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
