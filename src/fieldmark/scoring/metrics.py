"""Scores with their uncertainty, from logits or predictions. Every picture counts.

The definitions are scikit-learn's where it has them (see ``tests/scoring/test_metrics.py``);
they are written here because importing scikit-learn costs more than a second and these are a few
lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

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


def log_softmax(logits: F64) -> F64:
    """Shape: [N, K] to [N, K]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def softmax(logits: F64, temperature: float = 1.0) -> F64:
    """Shape: [N, K] to [N, K]."""
    return np.exp(log_softmax(logits / temperature))


def cross_entropy(logits: F64, labels: I64, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the true class."""
    return float(-log_softmax(logits / temperature)[np.arange(len(labels)), labels].mean())


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
    def of(cls, matrix: I64) -> PerClass:
        """Compute them from a confusion matrix [true, predicted]."""
        hits = np.diag(matrix).astype(np.float64)
        n, guessed = matrix.sum(axis=1), matrix.sum(axis=0)
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


def calibration_bins(probs: F64, labels: I64) -> list[dict[str, float]]:
    """Sort into equal-width bins of confidence: mean confidence, accuracy and n; no empty bins."""
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    which = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        {
            "confidence": float(confidence[which == b].mean()),
            "accuracy": float(right[which == b].mean()),
            "n": int((which == b).sum()),
        }
        for b in range(NUM_BINS)
        if (which == b).any()
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Expected calibration error: mean gap of confidence and accuracy, weighted by n.

    Source: Guo et al., On calibration of modern neural networks, 2017; 15 equal-width bins.
    """
    n = sum(b["n"] for b in bins)
    return sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / n if n else math.nan


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
    targets = np.full((n, k), doubt / (k - 1))
    targets[np.arange(n), labels] = 1 - doubt

    def loss(log_t: float) -> float:
        return float(-(targets * log_softmax(logits / math.exp(log_t))).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(found.x))


def scores(
    logits: F64, labels: I64, *, class_names: tuple[str, ...], temperature: float = 1.0
) -> dict[str, Any]:
    """Compute all figures of one split, as plain values; undefined figures are None.

    Shape:
        logits [N, K], labels [N].
    """
    n, k = logits.shape
    probs = softmax(logits, temperature)
    predicted = logits.argmax(axis=1)
    matrix = confusion(labels, predicted, k)
    each = PerClass.of(matrix)
    correct = int((predicted == labels).sum())
    low, high = wilson(correct, n)
    own = logits[np.arange(n), labels][:, None]
    earlier = np.arange(k) < labels[:, None]  # equal logits rank by class, as argmax does
    rank = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    bins = calibration_bins(probs, labels)
    return {
        "n": n,
        "accuracy": correct / n,
        "low": low,
        "high": high,
        "top5": float((rank < 5).mean()) if k > 5 else None,
        "loss": cross_entropy(logits, labels),
        "macro_f1": each.macro_f1,
        "balanced_accuracy": each.balanced_accuracy,
        "temperature": temperature,
        "ece": calibration_error(bins),
        "ece_uncalibrated": calibration_error(calibration_bins(softmax(logits), labels)),
        "bins": bins,
        "per_class": [
            {
                "name": name,
                "n": int(each.n[i]),
                "precision": _plain(each.precision[i]),
                "recall": _plain(each.recall[i]),
                "f1": _plain(each.f1[i]),
            }
            for i, name in enumerate(class_names)
        ],
        "confusion": [[int(t), int(p), int(matrix[t, p])] for t, p in np.argwhere(matrix)],
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
