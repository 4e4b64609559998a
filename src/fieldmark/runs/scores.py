"""``evaluation.json``, and ``evaluation-NAME.json`` of other pictures: the scores of each split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fieldmark.files.typed import STRICT, Split
from fieldmark.runs.directory import RunDirectory
from fieldmark.scoring.metrics import Scores

FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a run says of itself.

    Raises:
        ValueError: if splits do not agree with one another.
    """

    __pydantic_config__ = STRICT

    parts: Mapping[Split, Scores]
    """``val`` and, where there is one, ``test``; of other pictures ``test`` alone."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts is empty")
        names = [each.name for each in next(iter(self.parts.values())).per_class]
        for split, scores in self.parts.items():
            if scores.part != split:
                raise ValueError(f"parts.{split}.part is {scores.part!r}, but must be {split!r}")
            if [each.name for each in scores.per_class] != names:
                raise ValueError(f"parts.{split}.per_class has other names than the split before")


def file_of(data: str = "") -> str:
    """The file's name; ``data`` names pictures that are not the run's own."""
    return f"evaluation-{data}.json" if data else FILE


def read(run: RunDirectory, *, data: str = "") -> Evaluation:
    """Read the scores.

    Raises:
        RunError: naming the file and the field if it is missing or not what :func:`write` wrote.
    """
    return run.read_typed(file_of(data), Evaluation, remedy=run.scored_again)


def write(run: RunDirectory, evaluation: Evaluation, *, data: str = "") -> None:
    """Write the scores."""
    run.write_typed(file_of(data), evaluation)
