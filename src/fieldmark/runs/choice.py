"""``choice.json``: what ``--recipe auto`` tried before it trained, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fieldmark.files.typed import STRICT, Amount, Count, Figure, Positive, Text, one_of
from fieldmark.runs.directory import RunDirectory

FILE = "choice.json"

CHOSEN, WORSE, STOPPED, LATE, FAILED = "chosen", "worse", "stopped early", "late", "failed"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One candidate: settings, and how well they did on pictures that they were not fitted to."""

    __pydantic_config__ = STRICT

    name: Text
    """Such as ``probe of timm/tf_efficientnet_lite0, 192 px``."""
    recipe: Text
    settings: Mapping[str, str | int | float | bool]
    """What goes over the recipe's settings."""
    seconds: Amount
    """Seconds that the trial took."""
    outcome: Annotated[str, one_of(CHOSEN, WORSE, STOPPED, LATE, FAILED)]
    why: Text
    """The reason, in words."""
    n: Count
    """Pictures that it was judged on; 0 if it came to no judgement."""
    accuracy: Figure
    """NaN if it came to no judgement; so the loss."""
    loss: Figure
    neighbours: Figure
    """Accuracy of the nearest neighbours by the same features, for comparison."""
    answers: Text = field(default="")
    """1 or 0 for each picture: whether the answer was right; - for those not held out."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """All candidates, in the order in which they were tried."""

    __pydantic_config__ = STRICT

    pictures: Positive
    """Pictures of train and val that the candidates were judged on, each out of fold."""
    folds: Positive
    seconds: Amount
    """Seconds that all of it took."""
    tried: tuple[Tried, ...]

    def __post_init__(self) -> None:
        chosen = [each for each in self.tried if each.outcome == CHOSEN]
        if len(chosen) > 1 or not all(0 <= each.accuracy <= 1 for each in chosen):
            raise ValueError("tried must not hold two that were chosen, or one without accuracy")

    @property
    def chosen(self) -> Tried | None:
        """The candidate that the run was trained with; None while candidates are tried."""
        return next((each for each in self.tried if each.outcome == CHOSEN), None)


def read(run: RunDirectory) -> Choice | None:
    """Read them; None if the run's settings were not chosen by trials.

    Raises:
        RunError: naming the file and the field if it is not what was written.
    """
    if not run.has(FILE):
        return None
    return run.read_typed(FILE, Choice, remedy="remove it, or put back the file as it was")


def write(run: RunDirectory, found: Choice) -> None:
    """Write them."""
    run.write_typed(FILE, found)
