"""CSV as spreadsheets read it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def encode_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """CSV that spreadsheets read: UTF-8 with a mark, quoted as needed, formulas made inert.

    A text cell that begins like a formula (=, +, -, @, tab, return) gets a leading apostrophe;
    one that begins with an apostrophe gets another, so that reading takes exactly one away.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(columns)
    writer.writerows([[_inert(cell) for cell in row] for row in rows])
    return b"\xef\xbb\xbf" + buffer.getvalue().encode("utf-8", "backslashreplace")


def _inert(cell: object) -> object:
    if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r", "'"):
        return "'" + cell
    return cell
