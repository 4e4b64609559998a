"""The tests of differences: closed forms, scipy, and how often chance is taken for a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fieldmark.scoring import significance
from fieldmark.scoring.metrics import wilson
from fieldmark.scoring.significance import (
    above,
    accuracy,
    agreement,
    difference,
    higher,
    holm,
    mcnemar,
    mean_accuracy,
    mean_difference,
    rising,
)


def table(*rows: str) -> np.ndarray:
    """Right and wrong from rows of 1 and 0."""
    return np.array([[char == "1" for char in row] for row in rows])


def discordant(n: int, only_first: int, only_second: int) -> tuple[np.ndarray, np.ndarray]:
    """Two tables of one seed in which so many pictures are known to one model alone."""
    first, second = np.ones((1, n), dtype=bool), np.ones((1, n), dtype=bool)
    second[0, :only_first] = False
    first[0, only_first : only_first + only_second] = False
    return first, second


# --- McNemar and Holm ----------------------------------------------------------------------------


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pictures(b: int, c: int) -> None:
    wanted = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(wanted, abs=1e-12)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7]) == [0.7]
    assert holm([]) == []
    assert holm([0.6, 0.9, 1.0]) == [1.0, 1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_step_down_procedure(ps: list[float]) -> None:
    shown = set()
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[index] * (len(ps) - rank) >= 0.05:
            break
        shown.add(index)
    assert {i for i, p in enumerate(holm(ps)) if p < 0.05} == shown


# --- one seed ------------------------------------------------------------------------------------


def test_the_interval_of_one_seed_is_bonett_and_prices() -> None:
    n, b, c = 100, 12, 5
    got = difference(*discordant(n, b, c))
    p12, p21 = (b + 1) / (n + 2), (c + 1) / (n + 2)
    error = math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 1))  # of the sample variance: n + 2 - 1
    half = stats.t.ppf(0.975, n + 1) * error
    assert got.value == pytest.approx((b - c) / n)
    assert (got.low, got.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half))
    assert got.p == mcnemar(b, c)
    assert got.method == "mcnemar"


@pytest.mark.parametrize("n", [10, 30, 300, 10_000])
def test_what_mcnemar_calls_a_difference_has_an_interval_without_zero(n: int) -> None:
    found = 0
    for b in range(min(n + 1, 40)):
        for c in range(min(n - b + 1, 40)):
            got = difference(*discordant(n, b, c))
            if got.p < significance.LEVEL:
                found += 1
                assert got.low > 0 or got.high < 0, (b, c)
    assert found >= 8


def test_one_seeds_accuracy_is_wilsons() -> None:
    got = accuracy(table("1101011110"))
    assert (got.low, got.high) == wilson(7, 10)
    assert got.mean == 0.7
    assert got.std is None


# --- several seeds -------------------------------------------------------------------------------


def test_seeds_that_never_differ_add_nothing() -> None:
    """The pictures' part alone: the same interval as that of one seed."""
    one = discordant(200, 25, 9)
    several = difference(np.repeat(one[0], 3, axis=0), np.repeat(one[1], 3, axis=0))
    assert (several.low, several.high) == pytest.approx(
        (difference(*one).low, difference(*one).high)
    )


def test_with_many_pictures_it_is_welchs_test_of_the_seeds() -> None:
    rng = np.random.default_rng(3)
    rates = np.array([[0.70, 0.74, 0.73], [0.80, 0.78, 0.83]])
    tables = [rng.random((3, 400_000)) < rate[:, None] for rate in rates]
    got = difference(tables[0], tables[1])
    welch = stats.ttest_ind(tables[0].mean(axis=1), tables[1].mean(axis=1), equal_var=False)
    assert got.p == pytest.approx(welch.pvalue, rel=0.02)
    interval = welch.confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high), rel=0.02)
    one = accuracy(tables[0])
    half = stats.t.ppf(0.975, 2) * tables[0].mean(axis=1).std(ddof=1) / math.sqrt(3)
    assert (one.high - one.low) / 2 == pytest.approx(half, rel=0.01)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_model_against_itself_is_no_difference(seeds: int) -> None:
    for correct in (
        np.random.default_rng(0).random((seeds, 50)) < 0.8,
        np.ones((seeds, 50), dtype=bool),
        np.zeros((seeds, 1), dtype=bool),
    ):
        got = difference(correct, correct.copy())
        assert got.value == 0.0
        assert got.p == 1.0
        assert -1 <= got.low < 0 < got.high <= 1


