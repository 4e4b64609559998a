"""What long work tells whoever is watching. The library calls it; ``console.py`` shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

OnProgress = Callable[[int, int], None]
"""Called with the number that is done and the number in all: pictures, or bytes."""


class Progress(Protocol):
    """Whoever watches a job: the terminal, a notebook, a program of the user's."""

    def say(self, text: str) -> None:
        """Tell a note: a fact."""

    def warn(self, text: str) -> None:
        """Tell a warning: something that the user should look at."""

    def count(self, what: str, done: int, total: int) -> None:
        """Tell how many of ``total`` are done."""

    def epoch(self, record: Any, epochs: int) -> None:
        """Tell that an epoch is finished."""


class Silent:
    """Tells nobody anything."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def count(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def epoch(self, record: Any, epochs: int) -> None:
        """Nothing."""


class Quiet:
    """Passes on counts, epochs and each warning once, but no notes: for one of many trainings."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._warned: set[str] = set()

    def say(self, text: str) -> None:
        """Nothing: it is in the trial's own log."""

    def warn(self, text: str) -> None:
        """Tell it, if it was not told before."""
        if text not in self._warned:  # every trial has the same pictures
            self._warned.add(text)
            self._progress.warn(text)

    def count(self, what: str, done: int, total: int) -> None:
        """Pass it on."""
        self._progress.count(what, done, total)

    def epoch(self, record: Any, epochs: int) -> None:
        """Pass it on."""
        self._progress.epoch(record, epochs)
