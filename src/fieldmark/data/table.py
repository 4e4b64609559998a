"""A table that names pictures and their labels: CSV and its kin, JSON lines, JSON.

    fieldmark train photos/labels.csv

Pictures are looked for where their paths lead from the table's folder; where none does, by their
names anywhere below it. Which column names them, which has the labels and which the splits is found
by the columns' names and by what is in them, and the plan says so. What a file's bytes mean
(encoding, what stands between cells) is told apart by what then fits: rows of one width, and names
of pictures that are there.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldmark.data import naming
from fieldmark.data.dataset import Entry, Found
from fieldmark.data.folder import pictures_below, twins
from fieldmark.errors import DataError
from fieldmark.names import shown
from fieldmark.pictures.decode import Encoded, read_file
from fieldmark.pictures.picture import BadPicture

MAX_BYTES = 2**30
"""Size above which a table is refused unread: a million rows have about 100 MB."""
LOOK = 200
"""Rows that tell what a table is like."""

_PATHS = (
    *("path", "filepath", "imagepath", "file", "filename", "imagefile", "imagefilename"),
    *("image", "imagename", "img", "imgname", "imgpath", "picture", "photo", "imageid", "id"),
    *("name", "key", "uri", "url"),
)
LABELS = (
    *("label", "labels", "classname", "labelname", "class", "category", "categoryname", "target"),
    *("species", "breed", "tag", "diagnosis", "y", "classid", "labelid", "categoryid", "targetid"),
)
_SPLITS = ("split", "subset", "set", "dataset", "partition", "part", "usage", "fold")
_DELIMITERS = ("\t", ";", ",", "|", " ")
_SINGLE_ZEROS = re.compile(r"-?\d+\.0+")

Row = Mapping[str, Any]
"""Cells by column."""


@dataclass(frozen=True)
class _Columns:
    """Which column is what."""

    path: str
    label: str
    """Empty where each class has a column of its own, with a 1 in it."""
    split: str
    hot: tuple[str, ...] = ()
    """Columns of the classes."""


def is_table(path: Path) -> bool:
    """Whether it is a file that would be read as a table."""
    return path.suffix.lower() in naming.TABLES and path.is_file()


def read_table(path: Path) -> Found:
    """Find the pictures, labels and splits that a table names; no picture is opened.

    A picture that is not there is one that cannot be read: it is left out and counted like any
    other, as ``on_bad`` allows. A row without a label is left out.

    Raises:
        DataError: if it cannot be read or understood, gives a picture two labels or two splits, or
            has fewer than two classes.
    """
    where = shown(str(path))
    data = _bytes(path, where)
    place = _Place(Path(os.path.abspath(path)).parent)  # noqa: PTH100 - as for folders
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        encoding, text = next(_texts(data))
        rows = _objects(text, where)
        names = tuple(dict.fromkeys(name for row in rows for name in row))
    else:
        encoding, names, rows = _cells(data, where, place)
    if not rows:
        raise DataError(f"{where} has no rows; a row for each picture is needed")
    columns = _columns(names, rows, where, place)
    return _found(path.stem, rows, columns, place, where, encoding)


def read_rows(names: Sequence[str], rows: Sequence[Row], base: Path) -> Found:
    """The same of rows that a Python program hands over; paths begin in ``base``.

    Raises:
        DataError: as for :func:`read_table`.
    """
    if not rows:
        raise DataError("the table has no rows; a row for each picture is needed")
    place = _Place(base)
    columns = _columns(names, rows, "the table", place)
    return _found("data", rows, columns, place, "the table", "utf-8")


def _bytes(path: Path, where: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(
                f"{where} has {size / 1e9:.1f} GB; a table of at most {MAX_BYTES / 1e9:.1f} GB is "
                "read: divide it, or leave out columns"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from None


# --- bytes to rows -------------------------------------------------------------------------------


def _texts(data: bytes) -> Iterator[tuple[str, str]]:
    """The encodings that the bytes can have, likeliest first, and what they then say."""
    marks = (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    )
    named = next((name for mark, name in marks if data.startswith(mark)), "")
    head = data[:4096]
    if named:
        candidates: tuple[str, ...] = (named,)
    elif head.count(0) > len(head) // 4:
        candidates = ("utf-16-le", "utf-16-be") if head[1::2].count(0) else ("utf-16-be",)
    else:
        # Bytes of two in the upper half are Chinese or Korean; a lone one is a letter of Europe.
        pairs = re.search(rb"[\x80-\xff]", re.sub(rb"[\xa1-\xfe][\xa1-\xfe]", b"", data)) is None
        east, west = ("gb18030", "cp949", "shift_jis"), ("cp1252",)
        candidates = ("utf-8", *((*east, *west) if pairs else (*west, *east)), "latin-1")
    for name in candidates:
        try:
            yield name.removesuffix("-sig"), data.decode(name)
        except UnicodeDecodeError:
            continue
        if name.startswith("utf-8"):
            return
    if candidates[0].startswith("utf-") and len(candidates) < 3:
        yield candidates[0], data.decode(candidates[0], errors="replace")


def _cells(
    data: bytes, where: str, place: _Place
) -> tuple[str, tuple[str, ...], list[dict[str, str]]]:
    """The encoding, the columns and the rows of a table of text.

    Of several encodings that are possible it is the one by which most pictures are found.
    """
    best: tuple[int, str, list[list[str]]] | None = None
    for encoding, text in _texts(data):
        lines = _lines(text, where)
        there = sum(place.find(cell) is not None for line in lines[:LOOK] for cell in line)
        if best is None or there > best[0]:
            best = there, encoding, lines
        if encoding.startswith("utf"):
            break
    assert best is not None
    _, encoding, lines = best
    if not lines:
        raise DataError(f"{where} is empty; a row for each picture is needed")
    width = Counter(map(len, lines[:LOOK])).most_common(1)[0][0]
    header = _has_header(lines, place)
    names = lines[0] if header else [f"column {i}" for i in range(1, width + 1)]
    names = [name.strip() or f"column {i}" for i, name in enumerate(names, 1)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where} has two columns called {shown(twice)}; rename one of them")
    rows = []
    for number, line in enumerate(lines[header:], 1 + header):
        cells = line[: len(names)] + [""] * (len(names) - len(line))
        if any(cell.strip() for cell in line[len(names) :]):
            raise DataError(
                f"{where}, row {number}: {len(line)} cells, but there are {len(names)} columns "
                f"({', '.join(map(shown, names))}); put cells with a separator in them into quotes"
            )
        rows.append(dict(zip(names, cells, strict=True)))
    return encoding, tuple(names), rows


def _lines(text: str, where: str) -> list[list[str]]:
    """The rows of cells, without empty ones; what stands between cells is found out."""
    told = re.match(r"\ufeff?sep=(.)\r?\n", text)  # so Excel is told
    text = text[told.end() :] if told else text.removeprefix("\ufeff")
    delimiter = told.group(1) if told else _delimiter(text)
    if "\0" in text:
        raise DataError(f"{where} has bytes of zero in it, so it is no table of text; save it anew")
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{where} cannot be read as a table: {error}") from None
    return [line for line in lines if any(cell.strip() for cell in line)]


def _delimiter(text: str) -> str:
    """What makes most rows equally wide, and more than one cell."""
    head = text[: 200 * LOOK]
    if len(head) < len(text):
        head = head[: head.rfind("\n") + 1] or head
    best, chosen = 0.0, ","
    for delimiter in _DELIMITERS:
        try:
            lines = [x for x in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter) if x]
        except csv.Error:
            continue
        if not lines:
            continue
        width, count = Counter(map(len, lines)).most_common(1)[0]
        if width > 1 and count / len(lines) > best + 0.05:
            best, chosen = count / len(lines), delimiter
    return chosen


def _has_header(lines: Sequence[Sequence[str]], place: _Place) -> bool:
    """Whether the first row names the columns: no cell of it is a picture."""
    if any(place.find(cell) is not None for cell in lines[0]):
        return False
    words = {_plain(cell) for cell in lines[0]}
    if words & {*_PATHS, *LABELS, *_SPLITS} or _any_found(lines[1:LOOK], place):
        return True
    place.searching = True
    return not _any_found(lines[:1], place) and _any_found(lines[1:LOOK], place)


def _any_found(lines: Sequence[Sequence[str]], place: _Place) -> bool:
    return any(place.find(cell) is not None for line in lines for cell in line)


def _objects(text: str, where: str) -> list[dict[str, Any]]:
    """The rows of JSON lines, of a list of objects, or of one object from picture to label."""
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if whole is None:
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{where}, line {number}: no JSON ({error})") from None
    elif isinstance(whole, list):
        rows = whole
    elif isinstance(whole, dict) and all(isinstance(v, str | int) for v in whole.values()):
        rows = [{"path": key, "label": value} for key, value in whole.items()]
        if "path" in whole and "label" in whole:  # one line of JSON lines
            rows = [whole]
    else:
        rows = [whole]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"{where}, row {number}: {shown(str(row)[:60])}; an object such as "
                '{"path": "a.jpg", "label": "cat"} is needed'
            )
        if {"annotations", "images"} <= set(row):
            raise DataError(
                f"{where} is a file of annotations (COCO), in which a picture has several objects; "
                "a table with one label a picture is needed"
            )
    return rows


# --- columns -------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _columns(names: Sequence[str], rows: Sequence[Row], where: str, place: _Place) -> _Columns:
    """Find out which column is what.

    Raises:
        DataError: if it is not clear, with the columns that there are.
    """
    look = rows[:LOOK]
    listed = ", ".join(shown(name) for name in names)
    there = _found_in(names, look, place)
    if not any(there.values()):
        place.searching = True
        there = _found_in(names, look, place)
    by_name = named(names, _PATHS)
    path = max(names, key=lambda name: (there[name], -_rank(name, by_name)))
    if not there[path]:
        example = next((str(row[n]) for n in by_name or names for row in look if row.get(n)), "")
        raise DataError(
            f"{where}: no column has names of pictures that are in {shown(str(place.base))} or "
            f"below (columns: {listed}; such as {shown(example)}); put the table into the folder "
            "that its names begin in"
        )
    rest = [name for name in names if name != path]
    split = next((n for n in named(rest, _SPLITS) if _are_splits(rows, n)), "")
    rest = [name for name in rest if name != split]
    labels = named(rest, LABELS) or [n for n in rest if len(rest) == 1 or _may_label(rows, n)]
    hot = tuple(n for n in rest if _is_hot(rows, n))
    if len(hot) > 1 and all(_ones(row, hot) == 1 for row in rows):
        return _Columns(path, "", split, hot)
    if not labels or (len(labels) > 1 and not named(rest, LABELS)):
        raise DataError(
            f"{where}: it is not clear which column has the labels (columns: {listed}); call it "
            "'label'"
        )
    return _Columns(path, labels[0], split)


def _found_in(names: Sequence[str], rows: Sequence[Row], place: _Place) -> dict[str, int]:
    """How many pictures each column names."""
    return {
        name: sum(place.find(str(row.get(name, ""))) is not None for row in rows) for name in names
    }


def named(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that are known, in the order of what is known."""
    found = [(known.index(_plain(name)), name) for name in names if _plain(name) in known]
    return [name for _, name in sorted(found)]


