"""``data.json``: which pictures a run is of, where they are, and what became of them.

No absolute path, user name, host name or value of the environment is written into a run.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.data import DATASETS, Dataset, readers
from fieldmark.data.dataset import Part
from fieldmark.data.scan import fingerprint
from fieldmark.errors import ConfigError, RunError
from fieldmark.files.typed import STRICT, Count, Split, Text
from fieldmark.names import shown
from fieldmark.plugins import handed, is_handed
from fieldmark.runs.directory import RunDirectory, timestamp
from fieldmark.settings.config import TrainConfig

FILE = "data.json"
_REMEDY = "put back the file as it was"

Row = tuple[Text, Count, Text]
"""A picture: its key in the data set, its label, the digest of its pixels."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that was left out."""

    __pydantic_config__ = STRICT

    file: Text
    reason: Text
    detail: Text


@dataclass(frozen=True, kw_only=True)
class RecordedChange:
    """What became of the pictures while the run was stopped."""

    __pydantic_config__ = STRICT

    after_step: Count
    from_: Text
    """Fingerprint of the pictures before."""
    added: tuple[Text, ...]
    gone: tuple[Text, ...]
    changed: tuple[Text, ...]
    warning: Text
    when: Text
    """Time in UTC."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``data.json`` holds: the classes, and every picture with its split.

    Raises:
        ValueError: if the counts are not those of the rows, or a label is of no class.
    """

    __pydantic_config__ = STRICT

    name: Text
    """Name of the data set."""
    path: Text
    """Where the pictures were: a data set's name, or a folder as seen from the run."""
    class_names: tuple[Text, ...]
    """In the order of the network's outputs."""
    counts: Mapping[Split, tuple[Count, ...]]
    """Pictures of each class, by split."""
    fingerprint: Text
    """Fingerprint of all rows; see ``data/scan.py``."""
    bad: tuple[LeftOut, ...]
    notes: tuple[Text, ...]
    warnings: tuple[Text, ...]
    parts: Mapping[Split, tuple[Row, ...]]
    """The pictures of each split; ``val`` and ``test`` may be the same."""
    changes: tuple[RecordedChange, ...] = ()

    def __post_init__(self) -> None:
        k = len(self.class_names)
        if not 0 < len(set(self.class_names)) == k:
            raise ValueError("class_names is empty, or a name stands twice")
        for split in ("train", "val"):
            if split not in self.parts:
                raise ValueError(f"parts lacks {split}")
        if self.counts.keys() != self.parts.keys():
            raise ValueError(f"counts is of {', '.join(self.counts)}, not {', '.join(self.parts)}")
        for split, rows in self.parts.items():
            labels = [label for _, label, _ in rows]
            if labels and max(labels) >= k:
                row = labels.index(max(labels))
                raise ValueError(f"parts.{split}.{row}.1 is {labels[row]}, but of {k} classes")
            found = Counter(labels)
            if tuple(found[label] for label in range(k)) != self.counts[split]:
                raise ValueError(f"counts.{split} is not that of the pictures in parts.{split}")

    def splits(self) -> dict[str, Part]:
        """The pictures of each split, as a data set has them."""
        return {split: _part(rows) for split, rows in self.parts.items()}


def describe_data(dataset: Dataset, *, path: str) -> Manifest:
    """The manifest of a data set."""
    k = len(dataset.class_names)
    return Manifest(
        name=dataset.name,
        path=path,
        class_names=tuple(dataset.class_names),
        counts={name: tuple(part.counts(k).tolist()) for name, part in dataset.parts.items()},
        fingerprint=dataset.fingerprint,
        bad=tuple(LeftOut(file=b.key, reason=b.reason, detail=b.detail) for b in dataset.bad),
        notes=tuple(dataset.notes),
        warnings=tuple(dataset.warnings),
        parts={
            name: tuple(zip(part.keys, part.labels.tolist(), part.digests, strict=True))
            for name, part in dataset.parts.items()
        },
    )


