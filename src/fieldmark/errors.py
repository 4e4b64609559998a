"""Every error that is meant for a user. The library raises; only ``cli.py`` prints.

FieldmarkError
├── ConfigError         2   a flag, a setting or a spec string that cannot be used
├── DataError           3   pictures, folders or data-set archives that cannot be used
├── RunError            4   a run directory or a checkpoint that cannot be used
├── WeightsError        4   weights that are missing, unsafe or do not fit
├── DivergedError       5   the loss or the gradient stopped being a number
├── ResourceError       6   disk, memory or network failed
├── MissingExtraError   6   an optional dependency that is not installed
└── Interrupted       130   stopped by Ctrl-C (143: SIGTERM, 129: SIGHUP); the run is saved
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FieldmarkError(Exception):
    """Says what is wrong, the value, what is accepted and the next step."""

    exit_code = 1
    """Exit code of the command line."""


class ConfigError(FieldmarkError):
    """A setting that cannot be used."""

    exit_code = 2


class DataError(FieldmarkError):
    """Pictures or folders that cannot be used."""

    exit_code = 3


class RunError(FieldmarkError):
    """A run directory or checkpoint that cannot be used."""

    exit_code = 4


class WeightsError(FieldmarkError):
    """Weights that are missing, unsafe or do not fit."""

    exit_code = 4


class DivergedError(FieldmarkError):
    """Training produced a loss or gradient that is not a finite number."""

    exit_code = 5


class ResourceError(FieldmarkError):
    """Disk, memory or network failed."""

    exit_code = 6


class MissingExtraError(FieldmarkError):
    """An optional dependency is needed and not installed."""

    exit_code = 6


class Interrupted(FieldmarkError):  # noqa: N818 - nothing is wrong
    """The user or the system asked to stop; the run was saved and can be resumed."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
