"""The setting ``weights``: where the weights of a network come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NAMES = ("auto", "none", "hub", "imagenet")
"""The values of the setting that are not files."""


@dataclass(frozen=True)
class WeightsFrom:
    """The parsed setting ``weights``."""

    kind: str
    """One of :data:`NAMES`, or ``file``."""
    file: Path | None = None
    """The file, if ``kind`` is ``file``."""

    @classmethod
    def read(cls, text: str | WeightsFrom) -> WeightsFrom:
        """Parse the setting; a parsed one is returned as it is."""
        if isinstance(text, WeightsFrom):
            return text
        if text in NAMES:
            return cls(text)
        return cls("file", Path(text).expanduser())
