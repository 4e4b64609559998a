"""Whether the files of a run hold its names, and hold them as nothing but text."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fieldmark.names import shown
from fieldmark.runs.model import ModelInfo

FORMULA = ("=", "+", "-", "@", "\t", "\r")
TABLES = ("predictions.csv", "results.csv")
FIGURES = ("preview.png", "curves.png", "confusion.png", "predictions.png")


def problems(run: Path, names: Sequence[str]) -> list[str]:
    """What is wrong with the artefacts of a run of these classes."""
    wanted = sorted(names)
    found = []
    if header(run).class_names != tuple(wanted):
        found.append("model.safetensors has other names")
    for name in ("data.json", "model.json"):
        if strict(run / name)["class_names"] != wanted:
            found.append(f"{name} has other names")
    found += _tables(run, wanted)
    found += _page(run / "report.html", wanted)
    for name in ("log.txt", "report.html", "metrics.jsonl"):
        text = (run / name).read_text(encoding="utf-8")
        if any(shown(line) != line for line in text.split("\n")):
            found.append(f"{name} has control characters")
    for name in FIGURES:
        with Image.open(run / name) as image:
            image.load()
            if any(isinstance(value, str) for value in image.info.values()):
                found.append(f"{name} has texts inside")
    return found


def strict(path: Path) -> Any:
    """A JSON file; Python's reader also takes NaN, and a key twice."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def header(run: Path) -> ModelInfo:
    """What the model says of itself, read without the library that wrote it."""
    with (run / "model.safetensors").open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        described = json.loads(file.read(size))["__metadata__"]["fieldmark"]
    return ModelInfo.from_json(described, where="model.safetensors")


def cells(data: bytes) -> list[list[str]]:
    """The rows of a CSV file as a spreadsheet has them; a formula in one is an error."""
    assert data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    for row in rows:
        for cell in row:
            assert not cell.startswith(FORMULA) or _is_number(cell), repr(cell)
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.strip() == cell and not cell.startswith("+")


def text_of(cell: str) -> str:
    """What was written into the cell."""
    return cell.removeprefix("'")


def _tables(run: Path, names: Sequence[str]) -> list[str]:
    tables = {name: cells((run / name).read_bytes()) for name in TABLES}
    first, *rows = tables["predictions.csv"]
    column = first.index("label")
    # Bytes that are no UTF-8 stand as escapes in CSV, which has no other way to hold them.
    readable = {name.encode("utf-8", "backslashreplace").decode() for name in names}
    known = {text_of(row[column]) for row in rows}
    wrong = [] if known <= readable else [f"predictions.csv has labels {known - readable}"]
    widths = {len(row) for row in rows} | {len(first)}
    return wrong if len(widths) == 1 else [*wrong, "predictions.csv has rows of several widths"]


class _Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _page(path: Path, names: Sequence[str]) -> list[str]:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    text = "".join(page.text)
    wrong = [f"a tag <{tag}>" for tag in page.tags & {"script", "iframe", "object", "base", "link"}]
    wrong += [f"an attribute {name}" for name, _ in page.attributes if name.startswith("on")]
    wrong += [
        f"{name}={value[:40]}"
        for name, value in page.attributes
        if name in ("src", "href", "action") and not value.startswith(("data:image/", "#"))
    ]
    shortened = [f"{shown(n)[:30]}…" if len(shown(n)) > 48 else shown(n) for n in names]
    return [
        *(f"report.html: {what}" for what in wrong),
        *(f"report.html lacks {name!r}" for name in shortened if name not in text),
    ]
