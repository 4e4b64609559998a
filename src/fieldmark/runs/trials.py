"""``tune.json``: what a search was asked for, every trial of it, and how it ended."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fieldmark.files.typed import STRICT, Amount, Count, Figure, Text, one_of
from fieldmark.runs.directory import RunDirectory
from fieldmark.settings.space import Axis

FILE = "tune.json"

STATES = ("complete", "pruned", "late", "failed")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The request; one with the same goes on where the search stopped."""

    __pydantic_config__ = STRICT

    recipe: Text
    settings: Mapping[Text, Any]
    """What goes over the recipe's settings in every trial."""
    over: tuple[Axis, ...]
    """What was asked to be searched; none for the space by default."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What ``--recipe auto`` chose by measurement before the first trial."""

    __pydantic_config__ = STRICT

    recipe: Text
    settings: Mapping[Text, Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A training with some settings."""

    __pydantic_config__ = STRICT

    settings: Mapping[Text, Any]
    """The searched settings; the first trial, the default, has the recipe's own."""
    state: Annotated[str, one_of(*STATES)]
    """complete, pruned (hopeless among the others), late (there was no time left for it) or
    failed."""
    value: Figure
    """The monitored metric of the epoch that was kept."""
    loss: Figure
    """Its validation loss."""
    curve: tuple[Figure, ...]
    """The monitored metric after each epoch; of the probe alone where there are no epochs."""
    kept: Count
    """The epoch that was kept."""
    epochs: Count
    """Epochs that were planned."""
    seconds: Amount
    at: Amount
    """Seconds of the search that were used when it ended."""
    right: Text = ""
    """1 or 0 for each validation picture: whether it was right."""
    why: Text = ""
    """Why it failed."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """A trial's settings trained again, with another seed."""

    __pydantic_config__ = STRICT

    trial: Count
    seed: Count
    value: Figure
    loss: Figure
    seconds: Amount
    right: Text


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What ``tune.json`` holds."""

    __pydantic_config__ = STRICT

    name: Text
    """Name of the data set."""
    path: Text
    """Where the pictures are, as in a run's ``data.json``."""
    fingerprint: Text
    """Fingerprint of the pictures and their splits."""
    request: Asked
    space: tuple[Axis, ...]
    """What is searched."""
    monitor: Text
    """The metric that judges."""
    validation: Count
    """Number of validation pictures."""
    seconds: Amount
    """Time used so far."""
    trials: tuple[Trial, ...]
    """Finished trials in their order; their numbers begin with 0, the default."""
    running: Mapping[Text, Any] | None
    """Settings of the trial that is being trained."""
    again: tuple[Again, ...]
    default: Measured | None = field(default=None)
    """What the default is, where it was measured."""
    chosen: Count | None = field(default=None)
    """Number of the trial that became the run; it is set before the test split is scored."""
    results: Mapping[Text, Any] | None = field(default=None)
    """Every figure, for other programs; None until the end."""


def read(folder: RunDirectory) -> Journal:
    """Read it.

    Raises:
        RunError: naming the file and the field if it is not what :func:`write` wrote.
    """
    return folder.read_typed(FILE, Journal, remedy="choose another --out")


def write(folder: RunDirectory, journal: Journal) -> None:
    """Write it."""
    rows = tuple(
        dataclasses.replace(
            row, curve=tuple(v if math.isfinite(v) else math.nan for v in row.curve)
        )
        for row in journal.trials
    )
    folder.write_typed(FILE, dataclasses.replace(journal, trials=rows))
