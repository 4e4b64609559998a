"""``compare.json``: what a comparison was asked for, and what no run of it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fieldmark.files.typed import STRICT, Count, Positive, Text
from fieldmark.runs.directory import RunDirectory

FILE = "compare.json"


@dataclass(frozen=True, kw_only=True)
class Values:
    """A setting that is varied."""

    __pydantic_config__ = STRICT

    setting: Text
    values: tuple[Any, ...]
    """In the order given; the same may stand twice."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The request."""

    __pydantic_config__ = STRICT

    models: tuple[Text, ...]
    """Spec strings; none where only settings vary."""
    seeds: Positive
    recipe: Text
    settings: Mapping[Text, Any]
    """What goes over the recipe's settings."""
    vary: tuple[Values, ...] = ()
    """Not in the file where only models are compared, as before there was a choice."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What ``compare.json`` holds."""

    __pydantic_config__ = STRICT

    name: Text
    """Name of the data set."""
    path: Text
    """Where the pictures are, as in a run's ``data.json``."""
    fingerprint: Text
    """Fingerprint of the pictures and their splits; every run must have it."""
    request: Asked
    memory: Mapping[Text, Count]
    """Peak memory of each run in bytes, by its folder."""
    results: Mapping[Text, Any] | None
    """Every figure and every pair, for other programs; None until all runs are finished."""


def read(folder: RunDirectory) -> Ledger:
    """Read it.

    Raises:
        RunError: naming the file and the field if it is not what :func:`write` wrote.
    """
    return folder.read_typed(FILE, Ledger, remedy="choose another --out")


def write(folder: RunDirectory, ledger: Ledger) -> None:
    """Write it."""
    folder.write_typed(FILE, ledger)