def test_extremes_stay_finite() -> None:
    right, wrong = np.ones((3, 20), dtype=bool), np.zeros((3, 20), dtype=bool)
    got = difference(right, wrong)
    assert got.value == 1.0
    assert 0.5 < got.low < got.high == 1.0
    assert 0 < got.p < 0.001
    assert difference(right[:, :3], wrong[:, :3]).p > 0.05  # three pictures show nothing
    assert accuracy(right).high == 1.0
    assert 0.7 < accuracy(right).low < 0.95
    assert accuracy(wrong).low == 0.0


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 30))
def test_the_order_of_two_models_only_turns_the_sign(seed: int, seeds: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((seeds, n)) < rate for rate in rng.random(2))
    one, other = difference(a, b), difference(b, a)
    assert one.p == pytest.approx(other.p)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert 0 <= one.p <= 1
    assert -1 <= one.low <= one.high <= 1


def test_tables_that_do_not_fit_are_refused() -> None:
    one, three = np.ones((1, 5), dtype=bool), np.ones((3, 5), dtype=bool)
    with pytest.raises(ValueError, match="cannot be compared"):
        difference(one, three)
    with pytest.raises(ValueError, match="cannot be compared"):
        difference(three, three[:, :4])
    for wrong in (np.ones((3, 0), dtype=bool), np.ones(5, dtype=bool), np.ones((2, 2))):
        with pytest.raises(ValueError, match="at least one of each"):
            accuracy(wrong)


# --- how often it is wrong -----------------------------------------------------------------------


def models(
    rng: np.random.Generator, *, seeds: int, n: int, seed_noise: float, gap: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Two models that agree on which pictures are hard, and differ by luck, and by a gap if any."""
    hard = rng.normal(1.5, 1.5, n)
    first, second = (
        hard
        + rng.normal(0, 0.5, n)  # what this model finds harder than that one
        + rng.normal(0, seed_noise, (seeds, 1))
        + rng.logistic(0, 1, (seeds, n))
        + shift
        > 0
        for shift in (0.0, gap)
    )
    return first, second


def rate(trials: int, **kind: float) -> float:
    """How often a difference is shown."""
    rng = np.random.default_rng(1)
    found = [difference(*models(rng, **kind)).p < significance.LEVEL for _ in range(trials)]
    return sum(found) / trials


@pytest.mark.parametrize(
    ("seeds", "seed_noise"),
    [(1, 0.0), *((k, noise) for k in (2, 3, 5) for noise in (0.0, 0.1, 0.4))],
)
def test_equal_models_are_rarely_called_different(seeds: int, seed_noise: float) -> None:
    trials = 500
    limit = 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / trials)  # 99 % of draws at exactly 5 %
    assert rate(trials, seeds=seeds, n=400, seed_noise=seed_noise) <= limit


def test_leaving_the_seeds_out_would_be_noticed() -> None:
    """The simulation can fail: pictures alone call equal models different in a third of cases."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        a, b = models(rng, seeds=3, n=400, seed_noise=0.4)
        found += stats.ttest_1samp(a.mean(axis=0) - b.mean(axis=0), 0).pvalue < 0.05
    assert found / 200 > 0.25


@pytest.mark.parametrize(
    ("seeds", "n", "noise", "gap"), [(1, 1000, 0.0, 0.6), (2, 1000, 0.1, 1.2), (3, 1000, 0.1, 0.7)]
)
def test_a_gap_is_found(seeds: int, n: int, noise: float, gap: float) -> None:
    assert rate(100, seeds=seeds, n=n, seed_noise=noise, gap=gap) > 0.8


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_intervals_cover_what_they_say(seeds: int) -> None:
    """Of the difference, and of the accuracy over other seeds and other pictures."""
    noise = 0.0 if seeds == 1 else 0.3
    rng = np.random.default_rng(2)
    drawn = [models(rng, seeds=1, n=300, seed_noise=noise, gap=0.3) for _ in range(3000)]
    first, second = (float(np.mean([pair[i].mean() for pair in drawn])) for i in (0, 1))
    trials, covered, apart = 300, 0, 0
    for _ in range(trials):
        a, b = models(rng, seeds=seeds, n=300, seed_noise=noise, gap=0.3)
        one, both = accuracy(a), difference(a, b)
        covered += one.low <= first <= one.high
        apart += both.low <= first - second <= both.high
    assert covered / trials > 0.92
    assert apart / trials > 0.92


# --- what the doctor of the training asks ----------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_two_shares_are_nearly_fishers_exact_test(n1: int, n2: int, data: st.DataObject) -> None:
    """The correction for continuity makes it careful where pictures are few."""
    a, b = data.draw(st.integers(0, n1)), data.draw(st.integers(0, n2))
    found = higher([(a, n1)], [(b, n2)])
    exact = stats.fisher_exact([[a, n1 - a], [b, n2 - b]], alternative="greater").pvalue
    assert found.value == pytest.approx(a / n1 - b / n2)
    if found.p < 0.001 and min(n1, n2) >= 20:
        assert exact < 0.005


def test_classes_in_other_proportions_are_no_difference() -> None:
    """Both splits know one class and not the other; one split has more of what is known."""
    first, second = [(90, 100), (2, 10)], [(9, 10), (20, 100)]
    assert higher([(92, 110)], [(29, 110)]).p < 1e-9
    found = higher(first, second)
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert found.p > 0.3
    assert higher([(0, 0)], [(3, 4)]).p == 1.0
    assert higher([(4, 4)], [(4, 4)]).p == 1.0


def test_agreement_is_cohens_kappa_and_its_permutation_test() -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    true = rng.choice(3, 90, p=[0.7, 0.2, 0.1])
    said = np.where(rng.random(90) < 0.25, true, rng.choice(3, 90, p=[0.5, 0.3, 0.2]))
    counts = np.zeros((3, 3), dtype=np.int64)
    np.add.at(counts, (true, said), 1)
    found = agreement(counts)
    assert found.kappa == pytest.approx(cohen_kappa_score(true, said))
    hits = [(rng.permutation(true) == said).sum() for _ in range(20_000)]
    assert found.p == pytest.approx(np.mean(np.array(hits) >= (true == said).sum()), abs=0.006)
    kappas = (np.array(hits) - np.mean(hits)) / (90 - np.mean(hits))
    assert found.half == pytest.approx(2.58 * np.std(kappas), rel=0.05)


@pytest.mark.parametrize("counts", [[[9, 0], [4, 0]], [[9, 3], [0, 0]], [[0, 0], [0, 1]]])
def test_constant_answers_agree_by_chance(counts: list[list[int]]) -> None:
    found = agreement(np.array(counts))
    assert (found.kappa, found.p) == (0.0, 1.0)


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0.01, 0.99))
def test_above_is_the_binomial_test(right: int, n: int, share: float) -> None:
    right = min(right, n)
    wanted = stats.binomtest(right, n, share, alternative="greater").pvalue
    assert above(right, n, share) == pytest.approx(wanted, abs=1e-9)