def _rank(name: str, ranked: Sequence[str]) -> int:
    return ranked.index(name) if name in ranked else len(ranked)


def _are_splits(rows: Sequence[Row], name: str) -> bool:
    values = {str(row.get(name, "")).strip() for row in rows} - {""}
    return bool(values) and all(naming.part_of(value) for value in values)


def _may_label(rows: Sequence[Row], name: str) -> bool:
    values = Counter(label_text(row.get(name)) for row in rows)
    return 1 < len(values) <= max(2, len(rows) // 2)


def _is_hot(rows: Sequence[Row], name: str) -> bool:
    return all(str(row.get(name, "")).strip() in ("0", "1", "0.0", "1.0") for row in rows)


def _ones(row: Row, names: Sequence[str]) -> int:
    return sum(float(row[name]) == 1 for name in names)


# --- rows to pictures ----------------------------------------------------------------------------


class _Place:
    """The folder that a table's names begin in, and the pictures in it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.searching = False
        """Whether a picture is also found by its name alone, anywhere below the folder."""
        self._index: dict[str, Path | None] | None = None

    def find(self, text: str) -> Path | None:
        """The picture that a cell names; None if there is none."""
        text = text.strip().removeprefix("file://").replace("\\", "/")
        if not text or "\0" in text or len(text) > 4000 or naming.ADDRESS.match(text):
            return None
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if not parts:
            return None
        try:
            whole = Path(text)
            if whole.is_absolute() and whole.is_file():
                return whole
            for start in range(len(parts)):  # a path of another machine ends as it does here
                found = self._file(self.base.joinpath(*parts[start:]))
                if found is not None:
                    return found
        except OSError:
            return None
        return self._by_name(parts[-1]) if self.searching else None

    def _file(self, path: Path) -> Path | None:
        if path.suffix.lower() in naming.EXTENSIONS:
            return path if path.is_file() else None
        endings = (path.with_name(path.name + ending) for ending in (".jpg", ".jpeg", ".png"))
        return next((each for each in endings if each.is_file()), None)

    def _by_name(self, name: str) -> Path | None:
        """The one picture of this name, with or without its ending, anywhere below the folder."""
        if self._index is None:
            self._index = {}
            for file in pictures_below(self.base):
                for key in {file.name, file.stem}:
                    self._index[key] = None if key in self._index else file
        return self._index.get(name)


def label_text(value: Any) -> str:
    """A label as the class is called; empty for none."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()
    return text.partition(".")[0] if _SINGLE_ZEROS.fullmatch(text) else text


def _found(
    name: str, rows: Sequence[Row], columns: _Columns, place: _Place, where: str, encoding: str
) -> Found:
    """The pictures of the rows.

    Raises:
        DataError: if the rows contradict each other, or have fewer than two classes.
    """
    files: dict[str, Path | None] = {}
    labels: dict[str, str] = {}
    parts: dict[str, str | None] = {}
    unlabelled = repeated = 0
    spellings: dict[str, set[str]] = {}
    for row in rows:
        value = row.get(columns.path)
        given = "" if value is None else str(value)
        label = _of(row, columns, where)
        if not given.strip() or not label:
            unlabelled += 1
            continue
        file = place.find(given)
        key = given.strip() if file is None else _key(file, place.base)
        said = str(row.get(columns.split, "")).strip() if columns.split else ""
        part = naming.part_of(said) if said else ("train" if columns.split else None)
        if key in files:
            _check_same(where, key, "label", labels[key], label)
            _check_same(where, key, "split", parts[key] or "", part or "")
            repeated += 1
        files[key], labels[key], parts[key] = file, label, part
        if columns.label:
            spellings.setdefault(label, set()).add(str(row[columns.label]))
    names = tuple(sorted(set(labels.values())))
    index = {label: number for number, label in enumerate(names)}
    if len(names) < 2:
        raise DataError(
            f"{where}: {'one class, ' + shown(names[0]) if names else 'no labels'} in column "
            f"{shown(columns.label)}; two or more are needed"
        )
    if len(names) == len(labels) > 2:
        raise DataError(
            f"{where}: column {shown(columns.label)} is different in each row, so it has no "
            "labels; call the column of labels 'label'"
        )
    notes = [_told(columns, encoding)]
    for count, words in (
        (unlabelled, "rows have no label and are left out"),
        (repeated, "rows repeat another one and are left out"),
        (
            sum(len(each) > 1 for each in spellings.values()),
            "labels are written in several ways that differ by spaces; they are one class each",
        ),
    ):
        if count:
            notes.append(f"{count} {words}")
    return Found(
        name=name,
        class_names=names,
        entries=tuple(Entry(key, index[labels[key]], parts[key]) for key in sorted(files)),
        load=_loader(files),
        notes=tuple(notes),
        warnings=tuple(twins(names)),
    )


def _of(row: Row, columns: _Columns, where: str) -> str:
    """The label of a row.

    Raises:
        DataError: if it has several.
    """
    if columns.hot:
        return next(name for name in columns.hot if float(row[name]) == 1)
    value = row.get(columns.label)
    if isinstance(value, list | tuple | dict) and len(value) > 1:
        raise DataError(
            f"{where}: {shown(str(row.get(columns.path)))} has several labels "
            f"({shown(str(value)[:60])}); one label a picture is accepted"
        )
    return label_text(value)


def _check_same(where: str, key: str, what: str, one: str, other: str) -> None:
    if one != other:
        raise DataError(
            f"{where}: {shown(key)} has two {what}s, {shown(one or 'none')} and "
            f"{shown(other or 'none')}; one for each picture is accepted"
        )


def _key(file: Path, base: Path) -> str:
    """The picture's name: as seen from the table's folder, as in a folder of pictures."""
    try:
        return file.relative_to(base).as_posix()
    except ValueError:
        return file.as_posix()


def _told(columns: _Columns, encoding: str) -> str:
    """What the plan says of the table."""
    label = shown(columns.label) if columns.label else f"a column each ({len(columns.hot)})"
    split = f", splits from {shown(columns.split)}" if columns.split else ""
    text = "" if encoding == "utf-8" else f"; read as {encoding}: look at the classes' names"
    return f"table: pictures from column {shown(columns.path)}, labels from {label}{split}{text}"


def _loader(files: Mapping[str, Path | None]) -> Callable[[str], Encoded]:
    def load(key: str) -> Encoded:
        file = files[key]
        if file is None:
            what = "an address, no file" if naming.ADDRESS.match(key) else "there is no such file"
            raise BadPicture(what)
        return Encoded(read_file(file))

    return load
