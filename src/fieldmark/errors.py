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

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


class FieldmarkError(Exception):
    """Says what is wrong, the value, what is accepted and the next step."""

    exit_code = 1
    """Exit code of the command line."""

    def __str__(self) -> str:
        """The message, in the words of whoever reads it; see :func:`worded`."""
        return worded(super().__str__())


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


_for_the_command_line = False
_FLAGS = re.compile(
    r"`[^`]*`"  # a command, or anything else that is quoted
    r"|\bfieldmark (?:cache|compare|evaluate|export|import-keras|models|plugins|predict|recipes"
    r"|report|resume|serve|train|tune)\b[^;\n]*"
    r"|\bpip install\b[^;\n]*"
    r"|(?<![\w/-])--(?P<no>no-)?(?P<name>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)"
)
_ARGUMENTS = {"from": "from_run"}


def worded(text: str) -> str:
    """A message with flags (``--batch-size``); in a Python program with arguments (``batch_size``).

    Commands in it stay what they are.
    """
    if _for_the_command_line:
        return text

    def in_python(found: re.Match[str]) -> str:
        name = found["name"]
        if name is None:
            return found.group()
        argument = _ARGUMENTS.get(name, name.replace("-", "_"))
        return f"{argument}=False" if found["no"] else argument

    return _FLAGS.sub(in_python, text)


@contextlib.contextmanager
def for_the_command_line() -> Iterator[None]:
    """Context in which messages name flags."""
    global _for_the_command_line  # noqa: PLW0603 - one terminal, one reader
    before, _for_the_command_line = _for_the_command_line, True
    try:
        yield
    finally:
        _for_the_command_line = before


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
