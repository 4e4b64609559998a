"""The split: stratified, by content, the same however the pictures come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.data.split import stratified
from fieldmark.seeding import mix

SHARES = st.sampled_from(
    [(0.75, 0.1, 0.15), (0.8, 0.2, 0.0), (0.9, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.05, 0.05, 0.9)]
)
CLASSES = st.lists(st.integers(1, 80), min_size=1, max_size=5)


def pictures(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return labels, mix(77, np.arange(len(labels), dtype=np.uint64))


@given(CLASSES, SHARES, st.integers(0, 2**63 - 1))
def test_properties(sizes: list[int], shares: tuple[float, ...], seed: int) -> None:
    labels, ids = pictures(sizes)
    parts = stratified(labels, ids, shares=shares, seed=seed)
    assert parts.shape == labels.shape
    assert set(parts.tolist()) <= set(range(len(shares)))
    for label, n in enumerate(sizes):
        counts = np.bincount(parts[labels == label], minlength=len(shares))
        assert counts[0] >= 1
        wanting = [p for p in range(1, len(shares)) if shares[p] > 0]
        assert all(counts[p] == 0 for p in range(1, len(shares)) if shares[p] == 0)
        if n > len(wanting):
            assert all(counts[p] >= 1 for p in wanting)
        if n >= 40:
            for part, share in enumerate(shares):
                assert abs(counts[part] - n * share) <= len(shares) / 2


@given(CLASSES, SHARES, st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_order_does_not_matter(
    sizes: list[int], shares: tuple[float, ...], seed: int, random: object
) -> None:
    labels, ids = pictures(sizes)
    order = np.arange(len(labels))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = stratified(labels, ids, shares=shares, seed=seed)
    shuffled = stratified(labels[order], ids[order], shares=shares, seed=seed)
    assert np.array_equal(shuffled, straight[order])
    assert np.array_equal(stratified(labels, ids, shares=shares, seed=seed), straight)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=120),
    SHARES,
    st.integers(0, 99),
)
def test_equal_pixels_stay_together(
    rows: list[tuple[int, int]], shares: tuple[float, ...], seed: int
) -> None:
    labels = np.array([label for label, _ in rows])
    ids = mix(1, np.array([picture for _, picture in rows], dtype=np.uint64))
    parts = stratified(labels, ids, shares=shares, seed=seed)
    homes: dict[tuple[int, int], set[int]] = {}
    for row, part in zip(rows, parts.tolist(), strict=True):
        homes.setdefault(row, set()).add(part)
    assert all(len(places) == 1 for places in homes.values())
    assert all((parts[labels == label] == 0).any() for label in np.unique(labels))


@pytest.mark.parametrize(
    ("n", "counts"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (4, [2, 1, 1])]
)
def test_tiny_classes(n: int, counts: list[int]) -> None:
    labels, ids = pictures([n, 50])
    for seed in range(20):
        parts = stratified(labels, ids, shares=(0.75, 0.1, 0.15), seed=seed)
        assert np.bincount(parts[labels == 0], minlength=3).tolist() == counts


def test_a_class_of_copies_trains() -> None:
    labels, ids = np.zeros(9, dtype=np.int64), np.full(9, 5, dtype=np.uint64)
    assert stratified(labels, ids, shares=(0.5, 0.5), seed=0).tolist() == [0] * 9


def test_classes_are_divided_by_themselves() -> None:
    labels, ids = pictures([30, 40])
    both = stratified(labels, ids, shares=(0.7, 0.3), seed=3)
    alone = stratified(labels[:30], ids[:30], shares=(0.7, 0.3), seed=3)
    assert np.array_equal(both[:30], alone)


def test_the_seed_decides() -> None:
    labels, ids = pictures([200])
    draws = [stratified(labels, ids, shares=(0.5, 0.5), seed=s) for s in range(40)]
    assert all(100 - d.sum() == 0 for d in draws)
    share = np.stack(draws).mean(axis=0)
    assert share.min() > 0.15
    assert share.max() < 0.85


def test_a_picture_more_moves_few() -> None:
    labels, ids = pictures([301])
    before = stratified(labels[:300], ids[:300], shares=(0.8, 0.1, 0.1), seed=0)
    after = stratified(labels, ids, shares=(0.8, 0.1, 0.1), seed=0)[:300]
    assert (before != after).sum() <= 3