def read(run: RunDirectory) -> Manifest:
    """Read ``data.json``, and check that its pictures are those its fingerprint is of.

    Raises:
        RunError: naming the file and the field if it is not what :func:`write` wrote.
    """
    stored = run.read_typed(FILE, Manifest, remedy=_REMEDY)
    found = fingerprint(stored.splits())
    if found != stored.fingerprint:
        raise RunError(
            f"{run.path / FILE} was changed by hand: fingerprint is "
            f"{shown(stored.fingerprint[:16])}, that of the pictures in parts is {found[:16]}; "
            f"{_REMEDY}"
        )
    return stored


def write(run: RunDirectory, manifest: Manifest) -> None:
    """Write ``data.json``."""
    run.write_typed(FILE, manifest, indent=None)


def relative_path(data: str, run: RunDirectory) -> str:
    """Where the pictures are as seen from the run; their name alone if that tells the user's."""
    reader, argument = readers.split(data)
    if reader:
        return f"{reader}:{relative_path(argument, run)}" if argument else data
    path = Path(data).expanduser()
    if not path.exists():
        return data
    try:
        relative = os.path.relpath(path.resolve(), run.path.resolve())
    except ValueError:  # another drive
        return path.name
    try:
        home = Path.home().name
    except RuntimeError:  # a user the system has no name for
        return relative
    return path.name if home and home in Path(relative).parts else relative


def check_apart(out: Path | None, data: str) -> None:
    """Refuse to write a run among the pictures: they stay as they are, and it would be a class.

    Raises:
        ConfigError: naming both folders.
    """
    argument = readers.split(data)[1]
    place, pictures = (out or Path("runs")).resolve(), Path(argument).expanduser().resolve()
    is_folder = bool(argument) and data not in DATASETS and pictures.is_dir()
    if is_folder and pictures in (place, *place.parents):
        raise ConfigError(
            f"the run would be written to {out or 'runs'}, inside the pictures of {data}, which "
            "stay as they are; name a folder elsewhere with --out"
        )


def locate(run: RunDirectory, stored: Manifest) -> str:
    """Find the pictures of a run again.

    Raises:
        RunError: if they are not where they were.
    """
    return find(run, stored.path, name=stored.name)


def find(run: RunDirectory, path: str, *, name: str) -> str:
    """Find pictures by the place that a run recorded.

    Raises:
        RunError: if they are not where they were.
    """
    if path in DATASETS:
        return path
    if is_handed(path):
        if path in handed.names("readers"):
            return path
        raise RunError(
            f"the pictures of {run.path} were handed over by a Python program; hand them over "
            "again: fieldmark.resume(RUN, data=...), or data=... of what is called"
        )
    reader, argument = readers.split(path)
    for folder in (run.path.resolve() / argument, Path(argument)):
        if argument and folder.exists():
            return f"{reader}:{os.path.relpath(folder)}" if reader else os.path.relpath(folder)
    if reader:  # what it was given may be no path: it has to know
        return path
    raise RunError(
        f"the pictures of {run.path} ({shown(name)}) are not where they were; "
        "say where they are with --data DIR"
    )


def _part(rows: Sequence[Row]) -> Part:
    """A split's pictures from its rows."""
    return Part(
        keys=tuple(key for key, _, _ in rows),
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        digests=tuple(digest for _, _, digest in rows),
    )


def divided_as_before(dataset: Dataset, stored: Manifest) -> Dataset:
    """Keep every picture in the split it was in: none that was trained on may come to score.

    A picture more or less changes how all of them are divided; so only new ones are.
    """
    if dataset.fingerprint == stored.fingerprint:
        return dataset
    before = {row[0]: name for name, rows in stored.parts.items() for row in rows}
    both = dataset.parts["val"] is dataset.parts.get("test")  # the test split validates, too
    rows: dict[str, list[tuple[str, int, str]]] = {name: [] for name in dataset.parts}
    for name, part in dataset.parts.items():
        if both and name == "val":
            continue
        for key, label, digest in zip(part.keys, part.labels, part.digests, strict=True):
            rows.setdefault(before.get(key, name), []).append((key, int(label), digest))
    parts = {name: _part(sorted(found)) for name, found in rows.items()}
    if both:
        parts["val"] = parts["test"]
    return dataclasses.replace(dataset, parts=parts, fingerprint=fingerprint(parts))


