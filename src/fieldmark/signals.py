"""Ctrl-C and SIGTERM as a request that is answered between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Wanted:
    """A request to stop, set by a signal handler."""

    signal: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[Wanted]:
    """Turn Ctrl-C and SIGTERM into a request that the loop answers between two steps.

    A second one acts at once, as if there were no handler. Handlers are put back at the end;
    outside of the main thread nothing is installed, as Python wants it.
    """
    wanted = Wanted()
    if threading.current_thread() is not threading.main_thread():
        yield wanted
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        if wanted.signal:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        wanted.signal = number

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        before[number] = signal.signal(number, ask)
    try:
        yield wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
