"""Scores with their uncertainty, from logits or predictions. Every picture counts.

The definitions are scikit-learn's where it has them (see ``tests/scoring/test_metrics.py``);
they are written here because importing scikit-learn costs more than a second and these are a few
lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fieldmark.files.typed import (
    STRICT,
    Amount,
    Count,
    Figure,
    Number,
    Positive,
    Share,
    Split,
    Text,
)
from fieldmark.seeding import F64, I64

_Z95 = 1.959963984540054
NUM_BINS = 15


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Compute the 95 % interval of a share (Wilson 1927); it stays in [0, 1], also for 0 and n.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22.
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    return low, 1.0 if correct == n else min(1.0, centre + half)


BLOCK_BYTES = 2**25
"""Bytes of logits that are looked at together, so that thousands of classes need no copy of all."""


def blocks(logits: F64) -> Iterator[slice]:
    """Rows that are looked at together.

    Shape:
        logits [N, K].
    """
    rows = max(1, BLOCK_BYTES // max(1, 8 * logits.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def log_softmax(logits: F64) -> F64:
    """Shape: [N, K] to [N, K]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def softmax(logits: F64, temperature: float = 1.0) -> F64:
    """Shape: [N, K] to [N, K]."""
    return np.exp(log_softmax(logits / temperature))


