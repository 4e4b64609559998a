"""Data sets that a plugin reads: ``NAME:ARGUMENT``, such as ``labels_csv:photos/labels.csv``.

A path that exists is that path, whatever it is called: a folder wins, and ``./NAME:x`` is a folder
always. NAME has two characters or more, so that ``C:`` stays a drive. What a reader is given after
the colon is recorded in the run; where it is a path, as seen from the run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark import plugins
from fieldmark.data.dataset import Found
from fieldmark.errors import DataError, FieldmarkError
from fieldmark.names import shown
from fieldmark.pictures.decode import Encoded, read_file
from fieldmark.pictures.picture import BadPicture, InMemory, PictureSource

_FORM = re.compile(r"([A-Za-z_][A-Za-z0-9_-]+):(.*)", re.DOTALL)


def split(data: str) -> tuple[str, str]:
    """The reader's name and its argument; an empty name for a path or a data set's name.

    What a Python program handed over has a reader of that name, which takes no argument.
    """
    if plugins.is_handed(data):
        return data, ""
    form = _FORM.fullmatch(data)
    if form is None or form.group(2).startswith("//"):  # https://, s3://
        return "", data
    try:
        exists = Path(data).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        exists = False
    return ("", data) if exists else (form.group(1), form.group(2))


def reader_of(data: str) -> str:
    """The name of the plugin's reader that would read it; empty if none would."""
    return "" if plugins.is_handed(data) else split(data)[0]


def read(data: str) -> Found | None:
    """Let a plugin's reader read a data set; None if the text is no reader's.

    Raises:
        DataError: if what the reader gives is no data set.
    """
    name, argument = split(data)
    if not name:
        return None
    reader = plugins.find("reader", name, built_in=())
    if reader is None:
        return None
    try:
        found = reader(argument)
    except FieldmarkError:
        raise
    except Exception as error:
        raise DataError(
            f"the reader {name!r} cannot read {shown(argument)}: {type(error).__name__}: {error}"
        ) from error
    return checked(found, where=data)


def checked(found: Any, *, where: str) -> Found:
    """What a reader gave, with its promises checked and its entries sorted.

    Raises:
        DataError: naming the promise.
    """
    if not isinstance(found, Found):
        raise DataError(f"{shown(where)}: the reader gives a {type(found).__name__}, not a Found")
    keys = [entry.key for entry in found.entries]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{shown(where)}: two pictures have the key {shown(twice)}")
    if len(found.class_names) < 2 or len(set(found.class_names)) != len(found.class_names):
        raise DataError(
            f"{shown(where)}: its classes are {', '.join(map(shown, found.class_names)) or 'none'};"
            " two or more different ones are needed"
        )
    for entry in found.entries:
        if not 0 <= entry.label < len(found.class_names):
            raise DataError(f"{shown(where)}: {shown(entry.key)} has no class {entry.label}")
        if entry.part not in (None, "train", "val", "test"):
            raise DataError(f"{shown(where)}: {shown(entry.key)} is in no part {entry.part!r}")
    return dataclasses.replace(
        found,
        entries=tuple(sorted(found.entries, key=lambda entry: entry.key)),
        load=_loader(found.load),
    )


def _loader(load: Callable[[str], Any]) -> Callable[[str], PictureSource]:
    """The reader's ``load``, which may give a file's path or pixels in place of a source."""

    def loaded(key: str) -> PictureSource:
        try:
            source = load(key)
        except KeyError:
            raise BadPicture("no such picture", key) from None
        if isinstance(source, Path):
            return Encoded(read_file(source))
        if isinstance(source, np.ndarray):
            if (
                source.dtype != np.uint8
                or source.ndim != 3
                or source.shape[2] != 3
                or 0 in source.shape
            ):
                raise BadPicture("not uint8 [H, W, 3]", f"{source.dtype} {source.shape}")
            return InMemory(np.ascontiguousarray(source))
        found: PictureSource = source
        return found

    return loaded
