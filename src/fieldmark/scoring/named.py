"""Figures asked for by name: ``--metrics 'balanced_accuracy|top_k(3)'``.

A metric is a function of calibrated probabilities [N, K] and labels [N], then the spec's arguments.
More is better, unless its name ends in ``loss``. Validation, which chooses the epoch, has no
temperature yet: there the probabilities are the plain softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldmark.errors import ConfigError
from fieldmark.scoring.metrics import PerClass, softmax
from fieldmark.seeding import F64, I64
from fieldmark.settings.spec import Spec, bind, call, lookup

Metric = Callable[..., float]


def balanced_accuracy(probs: F64, labels: I64) -> float:
    """Mean recall over the classes that occur."""
    return PerClass.of(labels, probs.argmax(axis=1), probs.shape[1]).balanced_accuracy


def top_k(probs: F64, labels: I64, k: int = 3) -> float:
    """Share of pictures whose class is among the ``k`` likeliest."""
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is accepted")
    ranked = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    return float((ranked == labels[:, None]).any(axis=1).mean())


def brier_loss(probs: F64, labels: I64) -> float:
    """Mean squared distance of the probabilities from 1 for the true class and 0 for the others.

    Source: Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    return float(((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(axis=1).mean())


METRICS: dict[str, Metric] = {
    "balanced_accuracy": balanced_accuracy,
    "top_k": top_k,
    "brier_loss": brier_loss,
}
"""The words of ``--metrics``."""


@dataclass(frozen=True)
class Named:
    """A metric with its arguments."""

    name: str
    """The spec as it is written in figures: ``top_k(5)``."""
    spec: Spec
    function: Metric

    def __call__(self, logits: F64, labels: I64, *, temperature: float = 1.0) -> float:
        """The figure of some pictures.

        Shape:
            [N, K] and [N].

        Raises:
            ConfigError: if it refuses its arguments, or gives something that is no number.
        """
        probs = softmax(logits, temperature)
        value: Any = call(self.spec, self.function, probs, labels, what="metric")
        if not isinstance(value, int | float | np.integer | np.floating):
            kind = type(value).__name__
            raise ConfigError(f"metric {self.name!r} gives a {kind}; a number is needed")
        return float(value)


def build(specs: Sequence[Spec]) -> tuple[Named, ...]:
    """The metrics of a pipe of specs.

    Raises:
        ConfigError: if there is no such metric, or its arguments do not fit.
    """
    found: dict[str, Named] = {}
    for spec in specs:
        function = lookup(spec, METRICS, what="metric")
        bind(spec, function, what="metric", given=2)
        name = str(spec).removeprefix("python:")
        found[name] = Named(name, spec, function)
    return tuple(found.values())


def figures(
    metrics: Sequence[Named], logits: F64, labels: I64, *, temperature: float = 1.0
) -> Mapping[str, float]:
    """Each metric's figure, by its name."""
    return {each.name: each(logits, labels, temperature=temperature) for each in metrics}
