"""``choice.json``: what ``--recipe auto`` tried before it trained, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fieldmark.files.typed import STRICT, Amount, Count, Figure, Positive, Text, one_of
from fieldmark.runs.directory import RunDirectory

FILE = "choice.json"

CHOSEN, WORSE, STOPPED, FAILED = "chosen", "worse", "stopped early", "failed"


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
    outcome: Annotated[str, one_of(CHOSEN, WORSE, STOPPED, FAILED)]
    why: Text
    """The reason, in words."""
    n: Count
    """Pictures that it was judged on; 0 if it came to no judgement."""
    accuracy: Figure
    """NaN if it came to no judgement; so the loss."""
    loss: Figure
    neighbours: Figure
    """Accuracy of the nearest neighbours by the same features, for comparison."""


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
        if len(chosen) != 1 or not 0 <= chosen[0].accuracy <= 1:
            raise ValueError("tried must hold one that was chosen, with its accuracy")

    @property
    def chosen(self) -> Tried:
        """The candidate that the run was trained with."""
        return next(each for each in self.tried if each.outcome == CHOSEN)


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
