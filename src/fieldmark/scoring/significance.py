"""Whether one classifier is better than another, or the difference is chance.

A classifier is given by a table of right and wrong: one row for each seed it was trained with, one
column for each picture of the split it is judged on; two classifiers that are compared have the
same columns. Two things are chance: which pictures the split happens to hold, and which seed was
drawn.

With one seed only the first can be seen. The difference is tested by McNemar's exact test, and its
interval is that of Bonett and Price. Neither says anything about another training of the model.

With several seeds both are seen. The difference of the mean accuracies has a variance with three
parts, which are estimated one by one and added::

    pictures   how the difference, averaged over the seeds, changes from picture to picture
    seeds a    how a's accuracy changes from seed to seed
    seeds b    how b's accuracy changes from seed to seed

The interaction of seeds and pictures is in two of the parts, so the sum is rather too large than
too small. Pictures are paired, as the same ones are hard for both models. Seeds are not: the same
seed gives two models the same order of pictures, but an order that is lucky for one need not be for
the other, and with three seeds pairing would cost half of the few degrees of freedom. Degrees of
freedom are Satterthwaite's, so the interval is as wide as two or three seeds deserve.

Resampling seeds and pictures (the bootstrap) was tried and rejected: with so few seeds it sees too
little of their variance, and reports chance as a difference far more often than in 5 % of the
cases; docs/log.md has the measurement.

Source:
    McNemar, Note on the sampling error of the difference between correlated proportions,
    Psychometrika 12, 1947. Bonett and Price, Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data, J. Educ. Behav. Stat. 37, 2012. Agresti and Coull,
    Approximate is better than "exact", Am. Stat. 52, 1998. Satterthwaite, An approximate
    distribution of estimates of variance components, Biometrics Bulletin 2, 1946. Howe,
    Approximate confidence limits on the mean of X + Y, JASA 69, 1974. Readers and cases in place
    of seeds and pictures: Obuchowski and Rockette, Commun. Stat. Simul. 24, 1995.
    Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6, 1979.
    Mantel and Haenszel, Statistical aspects of the analysis of data from retrospective studies of
    disease, JNCI 22, 1959. Greenland and Robins, Estimation of a common effect parameter from
    sparse follow-up data, Biometrics 41, 1985. Hoeffding, A combinatorial central limit theorem,
    Ann. Math. Stat. 22, 1951. Mann, Nonparametric tests against trend, Econometrica 13, 1945.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fieldmark.scoring.metrics import wilson
from fieldmark.seeding import F64

Correct = npt.NDArray[np.bool_]
"""Truth values [K, N]: whether each seed's network was right about each picture."""

