"""The check before an exported file is moved to its place: it must predict as the run does.

The run's own ``predict`` and the file classify the same pictures: those of the validation split, or
made-up ones where the run's pictures are gone, which a note then says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldmark.errors import RunError, WeightsError
from fieldmark.jobs import predict
from fieldmark.jobs.evaluate import own_data
from fieldmark.names import shown
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Model
from fieldmark.scoring.significance import difference
from fieldmark.seeding import F64, I64

Score = Callable[[Sequence[U8]], F64]
"""Function from decoded pictures, uint8 [H, W, 3] of any sizes, to probabilities [N, K]."""

PICTURES = 256
"""Most pictures that are compared for equality, evenly spaced over the split."""
MAX_LOSS = 0.01
"""Accuracy that a file with less precision may lose; a larger loss fails unless it may be chance.
"""
_BLOCK = 16
_LISTED = 10


@dataclass(frozen=True)
class Sample:
    """Pictures whose predictions are compared."""

    keys: tuple[str, ...]
    labels: I64 | None
    """Labels [N]; None where the pictures are made up."""
    read: Callable[[str], U8]

    def spaced(self, count: int) -> Sample:
        """Return ``count`` of them, evenly spaced, or all if there are fewer."""
        if len(self.keys) <= count:
            return self
        places = np.linspace(0, len(self.keys) - 1, count).round().astype(int)
        labels = None if self.labels is None else self.labels[places]
        return Sample(tuple(self.keys[i] for i in places), labels, self.read)

    def blocks(self) -> Iterator[list[U8]]:
        """Yield the pixels, a few pictures at a time."""
        for start in range(0, len(self.keys), _BLOCK):
            yield [self.read(key) for key in self.keys[start : start + _BLOCK]]


def part(run: RunDirectory, name: str) -> Sample:
    """Return the run's own pictures of ``train`` or ``val``.

    Raises:
        RunError: if they were moved or changed, or the run never had any.
    """
    if run.has("import.json"):
        raise RunError(f"{run.path} was imported and has no pictures of its own")
    dataset = own_data(run)
    found = dataset.parts[name]
    return Sample(found.keys, found.labels, dataset.read)


def made_up(side: int) -> Sample:
    """Make smooth and noisy pictures of many shapes, for runs without real ones."""
    shapes = [(side, side), (2 * side, 3 * side), (3 * side, side), (20, 20), (7, 90), (90, 7)]
    made: dict[str, U8] = {}
    for i, (height, width) in enumerate(shapes * 4):
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x * (0.02 + 0.03 * k) + y * 0.05 * i / (k + 1)) for k in range(3)]
        rough = ((x * 7919 + y * 104729) % 31 - 15) * (i % 4)
        values = 128 + 100 * np.stack(waves, axis=-1) + rough[..., None]
        made[f"made up {i + 1}"] = values.clip(0, 255).astype(np.uint8)
    return Sample(tuple(made), None, made.__getitem__)


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison that passed; one that fails raises."""

    pictures: int
    made_up: bool
    largest: float
    """Largest difference of a probability."""
    close: tuple[str, ...]
    """Keys of pictures whose two likeliest classes are nearer to each other than the tolerance."""
    tolerance: float | None
    """Largest difference allowed; None where accuracy was judged instead."""
    change: dict[str, float] | None = None
    """For less precision: the change of the accuracy with its interval, and both accuracies."""
    agreeing: int = 0
    """Number of pictures with the same label."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "pictures": self.pictures,
            "made_up": self.made_up,
            "largest_difference": self.largest,
            "close": list(self.close),
            "same_label": self.agreeing,
            "accuracy": self.change,
        }

    def lines(self) -> list[str]:
        """Describe the result for a reader."""
        what = "made-up pictures" if self.made_up else "validation pictures"
        checked = (
            f"checked on {self.pictures} {what}: {self.agreeing} with the label of the run, the "
            f"largest difference of a probability is {self.largest:.2g}"
        )
        found = [checked]
        if self.change is not None:
            found.append(
                "accuracy {before:.4f} as a run, {after:.4f} as a file: change {value:+.4f} "
                "(95 % interval {low:+.4f} to {high:+.4f})".format(**self.change)
            )
        if self.close:
            found.append(
                f"two likeliest classes within {self.tolerance:g} of each other: "
                + _some([shown(key) for key in self.close])
            )
        return found


def equal(model: Model, score: Score, pictures: Sample, *, what: str, tolerance: float) -> Verdict:
    """Check that a file predicts as the run does.

    Raises:
        WeightsError: naming the pictures with another label, or the largest difference.
    """
    ours, theirs = _both(model, score, pictures)
    largest = float(np.abs(ours - theirs).max())
    top = np.sort(ours, axis=1)[:, ::-1]
    close = top[:, 0] - top[:, 1] < tolerance if top.shape[1] > 1 else np.zeros(len(top), bool)
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    other = [pictures.keys[i] for i in np.flatnonzero(~same & ~close)]
    if other or not largest <= tolerance:  # NaN is no small difference
        raise WeightsError(
            f"{what} does not predict as the run does, and was not written: "
            f"{len(other)} of {len(ours)} pictures get another label"
            + (f" ({_some(list(map(shown, other)))})" if other else "")
            + f", the largest difference of a probability is {largest:.3g}; "
            f"{tolerance:g} is allowed"
        )
    near = tuple(pictures.keys[i] for i in np.flatnonzero(close))
    return Verdict(
        len(ours), pictures.labels is None, largest, near, tolerance, agreeing=int(same.sum())
    )


def as_good(model: Model, score: Score, pictures: Sample, *, what: str) -> Verdict:
    """Check that a file with less precision is as good as the run, if not equal.

    The check fails if the accuracy falls by more than :data:`MAX_LOSS` and chance does not explain
    the loss: the 95 % interval of the paired difference does not reach 0.

    Raises:
        WeightsError: with the loss.
        RunError: if the pictures have no labels.
    """
    if pictures.labels is None:
        raise RunError(f"{what} can only be judged on real pictures")
    ours, theirs = _both(model, score, pictures)
    before, after = (values.argmax(axis=1) == pictures.labels for values in (ours, theirs))
    found = difference(after[None], before[None])
    change = {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "value": found.value,
        "low": found.low,
        "high": found.high,
    }
    if not np.isfinite(theirs).all() or (found.value < -MAX_LOSS and found.high < 0):
        raise WeightsError(
            f"{what} is worse than the run, and was not written: accuracy {change['after']:.4f} "
            f"instead of {change['before']:.4f} on {len(ours)} validation pictures (95 % interval "
            f"of the change {found.low:+.4f} to {found.high:+.4f}); export without it"
        )
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    return Verdict(
        len(ours),
        made_up=False,
        largest=float(np.abs(ours - theirs).max()),
        close=(),
        tolerance=None,
        change=change,
        agreeing=int(same.sum()),
    )


def _both(model: Model, score: Score, pictures: Sample) -> tuple[F64, F64]:
    """Compute probabilities with ``predict`` and with the file.

    Shape:
        [N, K] twice.
    """
    names = model.info.class_names
    ours, theirs = [], []
    for block in pictures.blocks():
        for answer in predict.predict(model, block, top=len(names), limits=PictureLimits()):
            found = dict(answer.top)
            ours.append([found[name] for name in names])
        theirs.append(np.asarray(score(block), dtype=np.float64))
    return np.array(ours), np.concatenate(theirs)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
