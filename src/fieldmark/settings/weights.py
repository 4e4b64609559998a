"""Where the setting ``weights`` asks for a network's weights from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NAMES = ("auto", "none", "hub", "imagenet")
"""What the setting may be, apart from a file."""


@dataclass(frozen=True)
class WeightsFrom:
    """The setting ``weights``, read."""

    kind: str
    """One of :data:`NAMES`, or ``file``."""
    file: Path | None = None
    """Only with ``file``."""

    @classmethod
    def read(cls, text: str | WeightsFrom) -> WeightsFrom:
        """Read the setting; what is read already stays as it is."""
        if isinstance(text, WeightsFrom):
            return text
        if text in NAMES:
            return cls(text)
        return cls("file", Path(text).expanduser())
