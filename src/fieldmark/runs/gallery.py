"""``gallery.json``: the surest mistakes and some typical right answers, with small pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fieldmark.files.typed import STRICT, Base64, Share, Split, Text, one_of
from fieldmark.runs.directory import RunDirectory

FILE = "gallery.json"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture with its answer."""

    __pydantic_config__ = STRICT

    file: Text
    label: Text
    """Its class."""
    predicted: Text
    prob: Share
    """Probability of the predicted class."""
    label_prob: Share
    """Probability of its own class."""
    mime: Annotated[str, one_of("image/png", "image/jpeg", "image/webp")]
    """Format of the small pictures."""
    thumb: Base64
    """The picture, small."""
    heat: Base64 | None = None
    """The same under a heat map; empty for a network that has none. Right answers have none."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures of one split.

    Raises:
        ValueError: if a mistake is none, or a right answer is one.
    """

    __pydantic_config__ = STRICT

    part: Split
    """The split."""
    mistakes: tuple[Item, ...]
    """The surest first."""
    correct: tuple[Item, ...]
    """One a class at most: the picture nearest to the class's usual probability."""

    def __post_init__(self) -> None:
        for name, items, right in (
            ("mistakes", self.mistakes, False),
            ("correct", self.correct, True),
        ):
            for i, item in enumerate(items):
                if (item.label == item.predicted) != right:
                    raise ValueError(
                        f"{name}.{i}.predicted is {item.predicted!r}, as {name} is not"
                    )


def read(run: RunDirectory) -> Gallery:
    """Read the gallery.

    Raises:
        RunError: naming the file and the field if it is missing or not what :func:`write` wrote.
    """
    return run.read_typed(FILE, Gallery, remedy=run.scored_again)


def write(run: RunDirectory, gallery: Gallery) -> None:
    """Write the gallery."""
    run.write_typed(FILE, gallery, indent=None)
