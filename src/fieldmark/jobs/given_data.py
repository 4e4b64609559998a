"""Labelled pictures that a Python program hands over in place of a folder.

    fieldmark.train((X, y))                       # arrays, tensors, or lists of pictures and labels
    fieldmark.train([("a.jpg", "cat"), ...])      # pairs of a picture and its label
    fieldmark.train({"train": (X, y), "test": (X2, y2)})
    fieldmark.train(dataset)                      # of torchvision, of torch, of Hugging Face
    fieldmark.train(frame)                        # a pandas or polars DataFrame, read as a table

A picture may be anything that ``predict`` takes as one. The run records :data:`DATA`, which brings
nothing back: whoever goes on with the run hands the pictures over again, and their content decides
whether they are the same. Imports neither torch nor any of the libraries above.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldmark.data import naming, table
from fieldmark.data.dataset import Entry, Found
from fieldmark.errors import ConfigError, DataError
from fieldmark.jobs.given import array_of, from_array, is_tensor
from fieldmark.names import shown
from fieldmark.pictures.decode import Encoded, read_file, to_rgb
from fieldmark.pictures.picture import InMemory, PictureSource
from fieldmark.plugins.handed import Handed

DATA = "python:data"
"""What a run records in place of a folder."""
ACCEPTED = (
    "a path; (X, y) with as many labels as pictures; a list of (picture, label); a data set of "
    "such pairs; a DataFrame with a column of paths and one of labels; or a dict of these by "
    "split: train, val, test"
)


def handed_data(value: object) -> tuple[str, Handed]:
    """The text that stands for labelled pictures in a request, and the reader behind it.

    Raises:
        ConfigError: if it is none.
        DataError: if the pictures and labels do not fit each other.
    """
    found = _found(value)
    return DATA, {("readers", DATA): lambda argument: found}


@dataclass(frozen=True)
class _Pairs:
    """Pictures and labels by number, of one split."""

    picture: Callable[[int], Any]
    labels: Sequence[str]
    keys: Sequence[str]


def _found(value: object) -> Found:
    if _is_frame(value):
        return _of_frame(value)
    if isinstance(value, Mapping):
        split = {name: naming.part_of(str(name)) for name in value}
        if not value or None in split.values() or len(set(split.values())) < len(split):
            raise ConfigError(
                f"data is a dict with the keys {', '.join(map(repr, value)) or 'none'}; the names "
                "of splits are accepted: train, val, test, one of each"
            )
        parts = {split[name]: _pairs(each) for name, each in value.items()}
    else:
        parts = {None: _pairs(value)}
    names = tuple(sorted({label for pairs in parts.values() for label in pairs.labels}))
    if len(names) < 2:
        raise DataError(
            f"data has {'one class, ' + shown(names[0]) if names else 'no pictures'}; two classes "
            "or more are needed"
        )
    index = {name: number for number, name in enumerate(names)}
    entries, pictures = [], {}
    for part, pairs in parts.items():
        for number, (name, label) in enumerate(zip(pairs.keys, pairs.labels, strict=True)):
            key = name if part is None else f"{part}/{name}"
            entries.append(Entry(key, index[label], part))
            pictures[key] = (pairs, number)

    def load(key: str) -> PictureSource:
        pairs, number = pictures[key]
        return _source(pairs.picture(number))

    return Found(
        name="data",
        class_names=names,
        entries=tuple(sorted(entries, key=lambda entry: entry.key)),
        load=load,
        notes=("pictures that a Python program handed over",),
    )


def _source(picture: Any) -> PictureSource:
    """What a picture is read from.

    Raises:
        BadPicture: if a file cannot be read.
        DataError: if it is no picture.
    """
    if isinstance(picture, str | os.PathLike):
        return Encoded(read_file(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        return Encoded(bytes(picture))
    if isinstance(picture, Image.Image):
        return InMemory(to_rgb(picture))
    if is_tensor(picture):
        picture = array_of(picture)
    if isinstance(picture, np.ndarray):
        return InMemory(from_array(picture))
    raise DataError(f"a picture is a {type(picture).__name__}, which is none; {ACCEPTED}")


# --- forms ---------------------------------------------------------------------------------------


def _pairs(value: Any) -> _Pairs:
    """Pictures and labels of one split, in whatever form they are.

    Raises:
        ConfigError: if it is none of the forms.
    """
    if hasattr(value, "features") and hasattr(value, "column_names"):
        return _of_hub(value)
    if isinstance(value, tuple) and len(value) == 2:
        return _of_arrays(*value)
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if not sized or isinstance(value, bytes | bytearray | np.ndarray):
        raise ConfigError(f"data is a {type(value).__name__}; accepted are {ACCEPTED}")
    return _of_items(value)


def _of_arrays(pictures: Any, labels: Any) -> _Pairs:
    if is_tensor(pictures):
        pictures = array_of(pictures)
    if is_tensor(labels):
        labels = labels.detach().cpu().numpy()
    try:
        sizes = len(pictures), len(labels)
    except TypeError:
        raise ConfigError(
            f"data is a tuple of a {type(pictures).__name__} and a {type(labels).__name__}; "
            f"accepted are {ACCEPTED}"
        ) from None
    if sizes[0] != sizes[1]:
        raise DataError(f"data has {sizes[0]} pictures and {sizes[1]} labels; one each is needed")
    if isinstance(pictures, np.ndarray) and pictures.ndim < 3 and pictures.dtype != object:
        raise DataError(
            f"data has pictures of shape {pictures.shape[1:]}; [H, W] or [H, W, 3] each is needed, "
            "so reshape rows of numbers to [N, H, W]"
        )
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.shape[1] > 1:
        if not ((labels == 0) | (labels == 1)).all() or (labels.sum(axis=1) != 1).any():
            raise DataError(
                f"data has labels of shape {list(labels.shape)} that are not one 1 in each row; "
                "one label a picture is accepted"
            )
        labels = labels.argmax(axis=1)
    if hasattr(pictures, "iloc"):
        pictures = list(pictures)
    if hasattr(labels, "iloc") or (isinstance(labels, np.ndarray) and labels.ndim == 2):
        labels = np.asarray(labels).ravel()
    return _made(sizes[0], lambda i: pictures[i], [_label(each) for each in labels], pictures)


def _of_items(items: Any) -> _Pairs:
    """Pairs of a picture and its label, in a list or in a data set."""
    classes = getattr(items, "classes", None)
    names = classes if isinstance(classes, Sequence) and not isinstance(classes, str) else ()
    samples = getattr(items, "samples", None)
    if isinstance(samples, list) and len(samples) == len(items):  # torchvision's folders
        items = samples
    paths = items if isinstance(items, list) else []
    labels = []
    for number in range(len(items)):
        item = items[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            kind = type(item).__name__
            raise ConfigError(
                f"data has a {kind} at {number}, not a picture and its label; accepted are "
                f"{ACCEPTED}"
            )
        labels.append(_label(item[1], names))
    return _made(len(items), lambda i: items[i][0], labels, paths)


def _of_hub(dataset: Any) -> _Pairs:
    """A data set of Hugging Face's ``datasets``."""
    features = dataset.features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = classes or table.named(list(kinds), table.LABELS)
    if not images or not labels:
        raise ConfigError(
            f"data has the columns {', '.join(f'{n} ({k})' for n, k in kinds.items())}; one of "
            "pictures (Image) and one of labels (ClassLabel, or called label) are needed"
        )
    image, label = images[0], labels[0]
    names = features[label].names if classes else ()
    plain = dataset.cast_column(image, type(features[image])(decode=False))

    def picture(number: int) -> Any:
        found = plain[number][image]
        return found["bytes"] if found.get("bytes") else found["path"]

    values = [_label(each, names) for each in plain[label]]
    return _made(len(plain), picture, values)


