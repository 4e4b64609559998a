"""Counter-based randomness: fixed values, uniform, independent of everything around it."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fieldmark.seeding import generator, mix, permutation, seed_torch, stream, uniform

IDS = np.arange(1000, dtype=np.uint64) * np.uint64(7919)


def test_values_are_fixed_for_ever() -> None:
    assert stream("order") == 15958964071288741444
    assert mix(0).tolist() == [3220344897584144929]
    assert mix(1, 2, 3).tolist() == [14811618279488048801]
    assert uniform(2, 5, stream("flip_lr#1")).ravel().tolist() == [
        0.5556607540835092,
        0.16641922948742605,
    ]
    assert permutation(IDS[:6], 3, 4).tolist() == [2, 5, 3, 1, 0, 4]
    assert generator(1, 2).integers(10**9) == 908074324


def splitmix(x: int) -> int:
    """The finaliser, written again with Python's integers."""
    mask = 2**64 - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
    return x ^ (x >> 31)


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
def test_mix_is_the_published_function(keys: list[int]) -> None:
    state = 0x243F6A8885A308D3
    for key in keys:
        state = splitmix(((state ^ (key % 2**64)) + 0x9E3779B97F4A7C15) % 2**64)
    assert mix(*keys).tolist() == [state]
    words = [splitmix((state + i * 0x9E3779B97F4A7C15) % 2**64) >> 11 for i in (1, 2, 3)]
    assert uniform(3, *keys).tolist() == [[w / 2**53 for w in words]]


def test_keys_matter_in_their_place() -> None:
    assert len({int(mix(*k)[0]) for k in [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2)]}) == 5


def test_uniform_is_uniform() -> None:
    draws = uniform(20, 11, IDS)
    assert draws.shape == (1000, 20)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.01
    counts, _ = np.histogram(draws, bins=64, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 0.01
    for column in (0, 19):
        assert stats.kstest(draws[:, column], "uniform").pvalue > 0.01
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.1
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.1
    other = uniform(20, 12, IDS)
    assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.03


def test_every_bit_of_mix_is_fair() -> None:
    bits = (mix(1, np.arange(4096, dtype=np.uint64))[:, None] >> np.arange(64, dtype=np.uint64)) & 1
    share = bits.mean(axis=0)
    assert share.shape == (64,)
    assert np.abs(share - 0.5).max() < 0.04


def test_a_draw_does_not_depend_on_its_batch() -> None:
    whole = uniform(5, 3, 9, IDS)
    assert np.array_equal(uniform(5, 3, 9, IDS[[7, 500]]), whole[[7, 500]])
    assert np.array_equal(uniform(5, 3, 9, int(IDS[7])), whole[[7]])
    assert np.array_equal(uniform(2, 3, 9, IDS), whole[:, :2])


@given(st.permutations(range(30)), st.integers(0, 2**40))
def test_order_depends_on_the_pictures_not_on_how_they_came(order: list[int], seed: int) -> None:
    ids = IDS[:30]
    shuffled = ids[order]
    assert (
        ids[permutation(ids, seed, 1)].tolist() == shuffled[permutation(shuffled, seed, 1)].tolist()
    )


def test_a_picture_more_leaves_the_others_in_order() -> None:
    few = IDS[:50][permutation(IDS[:50], 0)].tolist()
    more = [i for i in IDS[:60][permutation(IDS[:60], 0)].tolist() if i in set(few)]
    assert more == few


def test_permutations_differ_and_are_fair() -> None:
    firsts = [int(permutation(IDS[:8], seed)[0]) for seed in range(2000)]
    assert stats.chisquare(np.bincount(firsts, minlength=8)).pvalue > 0.01
    assert sorted(permutation(IDS, 3).tolist()) == list(range(1000))
    assert not np.array_equal(permutation(IDS, 3, 0), permutation(IDS, 3, 1))


def test_no_global_generator_is_touched() -> None:
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    torch.manual_seed(5)

    def states() -> tuple[object, ...]:
        key = np.random.get_state()[1]  # noqa: NPY002
        return key.tobytes(), random.getstate(), torch.get_rng_state().numpy().tobytes()

    before = states()
    mix(1, IDS)
    uniform(4, 1, IDS)
    permutation(IDS, 1)
    generator(1).normal()
    stream("x")
    assert states() == before
    seed_torch(1, 2)
    assert states()[:2] == before[:2]


def test_seed_torch_decides_the_next_draws() -> None:
    seed_torch(3, stream("step"), 7)
    first = torch.rand(5)
    torch.rand(100)
    seed_torch(3, stream("step"), 7)
    assert torch.equal(torch.rand(5), first)
    seed_torch(3, stream("step"), 8)
    assert not torch.equal(torch.rand(5), first)


def test_generators_are_independent_of_each_other() -> None:
    assert generator(4, 5).normal() == generator(4, 5).normal()
    assert generator(4, 5).normal() != generator(4, 6).normal()


def test_overflow_warns_nobody() -> None:
    with np.errstate(all="raise"):
        uniform(3, 2**64 - 1, np.array([2**64 - 1], dtype=np.uint64))
