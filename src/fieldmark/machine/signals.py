"""Ctrl-C, SIGTERM and SIGHUP: answered at once, except during work that must not be interrupted.

Inside :func:`stop_requests` the first request raises :class:`Stop` wherever the main thread is, as
Ctrl-C does in any Python program: while pictures are read, while a network is scored, while a
report is drawn. Work that must be finished, such as a training step, runs inside :func:`held`; a
request that comes in there waits for the next :func:`released`, or for the end of the block.

A library in C may turn an exception that is raised inside it into an error of its own (a drawing
that was interrupted gives "Invalid bounding box"). So any error after a request counts as the
answer to the request.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from fieldmark.errors import Interrupted, ResourceError

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Signals that ask to stop; those that this system has."""

ECHO = 0.25
"""Seconds in which further signals count as the same request: a closing terminal sends SIGHUP both
itself and through its shell, and a wrapper passes on the Ctrl-C that the terminal sent to all."""


class Stop(KeyboardInterrupt):
    """Raised in the main thread when the process is asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


@dataclass
class _Asked:
    """The request to stop; there is one for the whole process, as signal handlers are."""

    answering: bool = False
    """Whether the handlers are installed."""
    held: bool = False
    number: int = 0
    """Number of the first signal that came; 0 for none."""
    at: float = 0.0
    terminals: list[int] = field(default_factory=list)
    """Those of standard output and error that were a terminal."""


_asked = _Asked()


@contextlib.contextmanager
def stop_requests() -> Iterator[None]:
    """Answer requests to stop in the block: the first raises Stop, a second ends the process.

    The old handlers are put back at the end. A signal that is ignored (nohup) stays ignored.
    Outside of the main thread, where Python allows no handlers, and inside another such block,
    nothing is installed.

    Raises:
        Interrupted: for a :class:`Stop` that the block did not turn into a message of its own.
    """
    if _asked.answering or not _in_main_thread():
        yield
        return
    _asked.answering, _asked.held, _asked.number = True, False, 0
    _asked.terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    before = _install()
    number = 0
    try:
        yield
        _answer()
    except Stop as stop:
        number = stop.number
    except (Interrupted, ResourceError):  # in own words; and saving on the way out may fail
        raise
    except Exception:
        number = _asked.number
        if not number:
            raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _asked.answering = False
    if number:  # only here: an error raised while another is handled would keep its frames alive
        raise Interrupted(
            "stopped before training; the same command begins anew", signal_number=number
        )


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Make requests wait for the next :func:`released`, or for the end of the block.

    Raises:
        Stop: at the end, if one came.
    """
    with _holding(True):
        yield
    if not _asked.held:
        _answer()


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Answer requests at once in the block, and before it the one that came while held.

    Raises:
        Stop: anywhere in the block.
    """
    with _holding(False):
        _answer()
        try:
            yield
        except Exception:
            _answer()
            raise


@contextlib.contextmanager
def _holding(value: bool) -> Iterator[None]:
    """Hold requests or not, and restore the former state; only the main thread gets requests."""
    if not _in_main_thread():
        yield
        return
    before, _asked.held = _asked.held, value
    try:
        yield
    finally:
        _asked.held = before


def _install() -> dict[int, Any]:
    """Install the handlers; returns those that they replace."""
    before: dict[int, Any] = {}
    for number in (int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)):
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):  # None: not Python's, so it could not be put back
            before[number] = handler
            signal.signal(number, _ask)
    return before


def _ask(number: int, frame: FrameType | None) -> None:
    """Handle a signal: keep the first; let the next end the process as if unhandled."""
    now = time.monotonic()
    _leave_closed_terminals()
    if not _asked.number:
        _asked.number, _asked.at = number, now
        if not _asked.held:
            raise Stop(number)
    elif now - _asked.at > ECHO:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _leave_closed_terminals() -> None:
    """Discard output where the terminal is gone: else printing the next line is an error."""
    for fd in _asked.terminals:
        if not os.isatty(fd):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, fd)
            os.close(null)


def _answer() -> None:
    if _asked.answering and _asked.number and _in_main_thread():
        raise Stop(_asked.number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
