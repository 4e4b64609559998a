"""``predictions.csv``, and ``predictions-NAME.csv`` of other pictures: one row a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fieldmark.errors import RunError
from fieldmark.files.csv_text import decode_csv, encode_csv, unquoted
from fieldmark.names import shown
from fieldmark.runs.directory import RunDirectory
from fieldmark.settings.config import PARTS

FILE = "predictions.csv"
COLUMNS = ("part", "file", "label", "predicted", "prob", "label_prob", "correct")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was predicted for a picture."""

    part: str
    """Its split."""
    file: str
    """Its key in the data set; lone surrogates come back as escapes."""
    label: str
    """Its class."""
    predicted: str
    prob: float
    """Probability of the predicted class, to eight decimals in the file."""
    label_prob: float
    """Probability of its own class."""
    correct: bool


def file_of(data: str = "") -> str:
    """The file's name; ``data`` names pictures that are not the run's own."""
    return f"predictions-{data}.csv" if data else FILE


def read(run: RunDirectory, *, data: str = "") -> tuple[Answer, ...]:
    """Read the answers.

    Raises:
        RunError: naming the file, the line and the column if it is missing or not what
            :func:`write` wrote.
    """
    name, remedy = file_of(data), run.scored_again
    where = str(run.path / name)
    rows = decode_csv(run.read_text(name), COLUMNS, where=where, remedy=remedy)
    answers = []
    for line, row in rows:
        try:
            answers.append(_answer(row))
        except ValueError as error:
            raise RunError(f"{where}: line {line}: {error}; {remedy}") from None
    return tuple(answers)


def _answer(row: Sequence[str]) -> Answer:
    """An answer from its cells.

    Raises:
        ValueError: naming the column.
    """
    part, file, label, predicted, prob, label_prob, correct = row
    if part not in PARTS:
        raise ValueError(f"part is {shown(part)!r}, but must be {', '.join(PARTS[:-1])} or test")
    if correct != str(int(label == predicted)):
        raise ValueError(f"correct is {shown(correct)!r}, which does not fit label and predicted")
    return Answer(
        part=part,
        file=unquoted(file),
        label=unquoted(label),
        predicted=unquoted(predicted),
        prob=_share(prob, "prob"),
        label_prob=_share(label_prob, "label_prob"),
        correct=correct == "1",
    )


def _share(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{column} is {shown(text)!r}, but must be a number from 0 to 1")
    return value


def write(run: RunDirectory, answers: Iterable[Answer], *, data: str = "") -> None:
    """Write the answers."""
    rows = (
        (
            a.part,
            a.file,
            a.label,
            a.predicted,
            f"{a.prob:.8f}",
            f"{a.label_prob:.8f}",
            int(a.correct),
        )
        for a in answers
    )
    run.write(file_of(data), encode_csv(COLUMNS, rows))
