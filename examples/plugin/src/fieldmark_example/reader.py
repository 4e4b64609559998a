"""Pictures in one folder, and their labels in a table."""

import csv
from pathlib import Path

from fieldmark.data.dataset import Entry, Found
from fieldmark.errors import DataError


def labels_csv(argument: str) -> Found:
    """Read a CSV file with the columns file and label, and part (train, val, test) if you like."""
    table = Path(argument)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {error}") from None
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise DataError(f"{table} has no rows with the columns file and label")
    names = tuple(sorted({row["label"] for row in rows}))
    files = {row["file"]: table.parent / row["file"] for row in rows}
    return Found(
        name=table.stem,
        class_names=names,
        entries=tuple(
            Entry(row["file"], names.index(row["label"]), row.get("part") or None) for row in rows
        ),
        load=files.__getitem__,  # a path is enough: fieldmark opens it, with all its limits
    )
