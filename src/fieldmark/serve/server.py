"""uvicorn, with a time limit for headers, a limit on connections, and a stop that answers.

uvicorn waits for a request's headers as long as the client likes, and for the client to read the
answer; and it stops accepting at the first signal, so that clients who come during the stop see a
refused connection. Here both have a time limit, and a new connection takes the place of the one
that keeps the server waiting longest, so that no number of idle ones keeps others out. After
SIGTERM or Ctrl-C the server accepts connections for a while to answer 503, until the requests that
it had begun are answered; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fieldmark.errors import ConfigError, ResourceError
from fieldmark.machine.process import give_back
from fieldmark.serve.app import Service
from fieldmark.serve.limits import Limits, spread

try:
    import resource
except ImportError:  # Windows: there is no such limit
    resource = None  # type: ignore[assignment]

_LINGER_SECONDS = 0.3
"""Seconds after a signal for which new requests are answered 503, at least."""
_OTHER_FILES = 256
"""Open files of the server that are no connections: libraries, pipes of decoding processes."""
_SEND_BUFFER = 16_384
_BACKLOG = 1024
"""Connections that the system keeps until they are accepted."""
_ACCEPTED_AT_ONCE = 16
"""Of a crowd that comes at once, so many are let in before those inside are looked after again. An
answer takes the event loop a dozen rounds, which must be short."""
_CROWD, _GIVE_BACK_SECONDS = 100, 2.0
"""Connections that leave much free memory behind; when it is given back after they have gone."""
_TOLD_A_MINUTE = 5


def run(service: Service, listener: socket.socket, *, ready: Callable[[], None]) -> None:
    """Serve until a signal comes.

    Raises:
        ResourceError: if the server cannot be started.
    """
    # One line for each malformed request would let anybody fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(FewAMinute())

    def stopping() -> None:
        """End in time whatever a network or a client does: a thread cannot be stopped."""
        last = threading.Timer(service.limits.stop_seconds, _end_at_once, [service])
        last.daemon = True
        last.start()

    try:
        make(service, ready=ready, stopping=stopping).run(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the application did not start
        raise ResourceError("the server could not be started; the lines above say why") from None


def _end_at_once(service: Service) -> None:
    service.decoders.kill()
    os._exit(0)


class FewAMinute(logging.Filter):
    """Lets a few records a minute through, and says how many it kept back.

    What any client can cause, again and again, must not fill the disk.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._begun, self._told, self._kept_back = -math.inf, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is told."""
        now = self._clock()
        if now - self._begun >= 60:
            if self._kept_back:
                record.msg = f"({self._kept_back} like messages kept back) {record.msg}"
            self._begun, self._told, self._kept_back = now, 0, 0
        self._told += 1
        self._kept_back += self._told > _TOLD_A_MINUTE
        return self._told <= _TOLD_A_MINUTE


def make(
    service: Service,
    *,
    ready: Callable[[], None],
    stopping: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """Make the server for a service.

    Args:
        service: What it serves.
        ready: Called once it answers.
        stopping: Called when it is told to stop.
    """
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
        backlog=_ACCEPTED_AT_ONCE,
    )
    return _Server(config, service, ready, stopping)


class _Server(uvicorn.Server):
    """Answers 503 while it drains."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        ready: Callable[[], None],
        stopping: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._service, self._ready, self._stopping = service, ready, stopping
        self._told_at = 0.0
        self._crowded_at = -math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call ``ready``."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # uvicorn has one number for this and what is taken at once
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal; at the second, stop as uvicorn does."""
        if not self.started:  # and may wait for long until it is
            self._service.decoders.kill()
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        if self._service.gate.draining:
            super().handle_exit(sig, frame)
            return
        self._service.gate.draining = True
        self._told_at = time.monotonic()
        self._stopping()

    async def on_tick(self, counter: int) -> bool:
        """Decide, ten times a second, whether to stop now."""
        now = time.monotonic()
        if len(self.server_state.connections) >= _CROWD:
            self._crowded_at = now
        elif now - self._crowded_at > _GIVE_BACK_SECONDS and self._crowded_at > 0:
            self._crowded_at = -math.inf
            await asyncio.get_running_loop().run_in_executor(None, give_back)
        if self._service.gate.draining and not self.should_exit:
            waited = time.monotonic() - self._told_at
            done = self._service.gate.in_flight == 0 and waited >= _LINGER_SECONDS
            if waited >= self._service.limits.drain_seconds:
                for connection in list(self.server_state.connections):
                    if isinstance(connection, _Guarded):
                        connection.end()
                done = True
            self.should_exit = done
        return await super().on_tick(counter)


class _Guarded(H11Protocol):
    """A connection that cannot keep the server waiting: for headers, for a reader, or by number."""

    limits: Limits
    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _since = 0.0
    _ends_later = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Told as soon as anything waits to be taken, and again once all of it is.
        transport.set_write_buffer_limits(high=0)
        self._since = self.loop.time()
        while len(self.connections) > self.limits.connections:
            if not self._make_room():
                self.end()
                return
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._taken()
        super().connection_lost(exc)

    # --- too many ----------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """End the connection that has kept the server waiting longest; False if there is none.

        It is one of the address that has most of them, and not one that is being answered.
        """
        waited_for = [one for one in self.connections if isinstance(one, _Guarded) and one._waits()]
        if not waited_for:
            return False
        counts = Counter(one._address() for one in waited_for)
        most = max(counts.values())
        candidates = (one for one in waited_for if counts[one._address()] == most)
        min(candidates, key=lambda one: one._since).end()
        return True

    def _waits(self) -> bool:
        """Whether the server waits for the client, and not the client for the server."""
        if self.cycle is None or self.cycle.response_complete or self.flow.write_paused:
            return True
        return self.cycle.more_body

    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def end(self) -> None:
        """Cut the connection, whatever it still has to say or to hear."""
        self.connections.discard(self)
        self.transport.abort()

    # --- who does not read -------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Something waits to be taken by the client."""
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(spread(self.limits.write_seconds), self.end)

    def resume_writing(self) -> None:
        """All of it was taken."""
        self._taken()
        self._since = self.loop.time()
        super().resume_writing()
        if self._ends_later:
            self._ends_later = False
            super().on_response_complete()

    def _taken(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    # --- who does not send -------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._wait_for_headers()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        # The next of several requests that were sent at once waits until this answer is taken.
        self._ends_later = self.flow.write_paused and not self.transport.is_closing()
        if not self._ends_later:
            super().on_response_complete()

    def _wait_for_headers(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.header_seconds, self._too_slow)

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
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what is worked on has nobody to be sent to
            self.cycle.message_event.set()
        self.transport.close()


def _protocol(limits: Limits) -> type[H11Protocol]:
    """The connections of a server with these limits."""
    return type("Guarded", (_Guarded,), {"limits": _within_files(limits)})


def _within_files(limits: Limits) -> Limits:
    """Allow this process as many open files as it may need, or itself fewer connections."""
    wanted, soft = limits.connections + _OTHER_FILES, math.inf
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            with contextlib.suppress(OSError, ValueError):
                most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return limits
    return dataclasses.replace(limits, connections=int(max(soft - _OTHER_FILES, soft // 2)))


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
        listener = socket.create_server(address[4][:2], family=address[0], backlog=_BACKLOG)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another with --port"
        ) from None
    # Connections inherit it; asyncio sets it only where a socket knows that its protocol is TCP.
    # Without it the body of an answer waits 40 ms for the client to acknowledge the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # What a client does not read waits in the system's memory, and there may be many of them.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return listener