def _is_frame(value: object) -> bool:
    return hasattr(value, "columns") and (hasattr(value, "to_dicts") or hasattr(value, "iterrows"))


def _of_frame(frame: Any) -> Found:
    """A DataFrame, read as a table in the current folder."""
    rows = frame.to_dicts() if hasattr(frame, "to_dicts") else frame.to_dict("records")
    names = [str(name) for name in frame.columns]
    return table.read_rows(names, [{str(k): v for k, v in row.items()} for row in rows], Path.cwd())


def _made(
    size: int, picture: Callable[[int], Any], labels: Sequence[str], named: Iterable[Any] = ()
) -> _Pairs:
    """Pairs, whose keys are numbers, or paths where there are some."""
    width = len(str(max(0, size - 1)))
    keys = [f"{number:0{width}}" for number in range(size)]
    given = [each[0] if isinstance(each, tuple) else each for each in named]
    if given and all(isinstance(each, str | os.PathLike) for each in given):
        paths = [Path(each).as_posix() for each in given]
        if len(set(paths)) == len(paths):
            keys = paths
    missing = next((i for i, label in enumerate(labels) if not label), None)
    if missing is not None:
        raise DataError(f"data has no label at {missing}; leave the picture out, or label it")
    return _Pairs(picture, labels, keys)


def _label(value: Any, names: Sequence[str] = ()) -> str:
    """A label as the class is called: its text, or the name that it is the number of."""
    if is_tensor(value) or isinstance(value, np.generic | np.ndarray):
        value = value.item() if getattr(value, "ndim", 0) == 0 or value.size == 1 else value
    if names and isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(names):
            raise DataError(f"data has the label {value}, but there are {len(names)} classes")
        return str(names[value])
    return table.label_text(value)
