"""``doctor.json``: what the doctor of the training found, and what was measured for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fieldmark.files.typed import STRICT, Positive, Share, Text
from fieldmark.fit.doctor import Finding
from fieldmark.runs.directory import RunDirectory

FILE = "doctor.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An accuracy that was measured beside the run's own scores."""

    __pydantic_config__ = STRICT

    accuracy: Share
    n: Positive


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What ``doctor.json`` holds.

    Raises:
        ValueError: if a finding is there twice.
    """

    __pydantic_config__ = STRICT

    findings: tuple[Finding, ...]
    """The gravest first; none for a healthy training."""
    measured: Mapping[Text, Measured]
    """By what was measured: ``train`` is training pictures in scoring mode."""

    def __post_init__(self) -> None:
        codes = [finding.code for finding in self.findings]
        for i, code in enumerate(codes):
            if code in codes[:i]:
                raise ValueError(f"findings.{i}.code is {code!r}, which stands twice")


def read(run: RunDirectory) -> Diagnosis | None:
    """Read it; None if there is no file: an imported run has none, nor has one of before 0.2.

    Raises:
        RunError: naming the file and the field if it is not what :func:`write` wrote.
    """
    if not run.has(FILE):
        return None
    return run.read_typed(FILE, Diagnosis, remedy=f"`fieldmark resume {run.path}` writes it again")


def write(run: RunDirectory, diagnosis: Diagnosis) -> None:
    """Write it."""
    run.write_typed(FILE, diagnosis)
