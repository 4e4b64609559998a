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