@dataclass(frozen=True)
class DataChange:
    """What became of the pictures since a run began."""

    added: tuple[str, ...]
    gone: tuple[str, ...]
    changed: tuple[str, ...]
    """Other content or another class."""

    def __str__(self) -> str:
        kinds = (("new", self.added), ("gone", self.gone), ("changed", self.changed))
        return ", ".join(
            f"{len(keys)} {kind}"
            + (f" ({', '.join(map(shown, keys[:3]))}{', ...' if len(keys) > 3 else ''})")
            * bool(keys)
            for kind, keys in kinds
        )


def data_change(run: RunDirectory, stored: Manifest, dataset: Dataset) -> DataChange | None:
    """Compare the pictures with those that the run began with; None if they are the same.

    Args:
        run: For messages.
        stored: ``data.json``.
        dataset: The pictures now, :func:`divided_as_before`.

    Raises:
        RunError: if the classes are others: the network has no output for a new one.
    """
    old_names, new_names = list(stored.class_names), list(dataset.class_names)
    if old_names != new_names:
        new = [shown(n) for n in new_names if n not in old_names]
        gone = [shown(n) for n in old_names if n not in new_names]
        raise RunError(
            f"the classes changed since {run.path} began: "
            f"new {', '.join(new) or 'none'}; gone {', '.join(gone) or 'none'}"
            + ("" if new or gone else "; their order is another")
            + "; put them back, or train anew"
        )
    if stored.fingerprint == dataset.fingerprint:
        return None
    old = {row[0]: row[1:] for rows in stored.parts.values() for row in rows}
    now = {
        key: (int(label), digest)
        for part in dataset.parts.values()
        for key, label, digest in zip(part.keys, part.labels, part.digests, strict=True)
    }
    return DataChange(
        tuple(sorted(now.keys() - old.keys())),
        tuple(sorted(old.keys() - now.keys())),
        tuple(sorted(key for key in now.keys() & old.keys() if now[key] != old[key])),
    )


def record_change(
    run: RunDirectory,
    stored: Manifest,
    dataset: Dataset,
    change: DataChange,
    *,
    path: str,
    step: int,
) -> str:
    """Write ``data.json`` anew, with the change in it; returns the warning that it holds, too."""
    warning = (
        f"the pictures changed after step {step}: {change}. The run went on with those of now "
        "(--allow-data-change); its figures from before are of the others"
    )
    described = describe_data(dataset, path=path)
    recorded = RecordedChange(
        after_step=step,
        from_=stored.fingerprint,
        added=change.added,
        gone=change.gone,
        changed=change.changed,
        warning=warning,
        when=timestamp(),
    )
    changes = (*stored.changes, recorded)
    warnings = (*(each.warning for each in changes), *described.warnings)
    write(run, dataclasses.replace(described, warnings=warnings, changes=changes))
    return warning


def check_unedited(
    run: RunDirectory, config: TrainConfig, stored: Manifest, saved: Mapping[str, Any]
) -> None:
    """Refuse to go on if ``config.json`` or ``data.json`` are not those the checkpoint is of.

    Raises:
        RunError: naming what differs.
    """
    now, then = config.values(), saved.get("config")
    if not isinstance(then, dict):
        raise RunError(f"{run.path}: the checkpoint does not say its settings; train anew")
    differing = [
        f"{key} is {now.get(key, 'missing')!r}, was {then.get(key, 'missing')!r}"
        for key in sorted(now.keys() | then.keys())
        if key not in now or key not in then or now[key] != then[key]
    ]
    if differing:
        raise RunError(
            f"{run.path / 'config.json'} was changed since the checkpoint was written: "
            f"{'; '.join(differing[:8])}{'; ...' if len(differing) > 8 else ''}. "
            "A run goes on with the settings it began with: put them back, or train anew with "
            f"--config {run.path / 'config.json'}"
        )
    known = [stored.fingerprint, *(change.from_ for change in stored.changes)]
    if saved.get("data") not in known:
        raise RunError(
            f"{run.path / 'data.json'} is not that of the checkpoint: its pictures have the "
            f"fingerprint {stored.fingerprint[:16]}, those of the checkpoint "
            f"{str(saved.get('data'))[:16]}; put back the file as it was"
        )
