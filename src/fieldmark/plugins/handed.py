"""Objects that a Python program hands over instead of a name, for the length of one call.

A run records such an object as ``python:NAME``. The name never brings the object back: nothing is
imported by it, and whoever goes on with the run hands the object over again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

PREFIX = "python:"
Handed = Mapping[tuple[str, str], Any]
"""By kind and name, what the table of the kind would hold."""

_HANDED: ContextVar[Handed | None] = ContextVar("handed", default=None)


def is_handed(name: str) -> bool:
    """Whether a name stands for an object that a Python program handed over."""
    return name.startswith(PREFIX)


@contextlib.contextmanager
def handing(objects: Handed) -> Iterator[None]:
    """Let the names of these objects be found while the block lasts."""
    token = _HANDED.set({**(_HANDED.get() or {}), **objects})
    try:
        yield
    finally:
        _HANDED.reset(token)


def find(kind: str, name: str) -> Any:
    """The object of that kind and name; None if it was not handed over."""
    return (_HANDED.get() or {}).get((kind, name))


def names(kind: str) -> list[str]:
    """The names of that kind that were handed over."""
    return [name for of, name in _HANDED.get() or {} if of == kind]
