"""Scores against scikit-learn, scipy and hand computation."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fieldmark.files.typed import plain
from fieldmark.scoring import metrics
from fieldmark.scoring.metrics import PerClass, estimate_temperature, scores, wilson

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def sample(n: int, k: int, seed: int, sharp: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(0, 1, (n, k))
    logits[np.arange(n), labels] += sharp
    return logits, labels


def names(k: int) -> tuple[str, ...]:
    return tuple(f"c{i}" for i in range(k))


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    correct, n = counts
    theirs = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    low, high = wilson(correct, n)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= correct / n <= high <= 1


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(0, 5)[1] > 0.4
    assert wilson(5, 5)[1] == 1.0
    assert wilson(5, 5)[0] < 0.6


@pytest.mark.reference
@pytest.mark.parametrize(("n", "k", "seed"), [(500, 7, 0), (40, 12, 1), (9, 2, 2), (200, 2, 3)])
def test_figures_are_scikit_learns(n: int, k: int, seed: int) -> None:
    logits, labels = sample(n, k, seed)
    got = scores(logits, labels, part="val", class_names=names(k), temperature=1.7)
    predicted = logits.argmax(1)
    every = list(range(k))
    assert got.n == n
    assert got.accuracy == sklearn_metrics.accuracy_score(labels, predicted)
    assert (got.low, got.high) == wilson(int((predicted == labels).sum()), n)
    assert got.loss == pytest.approx(
        sklearn_metrics.log_loss(labels, metrics.softmax(logits), labels=every)
    )
    present = np.unique(labels)
    assert got.balanced_accuracy == pytest.approx(
        np.mean([(predicted[labels == c] == c).mean() for c in present])
    )
    if set(predicted) <= set(present):
        assert got.balanced_accuracy == pytest.approx(
            sklearn_metrics.balanced_accuracy_score(labels, predicted)
        )
    assert got.macro_f1 == pytest.approx(
        sklearn_metrics.f1_score(
            labels, predicted, labels=present, average="macro", zero_division=0
        )
    )
    if k > 5:
        assert got.top5 == pytest.approx(
            sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=every)
        )
    else:
        assert got.top5 is None
    dense = np.zeros((k, k), dtype=int)
    for true, guess, count in got.confusion:
        dense[true, guess] = count
    assert (dense == sklearn_metrics.confusion_matrix(labels, predicted, labels=every)).all()
    p, r, f, s = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    for i, row in enumerate(got.per_class):
        assert row.name == f"c{i}"
        assert row.n == s[i]
        for mine, theirs in ((row.precision, p[i]), (row.recall, r[i]), (row.f1, f[i])):
            assert (mine is None and math.isnan(theirs)) or mine == pytest.approx(theirs)


def test_classes_without_pictures_have_no_figures() -> None:
    logits = np.eye(4)[[0, 0, 1, 3]] * 5.0
    got = scores(logits, np.array([0, 0, 1, 1]), part="val", class_names=names(4))
    absent, guessed = got.per_class[2], got.per_class[3]
    assert absent == metrics.ClassScores(name="c2", n=0, precision=None, recall=None, f1=None)
    assert guessed.n == 0
    assert guessed.recall is None
    assert guessed.precision == 0.0
    assert got.balanced_accuracy == pytest.approx(0.75)
    json.dumps(plain(got), allow_nan=False)


def test_a_class_never_guessed_has_no_precision_but_counts() -> None:
    got = PerClass.of(np.array([0, 0, 0, 1, 1]), np.zeros(5, dtype=np.int64), 2)
    assert math.isnan(got.precision[1])
    assert got.recall[1] == 0
    assert got.f1[1] == 0
    assert got.macro_f1 == pytest.approx(0.375)


def test_nothing_is_not_zero_percent() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    empty = PerClass.of(nothing, nothing, 3)
    assert math.isnan(empty.macro_f1)
    assert math.isnan(empty.balanced_accuracy)
    assert math.isnan(metrics.calibration_error([]))
    with pytest.raises(ZeroDivisionError), np.errstate(all="ignore"):
        scores(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), part="val", class_names=names(3))


def test_softmax_is_stable_and_cooled() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0]])
    probs = metrics.softmax(logits)
    assert np.allclose(probs, [[1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0]])
    assert np.allclose(metrics.softmax(logits, 1e9), 1 / 3)
    assert metrics.cross_entropy(logits, np.array([2])) == pytest.approx(2000.313, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 7.0])
def test_temperature_is_recovered(temperature: float) -> None:
    rng = np.random.default_rng(1)
    clean = rng.normal(0, 2, (20_000, 6))
    probs = metrics.softmax(clean)
    labels = (probs.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    found = estimate_temperature(clean * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    before = metrics.cross_entropy(clean * temperature, labels)
    assert metrics.cross_entropy(clean * temperature, labels, found) <= before + 1e-6


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("right", [True, False])
def test_temperature_stays_in_bounds(scale: float, right: bool) -> None:
    labels = np.arange(40) % 3
    logits = np.eye(3)[labels if right else (labels + 1) % 3] * scale
    found = estimate_temperature(logits, labels)
    assert 0.05 <= found <= 20
    assert isinstance(found, float)


def test_a_part_without_mistakes_does_not_make_certain() -> None:
    labels = np.arange(50) % 2
    logits = np.eye(2)[labels] * 8.0
    sure = metrics.softmax(logits, estimate_temperature(logits, labels)).max(1)
    assert sure == pytest.approx(51 / 52, abs=1e-3)


def test_few_pictures_leave_the_temperature() -> None:
    logits, labels = sample(19, 3, 0)
    assert estimate_temperature(logits * 9, labels) == 1.0
    logits, labels = sample(20, 3, 0)
    assert estimate_temperature(logits * 9, labels) != 1.0


def test_scores_do_not_depend_on_how_many_rows_are_looked_at_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, labels = sample(103, 7, 3)
    found = []
    for size in (8 * 7, 8 * 7 * 10, 2**25):
        monkeypatch.setattr(metrics, "BLOCK_BYTES", size)
        whole = scores(logits, labels, part="val", class_names=names(7), temperature=1.3)
        found.append((whole, estimate_temperature(logits, labels)))
    assert found[0] == found[1] == found[2]


def test_thousands_of_classes_need_little_memory_beside_the_logits() -> None:
    """No copy of all of them, and no matrix of all pairs of classes."""
    n, k = 1500, 6000
    logits = np.random.default_rng(0).normal(size=(n, k))
    labels = np.arange(n) % k
    tracemalloc.start()
    try:
        scores(logits, labels, part="val", class_names=names(k), temperature=1.3)
        estimate_temperature(logits[:30], labels[:30])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * metrics.BLOCK_BYTES + 40e6, (
        f"{peak / 1e6:.0f} MB beside {logits.nbytes / 1e6}"
    )
    assert logits.nbytes < k * k * 8


def test_calibration_error_by_hand() -> None:
    confident = np.array([0.95, 0.95, 0.95, 0.95, 0.6, 0.6, 1.0])
    right = np.array([1, 1, 1, 0, 1, 0, 1])
    probs = np.stack([confident, 1 - confident], axis=1)
    with np.errstate(divide="ignore"):
        bins = metrics.calibration_bins(np.log(probs), 1 - right)
    assert [b.n for b in bins] == [2, 5]
    assert bins[0].confidence == pytest.approx(0.6)
    assert bins[0].accuracy == 0.5
    assert bins[1].confidence == pytest.approx(0.96)
    assert bins[1].accuracy == pytest.approx(0.8)
    assert metrics.calibration_error(bins) == pytest.approx((2 * 0.1 + 5 * 0.16) / 7)


def test_calibration_uses_the_temperature_and_accuracy_does_not() -> None:
    logits, labels = sample(400, 4, 5, sharp=1.0)
    hot = scores(logits * 6, labels, part="val", class_names=names(4))
    fitted = estimate_temperature(logits * 6, labels)
    cool = scores(logits * 6, labels, part="val", class_names=names(4), temperature=fitted)
    assert fitted > 2
    assert cool.ece < hot.ece / 2
    assert cool.ece_uncalibrated == pytest.approx(hot.ece)
    assert cool.accuracy == hot.accuracy
    assert cool.loss == hot.loss
    assert cool.temperature == fitted
    assert sum(b.n for b in cool.bins) == 400


def test_a_network_that_knows_nothing_is_not_always_in_its_top5() -> None:
    got = scores(np.zeros((4, 7)), np.array([0, 0, 3, 6]), part="val", class_names=names(7))
    assert got.accuracy == 0.5
    assert got.top5 == 0.75
