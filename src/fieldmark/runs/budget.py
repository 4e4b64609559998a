"""``budget.json``: the time that a run was given (``--minutes``), and how much of it is used.

Where it is chosen what is trained, also without a time: a resumed run goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fieldmark.files.typed import STRICT, Amount, Flag, Text
from fieldmark.runs.directory import RunDirectory

FILE = "budget.json"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The request of a run whose recipe is chosen by trials: what a resumed one goes on from."""

    __pydantic_config__ = STRICT

    path: Text
    """Where the pictures are, as in ``data.json``."""
    fingerprint: Text
    """Fingerprint of the pictures and their splits."""
    settings: Mapping[Text, Any]
    """The settings that were given."""
    chosen: Flag = False
    """Whether the trials are over, and the run's files are those of the best candidate."""
    held: Text = ""
    """The candidate whose files the run's are; empty before there is one."""
    next: Text = ""
    """The candidate that is trained in the folder ``next``."""
    moving: tuple[Text, ...] = ()
    """Files of that folder that become the run's; none while it is trained."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What ``budget.json`` holds."""

    __pydantic_config__ = STRICT

    minutes: Amount | None
    """Wall time for everything, scores and report included; null where it is not limited."""
    seconds: Amount
    """Time used so far, by all processes that worked at it."""
    wanted: Wanted | None = field(default=None)
    """The request, where candidates are tried; None where the recipe was given."""


def read(run: RunDirectory) -> Budget | None:
    """Read it; None if the run was given no time, and the recipe.

    Raises:
        RunError: naming the file and the field if it is not what was written.
    """
    if not run.has(FILE):
        return None
    return run.read_typed(FILE, Budget, remedy="put back the file as it was, or train anew")


def write(run: RunDirectory, budget: Budget) -> None:
    """Write it."""
    run.write_typed(FILE, budget)