def test_rising_is_kendalls_test() -> None:
    rng = np.random.default_rng(1)
    for n in (8, 15, 30):
        values = rng.normal(size=n) + 0.1 * np.arange(n)
        wanted = stats.kendalltau(range(n), values, alternative="greater").pvalue
        assert rising(values.tolist()) == pytest.approx(wanted, abs=0.03)
    assert rising([1.0]) == 1.0
    assert rising([1.0] * 9) > 0.5


# --- means over a grid ---------------------------------------------------------------------------


def test_a_mean_over_one_network_is_that_network() -> None:
    first, second = models(np.random.default_rng(4), seeds=3, n=80, seed_noise=0.3)
    assert mean_difference([first], [second]) == difference(first, second)
    assert mean_accuracy([first]) == accuracy(first)


def test_a_mean_over_a_grid_by_hand() -> None:
    """One seed: the test is that of the pictures' and the trainings' mean gaps."""
    one, two = [table("1110"), table("0110")], [table("0110"), table("0010")]
    got = mean_difference(one, two)
    assert got.value == pytest.approx(5 / 8 - 3 / 8)
    assert got.method == "grid and pictures"
    gaps = np.array([0.5, 0.5, 0.0, 0.0, 1.0, -1.0])
    error = math.sqrt(gaps.var(ddof=1) / 6)
    assert got.p == pytest.approx(2 * stats.t.sf(gaps.mean() / error, 5))
    with pytest.raises(ValueError, match="cannot be compared"):
        mean_difference(one, two[:1])


@pytest.mark.parametrize(("seeds", "rest", "noise"), [(1, 4, 0.2), (2, 2, 0.3), (3, 4, 0.3)])
def test_values_that_do_not_matter_are_rarely_called_different(
    seeds: int, rest: int, noise: float
) -> None:
    rng, trials, found = np.random.default_rng(5), 200, 0
    for _ in range(trials):
        hard = rng.normal(1.5, 1.5, 200)
        sides = [
            [
                hard + 0.3 * k + rng.normal(0, noise, (seeds, 1)) + rng.logistic(0, 1, (seeds, 200))
                > 0
                for k in range(rest)
            ]
            for _ in range(2)
        ]
        found += mean_difference(*sides).p < significance.LEVEL
    assert found / trials <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / trials)