LEVEL = 0.05
"""Largest p that counts as a difference: chance makes one as large less often than this."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy of a model, with its spread over the seeds."""

    mean: float
    std: float | None
    """Standard deviation over the seeds (n - 1); None for one seed."""
    low: float
    """95 % interval: over seeds and pictures, or over pictures alone for one seed."""
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference between the accuracies of two models."""

    value: float
    """Mean accuracy of the first minus that of the second."""
    low: float
    """95 % interval of this pair by itself."""
    high: float
    p: float
    """Two-sided probability of a difference at least as large if the models were equally good."""
    method: str
    """``mcnemar`` for one seed (``grid and pictures`` for means over a grid), ``seeds and
    pictures`` for several."""


def accuracy(correct: Correct) -> Accuracy:
    """Compute the mean accuracy with a 95 % interval.

    For one seed the interval is Wilson's, for these weights and other pictures. For several it is
    for the mean over all seeds and all pictures, of which these are samples: two right and two
    wrong pictures are added (Agresti and Coull), so that it works near 0 and 1, and the squares of
    the half-widths from pictures and from seeds are added (Howe). With two seeds it is wide.

    Shape:
        correct [K, N], both at least 1.
    """
    seeds, n = _checked(correct)
    if seeds == 1:
        low, high = wilson(int(correct.sum()), n)
        return Accuracy(mean=float(correct.mean()), std=None, low=low, high=high)
    return mean_accuracy([correct])


def difference(first: Correct, second: Correct) -> Difference:
    """Compute the difference of two models' accuracies on the same pictures, with interval and p.

    For several seeds, one picture that only the first model gets right and one that only the second
    gets right are added first (Bonett and Price), so that a few pictures, or two models that never
    differ, do not look like certainty.

    Shape:
        first and second [K, N] with the same pictures in the same order; K may differ above 1.
    """
    seeds = {_checked(first)[0], _checked(second)[0]}
    if first.shape[1] != second.shape[1] or (1 in seeds and len(seeds) > 1):
        raise ValueError(f"shapes {first.shape} and {second.shape} cannot be compared")
    found = _difference(first, second, None)
    if seeds != {1}:
        return found
    p = mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
    return dataclasses.replace(found, p=p, method="mcnemar")


def mean_accuracy(tables: Sequence[Correct]) -> Accuracy:
    """Compute the mean accuracy of several networks, as :func:`accuracy` does for one.

    Seeds stay what they are: the spread is that of each seed's mean over the networks. Which
    networks there are is no chance. For one seed the interval is for other pictures alone.

    Shape:
        every table [K, N].
    """
    values = _mean(tables)
    added = _with(values, 1, 1, 0, 0)
    half = math.hypot(
        *(
            _quantile(freedom) * math.sqrt(variance)
            for variance, freedom in (
                _mean_variance(added.mean(axis=axis))
                for axis in ((0,) if len(values) == 1 else (0, 1))
            )
        )
    )
    centre = float(added.mean())
    return Accuracy(
        mean=float(values.mean()),
        std=None if len(values) == 1 else float(values.mean(axis=1).std(ddof=1)),
        low=max(0.0, centre - half),
        high=min(1.0, centre + half),
    )


def mean_difference(first: Sequence[Correct], second: Sequence[Correct]) -> Difference:
    """Compute the difference of two means over a grid, as :func:`difference` does for two models.

    One value of a setting is in all networks of ``first``, another one in those of ``second``, and
    the rest is alike, network by network. With one seed how the difference changes over the rest
    stands in for how it would change with the seed, and the test is Student's.

    Shape:
        as many tables on both sides, every one [K, N] with the same seeds and pictures.
    """
    a, b = _mean(first), _mean(second)
    if a.shape != b.shape or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} tables cannot be compared")
    gaps = [float(x.mean() - y.mean()) for x, y in zip(first, second, strict=True)]
    alone = len(a) == 1 and len(gaps) > 1
    return _difference(a, b, np.array(gaps) if alone else None)


def _mean(tables: Sequence[Correct]) -> F64:
    """How often each picture was right: [K, N] for each seed."""
    for correct in tables:
        _checked(correct)
    mean: F64 = np.mean(np.stack(list(tables)), axis=0, dtype=np.float64)
    return mean


def _difference(first: Correct | F64, second: Correct | F64, gaps: F64 | None) -> Difference:
    """Compute difference and interval, and p by Student's test.

    Args:
        first: Shares [K, N].
        second: Shares [K, N].
        gaps: The difference in each of several trainings, for one seed.
    """
    a, b = _with(first, 1, 0), _with(second, 0, 1)
    pictures = a.mean(axis=0) - b.mean(axis=0)
    by_seed = [] if len(first) == 1 else [a.mean(axis=1), b.mean(axis=1)]
    further = by_seed if gaps is None else [gaps]
    parts = [_mean_variance(values) for values in (pictures, *further)]
    centre, variance = float(pictures.mean()), sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / n for part, n in parts)
    half = _quantile(freedom) * math.sqrt(variance)
    return Difference(
        value=float(first.mean() - second.mean()),
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p=_two_sided(centre / math.sqrt(variance), freedom),
        method="seeds and pictures" if by_seed else "grid and pictures" if further else "pictures",
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute McNemar's exact two-sided p from the pictures that only one of two models gets right.

    If both are equally good, each such picture is the toss of a coin; without any, p is 1.
    """
    from scipy.special import bdtr

    tosses = only_first + only_second
    return min(1.0, 2.0 * float(bdtr(min(only_first, only_second), tosses, 0.5)))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values for being many, in the given order.

    All that stay below 5 % hold together: the chance that any of them is wrong is at most 5 %.
    """
    corrected = [1.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def higher(first: Sequence[Counted], second: Sequence[Counted]) -> Higher:
    """Test whether the first share is above the second, class by class and over all classes.

    Two splits seldom hold the classes in the same proportions. So like is compared with like: the
    excess of right answers is summed over the classes (Mantel and Haenszel, with correction for
    continuity), and so is the difference (Greenland and Robins). With one class it is the test of
    two proportions.

    Args:
        first: Right answers and pictures of each class.
        second: The same of other pictures, in the same order.
    """
    excess = variance = weight = value = 0.0
    for (a, n1), (b, n2) in zip(first, second, strict=True):
        n = n1 + n2
        if not n1 or not n2:
            continue
        right = a + b
        excess += a - right * n1 / n
        if n > 1:
            variance += right * (n - right) * n1 * n2 / (n * n * (n - 1))
        value += (a / n1 - b / n2) * n1 * n2 / n
        weight += n1 * n2 / n
    if not variance:
        return Higher(value / weight if weight else 0.0, 1.0)
    return Higher(value / weight, _upper((excess - 0.5) / math.sqrt(variance)))


@dataclass(frozen=True)
class Higher:
    """How far one share is above another."""

    value: float
    """The difference, over classes in common proportions."""
    p: float
    """One-sided probability of as much if they were equal."""


Counted = tuple[int, int]
"""Right answers, and pictures."""


def agreement(counts: Counts) -> Agreement:
    """Test whether answers have anything to do with the classes, whatever the classes' shares.

    The number of right answers is compared with that of the same answers dealt out to the same
    pictures at random; its variance is exact (Hoeffding). Answers that are all the same agree as
    well as chance does.

    Shape:
        counts [K, K]: pictures by true and answered class.
    """
    table = np.asarray(counts, dtype=np.float64)
    n = float(table.sum())
    of, said = table.sum(axis=1), table.sum(axis=0)
    if n < 2:
        return Agreement(0.0, 1.0, 1.0)
    expected = float(of @ said) / n
    deviation = np.eye(len(of)) - said[:, None] / n - of[None, :] / n + expected / n
    variance = float((of[:, None] * said[None, :] * deviation**2).sum()) / (n - 1)
    excess, room = float(np.trace(table)) - expected, n - expected
    if room <= 0 or variance <= 1e-12:
        return Agreement(0.0, 1.0, 0.0)
    spread = math.sqrt(variance)
    return Agreement(excess / room, _upper((excess - 0.5) / spread), 2.58 * spread / room)


@dataclass(frozen=True)
class Agreement:
    """How far answers agree with the classes beyond chance."""

    kappa: float
    """Cohen's kappa: 0 is chance, 1 is all right."""
    p: float
    """One-sided probability of as much by chance."""
    half: float
    """Half the width of chance's own 99 % interval of kappa: how little can be told."""