def cross_entropy(logits: F64, labels: I64, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the true class."""
    losses = np.empty(len(labels))
    for rows in blocks(logits):
        here = labels[rows]
        losses[rows] = -log_softmax(logits[rows] / temperature)[np.arange(len(here)), here]
    return float(losses.mean())


def sureness(logits: F64, labels: I64, temperature: float = 1.0) -> tuple[I64, F64, F64]:
    """The likeliest class of each picture, its probability, and that of the true class.

    Shape:
        logits [N, K] and labels [N] to three of [N].
    """
    likeliest = np.empty(len(labels), dtype=np.int64)
    top, true = np.empty(len(labels)), np.empty(len(labels))
    for rows in blocks(logits):
        probs, here = softmax(logits[rows], temperature), labels[rows]
        likeliest[rows], top[rows] = probs.argmax(axis=1), probs.max(axis=1)
        true[rows] = probs[np.arange(len(here)), here]
    return likeliest, top, true


def confusion(labels: I64, predicted: I64, num_classes: int) -> I64:
    """Count pictures by [true, predicted] class.

    Shape:
        [N] and [N] to [K, K].
    """
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


@dataclass(frozen=True)
class PerClass:
    """Precision, recall and F1 of each class; NaN where there is nothing to divide by."""

    n: I64
    precision: F64
    recall: F64
    f1: F64

    @classmethod
    def of(cls, labels: I64, predicted: I64, num_classes: int) -> PerClass:
        """Compute them from true and predicted classes, [N] each."""
        right = labels[labels == predicted]
        hits = np.bincount(right, minlength=num_classes).astype(np.float64)
        n, guessed = (np.bincount(each, minlength=num_classes) for each in (labels, predicted))
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(n, hits / guessed, hits / n, 2 * hits / (n + guessed))

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur."""
        present = self.n > 0
        return float(np.nan_to_num(self.f1[present]).mean()) if present.any() else math.nan

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that occur."""
        present = self.n > 0
        return float(self.recall[present].mean()) if present.any() else math.nan


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Pictures whose predictions have about the same confidence."""

    __pydantic_config__ = STRICT

    confidence: Share
    """Mean probability of the predicted class."""
    accuracy: Share
    n: Positive


def calibration_bins(logits: F64, labels: I64, temperature: float = 1.0) -> tuple[Bin, ...]:
    """Sort pictures into equal-width bins of confidence; empty bins are left out."""
    likeliest, confidence, _ = sureness(logits, labels, temperature)
    right = likeliest == labels
    which = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return tuple(
        Bin(
            confidence=float(confidence[which == b].mean()),
            accuracy=float(right[which == b].mean()),
            n=int((which == b).sum()),
        )
        for b in range(NUM_BINS)
        if (which == b).any()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean gap of confidence and accuracy, weighted by n.

    Source: Guo et al., On calibration of modern neural networks, 2017; 15 equal-width bins.
    """
    n = sum(b.n for b in bins)
    return sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / n if n else math.nan


def estimate_temperature(logits: F64, labels: I64) -> float:
    """Estimate the temperature whose probabilities have the least cross entropy.

    The true class counts as (n + 1) / (n + 2) certain (Platt 1999), so that a split without a
    single mistake does not make the network infinitely sure. Fewer than 20 pictures are too few to
    estimate from; the result is then 1.0.

    Source: Guo et al., On calibration of modern neural networks, 2017; searched over 0.05 to 20.
    """
    n, k = logits.shape
    if n < 20:
        return 1.0
    from scipy.optimize import minimize_scalar

    doubt = 1 / (n + 2)

    def loss(log_t: float) -> float:
        losses = np.empty(n)
        for rows in blocks(logits):
            here = labels[rows]
            targets = np.full((len(here), k), doubt / (k - 1))
            targets[np.arange(len(here)), here] = 1 - doubt
            losses[rows] = -(targets * log_softmax(logits[rows] / math.exp(log_t))).sum(axis=1)
        return float(losses.mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(found.x))


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """What is said about one class; None where there is nothing to divide by."""

    __pydantic_config__ = STRICT

    name: Text
    n: Count
    """Number of its pictures."""
    precision: Share | None
    """Share right among the pictures that were said to be it."""
    recall: Share | None
    """Share of its pictures that were found."""
    f1: Share | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All figures of one split; shares are in [0, 1].

    Raises:
        ValueError: if figures do not agree with one another.
    """

    __pydantic_config__ = STRICT

    part: Split
    """The split: train, val or test."""
    n: Positive
    """Number of its pictures."""
    accuracy: Share
    low: Share
    """Lower end of accuracy's 95 % interval (Wilson)."""
    high: Share
    """Upper end of that interval."""
    top5: Share | None
    """Share of pictures whose class is among the five likeliest; None up to five classes."""
    loss: Number
    """Cross entropy before calibration."""
    macro_f1: Share
    balanced_accuracy: Share
    temperature: Number
    """Number that the logits were divided by, for the figures below."""
    ece: Share
    """Expected calibration error, 15 bins."""
    ece_uncalibrated: Share
    """Expected calibration error with a temperature of 1."""
    bins: tuple[Bin, ...]
    per_class: tuple[ClassScores, ...]
    """Figures of each class, in the order of the network's outputs."""
    confusion: tuple[tuple[Count, Count, Positive], ...]
    """True class, predicted class, number of pictures; empty cells are left out."""
    metrics: Mapping[Text, Figure] | None = None
    """Figures that the setting ``metrics`` asked for, by name."""
    trained_on: Positive | None = None
    """How many of the pictures are among those that the run was trained on; None is none."""
    l2_penalty: Amount | None = None
    """What ``l2`` adds to the loss in training, in ``val_loss`` and in Keras's ``evaluate``."""

    def __post_init__(self) -> None:
        k = len(self.per_class)
        rows, hits = [0] * k, 0
        for i, (true, predicted, count) in enumerate(self.confusion):
            if max(true, predicted) >= k:
                raise ValueError(f"confusion.{i} is of class {max(true, predicted)}, but of {k}")
            rows[true] += count
            hits += count * (true == predicted)
        if len({cell[:2] for cell in self.confusion}) < len(self.confusion):
            raise ValueError("confusion has a cell twice")
        if len({each.name for each in self.per_class}) < k:
            raise ValueError("per_class has a name twice")
        for i, (each, n) in enumerate(zip(self.per_class, rows, strict=True)):
            if each.n != n:
                raise ValueError(f"per_class.{i}.n is {each.n}, but confusion has {n} pictures")
            if each.recall is None if n else each.recall is not None:
                raise ValueError(f"per_class.{i}.recall is {each.recall} with {n} pictures")
        if sum(rows) != self.n:
            raise ValueError(f"n is {self.n}, but confusion has {sum(rows)} pictures")
        if not math.isclose(self.accuracy, hits / self.n, abs_tol=1e-9):
            raise ValueError(f"accuracy is {self.accuracy}, but {hits} of {self.n} are right")
        if not self.low <= self.accuracy <= self.high:
            raise ValueError(f"low and high are {self.low} and {self.high}, not around accuracy")


def scores(
    logits: F64,
    labels: I64,
    *,
    part: str,
    class_names: tuple[str, ...],
    temperature: float = 1.0,
    metrics: Mapping[str, float] | None = None,
    l2_penalty: float | None = None,
) -> Scores:
    """Compute all figures of one split; undefined figures are None.

    ``metrics`` (figures that were asked for by name) and ``l2_penalty`` are taken as they are.

    Shape:
        logits [N, K], labels [N].
    """
    n, k = logits.shape
    predicted = logits.argmax(axis=1)
    each = PerClass.of(labels, predicted, k)
    cells, counts = np.unique(labels * k + predicted, return_counts=True)
    correct = int((predicted == labels).sum())
    low, high = wilson(correct, n)
    rank = np.empty(n, dtype=np.int64)
    for rows in blocks(logits):
        some, here = logits[rows], labels[rows]
        own = some[np.arange(len(here)), here][:, None]
        earlier = np.arange(k) < here[:, None]  # equal logits rank by class, as argmax does
        rank[rows] = ((some > own) | ((some == own) & earlier)).sum(axis=1)
    bins = calibration_bins(logits, labels, temperature)
    return Scores(
        part=part,
        n=n,
        accuracy=correct / n,
        low=low,
        high=high,
        top5=float((rank < 5).mean()) if k > 5 else None,
        loss=cross_entropy(logits, labels),
        macro_f1=each.macro_f1,
        balanced_accuracy=each.balanced_accuracy,
        temperature=temperature,
        ece=calibration_error(bins),
        ece_uncalibrated=calibration_error(calibration_bins(logits, labels)),
        bins=bins,
        per_class=tuple(
            ClassScores(
                name=name,
                n=int(each.n[i]),
                precision=_plain(each.precision[i]),
                recall=_plain(each.recall[i]),
                f1=_plain(each.f1[i]),
            )
            for i, name in enumerate(class_names)
        ),
        confusion=tuple(
            (int(cell) // k, int(cell) % k, int(count))
            for cell, count in zip(cells, counts, strict=True)
        ),
        metrics=metrics,
        l2_penalty=l2_penalty,
    )


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
