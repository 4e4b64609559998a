"""Where a run comes from: its pictures, the machine and the versions; nothing personal.

No absolute path, user name, host name or value of the environment is written into a run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.data import DATASETS, Dataset
from fieldmark.data.dataset import Part
from fieldmark.data.readers import split
from fieldmark.data.scan import fingerprint
from fieldmark.errors import ConfigError, RunError
from fieldmark.files.json_text import FORMAT
from fieldmark.names import shown
from fieldmark.runs.directory import RunDirectory, timestamp
from fieldmark.settings.config import TrainConfig


def describe_data(dataset: Dataset, *, path: str) -> dict[str, Any]:
    """The content of ``data.json``."""
    k = len(dataset.class_names)
    return {
        "format": FORMAT,
        "name": dataset.name,
        "path": path,
        "class_names": list(dataset.class_names),
        "counts": {name: part.counts(k).tolist() for name, part in dataset.parts.items()},
        "fingerprint": dataset.fingerprint,
        "bad": [{"file": b.key, "reason": b.reason, "detail": b.detail} for b in dataset.bad],
        "notes": list(dataset.notes),
        "warnings": list(dataset.warnings),
        "parts": {
            name: [
                list(row) for row in zip(part.keys, part.labels.tolist(), part.digests, strict=True)
            ]
            for name, part in dataset.parts.items()
        },
    }


def relative_path(data: str, run: RunDirectory) -> str:
    """Where the pictures are as seen from the run; their name alone if that tells the user's."""
    reader, argument = split(data)
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
    place, pictures = (out or Path("runs")).resolve(), Path(split(data)[1]).expanduser().resolve()
    if data not in DATASETS and pictures.is_dir() and pictures in (place, *place.parents):
        raise ConfigError(
            f"the run would be written to {out or 'runs'}, inside the pictures of {data}, which "
            "stay as they are; name a folder elsewhere with --out"
        )


def locate(run: RunDirectory, stored: Mapping[str, Any]) -> str:
    """Find the pictures of a run again.

    Raises:
        RunError: if they are not where they were.
    """
    name = str(stored["path"])
    if name in DATASETS:
        return name
    reader, argument = split(name)
    for folder in (run.path.resolve() / argument, Path(argument)):
        if argument and folder.exists():
            return f"{reader}:{os.path.relpath(folder)}" if reader else os.path.relpath(folder)
    if reader:  # what it was given may be no path: it has to know
        return name
    raise RunError(
        f"the pictures of {run.path} ({shown(str(stored['name']))}) are not where they were; "
        "say where they are with --data DIR"
    )


def read_data(run: RunDirectory) -> dict[str, Any]:
    """Read ``data.json``, and check that its parts are those its fingerprint is of.

    Raises:
        RunError: if it is not what :func:`describe_data` made.
    """
    stored = run.read_json("data.json")
    where = run.path / "data.json"
    try:
        parts = parts_of(stored)
        names, counts = list(map(str, stored["class_names"])), stored["counts"]
        found = fingerprint(parts)
        counted = {name: part.counts(len(names)).tolist() for name, part in parts.items()}
        known = {"name", "path", "fingerprint"} <= stored.keys() and "train" in parts
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise RunError(
            f"{where} is not what a run writes ({type(error).__name__}: {error}); "
            "put back the file as it was"
        ) from None
    if not known or found != stored["fingerprint"] or counted != counts:
        raise RunError(
            f"{where} was changed by hand: its pictures have the fingerprint {found[:16]}, not "
            f"{str(stored.get('fingerprint'))[:16]}, or its counts are not theirs; put back the "
            "file as it was"
        )
    return stored


def parts_of(stored: Mapping[str, Any]) -> dict[str, Part]:
    """The parts that ``data.json`` lists."""
    return {str(name): _part(rows) for name, rows in stored["parts"].items()}


def _part(rows: Sequence[Sequence[Any]]) -> Part:
    """A part from its rows: file, label and digest."""
    if not all(isinstance(label, int) and label >= 0 for _, label, _ in rows):
        raise ValueError("a label is not a whole number from 0 on")
    return Part(
        keys=tuple(str(key) for key, _, _ in rows),
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        digests=tuple(str(digest) for _, _, digest in rows),
    )


def divided_as_before(dataset: Dataset, stored: Mapping[str, Any]) -> Dataset:
    """Keep every picture in the part it was in: none that was trained on may come to score.

    A picture more or less changes how all of them are divided; so only new ones are.
    """
    if dataset.fingerprint == stored["fingerprint"]:
        return dataset
    before = {row[0]: name for name, rows in stored["parts"].items() for row in rows}
    both = dataset.parts["val"] is dataset.parts.get("test")  # the test part validates, too
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


def data_change(
    run: RunDirectory, stored: Mapping[str, Any], dataset: Dataset
) -> DataChange | None:
    """Compare the pictures with those that the run began with; None if they are the same.

    Args:
        run: For messages.
        stored: ``data.json``.
        dataset: The pictures now, :func:`divided_as_before`.

    Raises:
        RunError: if the classes are others: the network has no output for a new one.
    """
    old_names, new_names = list(stored["class_names"]), list(dataset.class_names)
    if old_names != new_names:
        new = [shown(n) for n in new_names if n not in old_names]
        gone = [shown(n) for n in old_names if n not in new_names]
        raise RunError(
            f"the classes changed since {run.path} began: "
            f"new {', '.join(new) or 'none'}; gone {', '.join(gone) or 'none'}"
            + ("" if new or gone else "; their order is another")
            + "; put them back, or train anew"
        )
    if stored["fingerprint"] == dataset.fingerprint:
        return None
    old = {row[0]: tuple(row[1:]) for rows in stored["parts"].values() for row in rows}
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
    stored: Mapping[str, Any],
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
    earlier = list(stored.get("changes", []))
    described = describe_data(dataset, path=path)
    described["warnings"] = [
        *(text["warning"] for text in earlier),
        warning,
        *described["warnings"],
    ]
    described["changes"] = [
        *earlier,
        {
            "after_step": step,
            "from": stored["fingerprint"],
            "added": list(change.added),
            "gone": list(change.gone),
            "changed": list(change.changed),
            "warning": warning,
            "when": timestamp(),
        },
    ]
    run.write_json("data.json", described, indent=None)
    return warning


def check_unedited(
    run: RunDirectory, config: TrainConfig, stored: Mapping[str, Any], saved: Mapping[str, Any]
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
    known = [stored["fingerprint"], *(change["from"] for change in stored.get("changes", []))]
    if saved.get("data") not in known:
        raise RunError(
            f"{run.path / 'data.json'} is not that of the checkpoint: its pictures have the "
            f"fingerprint {str(stored['fingerprint'])[:16]}, those of the checkpoint "
            f"{str(saved.get('data'))[:16]}; put back the file as it was"
        )
