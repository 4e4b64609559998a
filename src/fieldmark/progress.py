"""What long work tells whoever is watching. The library calls it; ``console.py`` shows it."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    """Somebody who watches."""

    def say(self, text: str) -> None:
        """Tell a fact."""

    def warn(self, text: str) -> None:
        """Tell something that needs looking at."""

    def count(self, what: str, done: int, total: int) -> None:
        """Tell how far a countable piece of work is."""

    def epoch(self, record: Any, epochs: int) -> None:
        """Tell that an epoch is finished."""


class Silent:
    """Nobody watches."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def count(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def epoch(self, record: Any, epochs: int) -> None:
        """Nothing."""
