"""``metrics.jsonl``: one record an epoch; ``results.csv`` is the same for a spreadsheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fieldmark.errors import RunError
from fieldmark.files.csv_text import encode_csv
from fieldmark.files.json_text import encode_json, read_object
from fieldmark.files.typed import read_typed
from fieldmark.runs.directory import RunDirectory

if TYPE_CHECKING:
    from fieldmark.fit.state import EpochRecord

FILE, TABLE = "metrics.jsonl", "results.csv"


def read(run: RunDirectory) -> tuple[EpochRecord, ...]:
    """Read the finished epochs, the probe among them as epoch 0; none if there is no file.

    Raises:
        RunError: naming the file, the line and the field if it is not what :func:`encode` made.
    """
    from fieldmark.fit.state import EpochRecord

    if not run.has(FILE):
        return ()
    remedy, records = f"`fieldmark resume {run.path}` writes it again", []
    for number, line in enumerate(run.read_text(FILE).removesuffix("\n").split("\n"), start=1):
        where = f"{run.path / FILE} line {number}"
        value = read_object(line, where=where)
        nested = EpochRecord.nested(value)
        records.append(read_typed(EpochRecord, nested, where=where, remedy=remedy))
        if number > 1 and records[-1].epoch != records[-2].epoch + 1:
            raise RunError(
                f"{where}: epoch is {records[-1].epoch}, after {records[-2].epoch}; {remedy}"
            )
    return tuple(records)


def plain_record(record: EpochRecord) -> dict[str, Any]:
    """A record as JSON's own values: null stands for a figure that is no number."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.row().items()
    }


def encode(history: Sequence[EpochRecord]) -> bytes:
    """The content of ``metrics.jsonl``."""
    return b"".join(encode_json(plain_record(record), indent=None) for record in history)


def encode_table(history: Sequence[EpochRecord]) -> bytes:
    """The content of ``results.csv``."""
    rows = [record.row() for record in history]
    return encode_csv(tuple(rows[0]), [tuple(row.values()) for row in rows])
