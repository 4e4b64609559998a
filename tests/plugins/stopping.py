"""A watcher that stops the training it watches, as Ctrl-C would."""

from __future__ import annotations

import signal
from typing import Any

from fieldmark.progress import Silent


class StopAfter(Silent):
    """Ask for a stop after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def epoch(self, record: Any, epochs: int) -> None:
        if record.epoch == self.epochs:
            signal.raise_signal(signal.SIGINT)
