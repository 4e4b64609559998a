"""``incidents.json``: what went wrong in training and was mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fieldmark.files.json_text import FORMAT, encode_json
from fieldmark.files.typed import STRICT, Text, plain
from fieldmark.runs.directory import RunDirectory

FILE = "incidents.json"


@dataclass(frozen=True, kw_only=True)
class Incidents:
    """One sentence each: what it was, and what was done."""

    __pydantic_config__ = STRICT

    incidents: tuple[Text, ...]


def read(run: RunDirectory) -> tuple[str, ...]:
    """Read them; none if there is no file.

    Raises:
        RunError: naming the file and the field if it is not what :func:`encode` made.
    """
    if not run.has(FILE):
        return ()
    remedy = "remove it, or put back the file as it was"
    return run.read_typed(FILE, Incidents, remedy=remedy).incidents


def encode(incidents: Sequence[str]) -> bytes:
    """The content of the file."""
    return encode_json({"format": FORMAT, **plain(Incidents(incidents=tuple(incidents)))})