Counts = npt.NDArray[np.int64]


def above(right: int, n: int, share: float) -> float:
    """One-sided probability of at least so many right answers of ``n``, each with this chance."""
    from scipy.special import bdtrc

    if right <= 0 or share >= 1:
        return 1.0
    return float(bdtrc(right - 1, n, share))


def rising(values: Sequence[float]) -> float:
    """One-sided probability that values in random order rise as steadily as these (Mann)."""
    n = len(values)
    pairs = sum(
        (later > earlier) - (later < earlier)
        for i, earlier in enumerate(values)
        for later in values[i + 1 :]
    )
    variance = n * (n - 1) * (2 * n + 5) / 18
    return _upper((pairs - 1) / math.sqrt(variance)) if variance else 1.0


def _upper(z: float) -> float:
    """Probability that a normal deviate is above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def _checked(correct: Correct) -> tuple[int, int]:
    if correct.ndim != 2 or 0 in correct.shape or correct.dtype != np.bool_:
        raise ValueError(
            f"right and wrong of shape {correct.shape} and type {correct.dtype}; "
            "truth values [seeds, pictures] are accepted, at least one of each"
        )
    return correct.shape[0], correct.shape[1]


def _with(correct: Correct | F64, *added: int) -> F64:
    """Turn truth values into numbers, and add these pictures for every seed."""
    columns = np.tile(np.array(added, dtype=np.float64), (len(correct), 1))
    return np.concatenate([correct.astype(np.float64), columns], axis=1)


def _mean_variance(values: F64) -> tuple[float, int]:
    """Compute the variance of the mean of values [n], and its degrees of freedom."""
    return float(values.var(ddof=1)) / len(values), len(values) - 1


def _quantile(freedom: float) -> float:
    """Return the number of standard errors to each side of a 95 % interval (Student's t)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - LEVEL / 2))


def _two_sided(t: float, freedom: float) -> float:
    from scipy.special import stdtr

    return min(1.0, 2.0 * float(stdtr(freedom, -abs(t))))
