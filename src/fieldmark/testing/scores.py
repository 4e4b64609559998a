"""The contract of a metric."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fieldmark.testing.promises import check_described, require, untouched


def check_metric(function: Callable[..., float]) -> None:
    """Check a metric: one number, of which pictures there are and not of their order.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(function, given=2)
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), 60)
    labels = rng.integers(0, 4, 60)
    kept = probs.copy(), labels.copy()
    with untouched("it"):
        value = function(probs, labels)
    number = isinstance(value, int | float | np.integer | np.floating)
    require(number and np.isfinite(value), f"it gives {value!r}; a finite number is needed")
    require(
        np.array_equal(probs, kept[0]) and np.array_equal(labels, kept[1]),
        "it changes the probabilities or labels that it is given",
    )
    require(function(probs, labels) == value, "equal answers give another number each time")
    order = rng.permutation(60)
    other = function(probs[order], labels[order])
    require(np.isclose(other, value, rtol=1e-9), "its number depends on the order of pictures")
    right = function(np.eye(4)[labels], labels)
    require(right == right, "it gives NaN where all answers are right")
