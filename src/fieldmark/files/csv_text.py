"""CSV files that spreadsheets can read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from fieldmark.errors import RunError


def encode_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Encode CSV for spreadsheets: UTF-8 with a mark, quoted as needed, formulas made inert.

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


def decode_csv(
    text: str, columns: Sequence[str], *, where: str, remedy: str
) -> list[tuple[int, list[str]]]:
    """Read strictly what :func:`encode_csv` wrote: each row with the number of its last line.

    Cells are as in the file; :func:`unquoted` removes the apostrophe from texts.

    Raises:
        RunError: naming the file and the line.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            wanted = len(columns)
            if not rows and row != list(columns):
                raise RunError(f"{where}: the columns are not {', '.join(columns)}; {remedy}")
            if len(row) != wanted:
                raise RunError(
                    f"{where}: line {reader.line_num} has {len(row)} cells, not {wanted}; {remedy}"
                )
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise RunError(f"{where}: line {reader.line_num}: {error}; {remedy}") from None
    if not rows:
        raise RunError(f"{where} is empty; {remedy}")
    return rows[1:]


def unquoted(cell: str) -> str:
    """Remove the apostrophe that :func:`encode_csv` put before a formula from a text cell."""
    return cell.removeprefix("'")
