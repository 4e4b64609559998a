"""Batches: every picture once, in an order that threads and resuming do not change."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark import augment
from fieldmark.data.batches import Batch, Batches
from fieldmark.data.dataset import Part
from fieldmark.data.store import Memory, Pictures
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, InMemory, digest

SPEC = InputSpec(size=8, interpolation="bilinear")


def picture(key: str) -> U8:
    rng = np.random.default_rng(int(key))
    return rng.integers(0, 256, (int(rng.integers(6, 14)), 9, 3), dtype=np.uint8)


def part(labels: Iterable[int]) -> Part:
    labels = np.array(list(labels), dtype=np.int64)
    keys = tuple(str(i) for i in range(len(labels)))
    return Part(keys=keys, labels=labels, digests=tuple(digest(picture(k)) for k in keys))


PART = part(i % 3 for i in range(50))


def make(
    given_part: Part = PART,
    *,
    text: str = "none",
    batch_size: int = 8,
    seed: int = 4,
    balance: bool = False,
    last: str = "even",
    threads: int = 1,
    read: Callable[[str], U8] = picture,
    fast: bool = False,
) -> Batches:
    return Batches(
        given_part,
        read,
        spec=SPEC,
        augment=augment.build(text),
        batch_size=batch_size,
        seed=seed,
        balance=balance,
        last=last,
        threads=threads,
        fast=fast,
    )


def pictures(budget: int, read: Callable[[str], U8] = picture) -> Pictures:
    """What holds so many bytes of decoded and fitted pictures together."""
    return Pictures(
        lambda key: InMemory(read(key)), limits=PictureLimits(decode_side=1), memory=Memory(budget)
    )


@pytest.mark.parametrize(
    ("last", "n", "sizes"),
    [
        ("even", 50, [13, 13, 12, 12]),
        ("keep", 50, [16, 16, 16, 2]),
        ("drop", 50, [16, 16, 16]),
        ("even", 48, [16, 16, 16]),
        ("keep", 48, [16, 16, 16]),
        ("drop", 48, [16, 16, 16]),
        ("drop", 7, [7]),
        ("keep", 7, [7]),
    ],
)
@pytest.mark.parametrize("balance", [False, True])
def test_what_batches_do_not_divide(last: str, n: int, sizes: list[int], balance: bool) -> None:
    made = make(part(i % 3 for i in range(n)), batch_size=16, last=last, balance=balance)
    got = list(made.epoch(0))
    assert [len(b.labels) for b in got] == sizes
    assert len(made) == len(sizes)
    # The order is the same; only where it is cut differs.
    whole = np.concatenate([b.indices for b in make(made.part, balance=balance).epoch(0)])
    assert np.concatenate([b.indices for b in got]).tolist() == whole[: sum(sizes)].tolist()
    assert equal(got[1:], made.epoch(0, start=1))


def equal(one: Iterable[Batch], other: Iterable[Batch]) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        np.array_equal(a.indices, b.indices)
        and a.images.dtype == b.images.dtype
        and torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        for a, b in zip(one, other, strict=True)
    )


PIPES = ["none", "pad_crop(2)|flip_lr", "random_resized_crop(0.35)|flip_lr", "rotate(20)|erase"]


def test_every_picture_exactly_once_an_epoch() -> None:
    source = make()
    for epoch in range(3):
        seen = list(source.epoch(epoch))
        assert len(seen) == len(source) == 7
        indices = np.concatenate([b.indices for b in seen])
        assert sorted(indices.tolist()) == list(range(50))
        for batch in seen:
            assert batch.labels.dtype == torch.int64
            assert batch.labels.tolist() == PART.labels[batch.indices].tolist()
            assert batch.images.dtype == torch.uint8
            for image, index in zip(batch.images, batch.indices, strict=True):
                assert np.array_equal(image.numpy(), SPEC.pixels(picture(str(index))))


@pytest.mark.parametrize(("n", "size"), [(50, 8), (65, 64), (64, 64), (3, 64), (1, 1), (10, 3)])
def test_batches_divide_the_epoch_evenly(n: int, size: int) -> None:
    source = make(part([i % 2 for i in range(n)]), batch_size=size)
    sizes = [len(b.labels) for b in source.epoch(0)]
    assert len(sizes) == len(source) == -(-n // size)
    assert sum(sizes) == n
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_order_follows_the_epoch_and_the_seed() -> None:
    orders = [
        tuple(np.concatenate([b.indices for b in make(seed=seed).epoch(epoch)]).tolist())
        for seed, epoch in ((4, 0), (4, 1), (5, 0), (4, 0))
    ]
    assert orders[0] == orders[3]
    assert len(set(orders)) == 3


def test_order_follows_the_pictures_not_their_places() -> None:
    turned = Part(keys=PART.keys[::-1], labels=PART.labels[::-1].copy(), digests=PART.digests[::-1])
    for text in PIPES:
        one, other = make(text=text), make(turned, text=text)
        for a, b in zip(one.epoch(2), other.epoch(2), strict=True):
            assert [PART.keys[i] for i in a.indices] == [turned.keys[i] for i in b.indices]
            assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("text", PIPES)
def test_starting_inside_an_epoch_gives_its_tail(text: str, balance: bool) -> None:
    source = make(text=text, balance=balance)
    whole = list(source.epoch(1))
    for start in (0, 1, 6, 7):
        assert equal(make(text=text, balance=balance).epoch(1, start=start), whole[start:])


@pytest.mark.parametrize("text", PIPES)
def test_threads_change_nothing(text: str) -> None:
    one, three = make(text=text, threads=1), make(text=text, threads=3)
    for epoch in range(2):
        assert equal(one.epoch(epoch), three.epoch(epoch))
    assert equal(one.in_order(), three.in_order())


ROW = 3 * 8 * 8
BUDGETS = [0, 1, ROW, 20 * ROW, 20 * ROW + 1000, 50 * ROW, 1_000_000]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("text", PIPES)
def test_keeping_pixels_changes_nothing(text: str, threads: int, fast: bool) -> None:
    loose = make(text=text, fast=fast, read=pictures(0))
    epochs = [list(loose.epoch(epoch)) for epoch in range(3)]
    plain = list(loose.in_order())
    for budget in BUDGETS if threads == 3 else BUDGETS[2:5]:
        kept = make(text=text, threads=threads, fast=fast, read=pictures(budget))
        for epoch in range(3):
            assert equal(kept.epoch(epoch), epochs[epoch])
        assert equal(kept.in_order(), plain)


@pytest.mark.parametrize("budget", BUDGETS)
def test_decoded_and_fitted_pictures_share_one_budget(budget: int) -> None:
    decoded = sum(picture(key).nbytes for key in PART.keys)
    read = pictures(budget)
    for key in PART.keys:
        read(key)
    source = make(read=read)
    for epoch in range(2):
        for _ in source.epoch(epoch):
            pass
    held = sum(p.pixels.nbytes for p in read._held.values())
    assert source._held is not None
    fitted = int((source._held.find(np.arange(50)) >= 0).sum()) * ROW
    assert held + fitted <= budget
    if budget >= decoded:  # each picture is there in one form or the other
        assert held + fitted >= 50 * ROW
    del source
    assert read.memory.take(budget - held), "what was fitted is given back"
    assert not read.memory.take(1)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_each_picture_is_held_in_one_row(threads: int, balance: bool) -> None:
    source = make(part(int(i > 40) for i in range(50)), threads=threads, balance=balance)
    for epoch in range(20):  # the rare class comes several times in a batch, the other not always
        for _ in source.epoch(epoch):
            pass
    assert source._held is not None
    assert sorted(source._held.find(np.arange(50))) == list(range(50))


def test_with_memory_for_either_form_no_picture_is_read_again() -> None:
    opened: list[str] = []

    def counting(key: str) -> U8:
        opened.append(key)
        return picture(key)

    read = pictures(sum(picture(key).nbytes for key in PART.keys), counting)
    for key in PART.keys:
        read(key)
    for text in ("none", "random_resized_crop(0.35)"):
        source = make(text=text, read=read)
        for epoch in range(3):
            for _ in source.epoch(epoch):
                pass
        assert sorted(opened) == sorted(PART.keys)
        if text == "none":
            read = pictures(sum(picture(key).nbytes for key in PART.keys), picture)


def test_fast_pixels_come_near_the_exact_ones() -> None:
    for text in ("none", "flip_lr"):
        for a, b in zip(make(text=text).epoch(0), make(text=text, fast=True).epoch(0), strict=True):
            assert np.array_equal(a.indices, b.indices)
            gap = (a.images.int() - b.images.int()).abs()
            assert 0 < gap.max() <= 2


def test_kept_pixels_are_read_once_and_not_changed_by_augmentation() -> None:
    opened: list[str] = []

    def counting(key: str) -> U8:
        opened.append(key)
        return picture(key)

    source = make(text="pad_crop(2)|flip_lr|erase", read=counting)
    for epoch in range(3):
        for batch in source.epoch(epoch):
            batch.images.fill_(0)
    assert sorted(opened) == sorted(PART.keys)
    plain = torch.cat([b.images for b in source.in_order()])
    assert equal(source.in_order(), make().in_order())
    assert plain.any()


@pytest.mark.parametrize("text", PIPES)
def test_in_order_is_the_parts_order_without_augmentation(text: str) -> None:
    seen = list(make(text=text, balance=True).in_order())
    assert np.concatenate([b.indices for b in seen]).tolist() == list(range(50))
    assert [len(b.labels) for b in seen] == [8] * 6 + [2]
    for batch in seen:
        for image, index in zip(batch.images, batch.indices, strict=True):
            assert np.array_equal(image.numpy(), SPEC.pixels(picture(str(index))))


def test_augmentation_differs_by_epoch_but_not_by_batch_size() -> None:
    def images(size: int, epoch: int) -> dict[int, torch.Tensor]:
        return {
            int(i): image
            for b in make(text="pad_crop(2)|flip_lr", batch_size=size).epoch(epoch)
            for i, image in zip(b.indices, b.images, strict=True)
        }

    small, large, later = images(3, 0), images(50, 0), images(3, 1)
    assert all(torch.equal(small[i], large[i]) for i in range(50))
    assert sum(torch.equal(small[i], later[i]) for i in range(50)) < 10


# --- balanced -----------------------------------------------------------------------------------


def picks(source: Batches, epochs: int) -> list[np.ndarray]:
    return [np.concatenate([b.indices for b in source.epoch(e)]) for e in range(epochs)]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(0, 1000))
def test_balanced_epochs(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    source = make(part(labels), balance=True, seed=seed, batch_size=7)
    epochs = picks(source, 5)
    times: Counter[int] = Counter()
    for number, indices in enumerate(epochs, 1):
        assert len(indices) == len(labels)
        counts = np.bincount(labels[indices], minlength=len(sizes))
        assert counts.max() - counts.min() <= 1
        times.update(indices.tolist())
        total = np.bincount(labels[np.concatenate(epochs[:number])], minlength=len(sizes))
        assert total.max() - total.min() <= 1
        for label in range(len(sizes)):
            members = [times[int(i)] for i in np.flatnonzero(labels == label)]
            assert max(members) - min(members) <= 1


def test_a_picture_drawn_again_is_augmented_anew() -> None:
    labels = [0] * 30 + [1]
    source = make(part(labels), balance=True, text="pad_crop(4)|flip_lr", batch_size=31)
    (batch,) = source.epoch(0)
    again = batch.images[torch.from_numpy(batch.indices == 30)]
    assert len(again) in (15, 16)
    assert len({image.numpy().tobytes() for image in again}) > 5


def test_balanced_order_mixes_the_classes() -> None:
    labels = [0] * 300 + [1] * 30
    (indices, other) = picks(make(part(labels), balance=True, batch_size=64), 2)
    drawn = (indices >= 300).astype(int)
    assert 10 < drawn[:50].sum() < 40
    assert not np.array_equal(indices, other)


def test_balanced_needs_no_class_that_is_absent() -> None:
    (indices,) = picks(make(part([0, 5, 5, 5]), balance=True), 1)
    assert np.bincount(np.array([0, 5, 5, 5])[indices])[[0, 5]].tolist() == [2, 2]


# --- failures -----------------------------------------------------------------------------------


def loading_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("batches")]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_reading_error_surfaces(threads: int) -> None:
    def broken(key: str) -> U8:
        if key == "17":
            raise OSError("disk gone")
        return picture(key)

    source = make(read=broken, threads=threads)
    with pytest.raises(OSError, match="disk gone"):
        list(source.epoch(0))
    with pytest.raises(OSError, match="disk gone"):
        list(source.in_order())
    assert not loading_threads()


@pytest.mark.parametrize("threads", [1, 3])
def test_leaving_early_leaves_no_thread_and_reads_little(threads: int) -> None:
    opened: list[str] = []

    def counting(key: str) -> U8:
        opened.append(key)
        return picture(key)

    source = make(read=counting, threads=threads, batch_size=2)
    iterator = source.epoch(0)
    list(islice(iterator, 2))
    assert loading_threads()
    iterator.close()
    assert not loading_threads()
    assert len(opened) <= 2 * (4 + 2 * threads)
    source.epoch(0).close()
    assert not loading_threads()


def test_waiting_is_measured() -> None:
    import time

    def slow(key: str) -> U8:
        time.sleep(0.01)
        return picture(key)

    waits = [b.waited for b in make(read=slow, batch_size=10).epoch(0)]
    assert all(w >= 0 for w in waits)
    assert sum(waits) > 0.2


def test_no_global_generator_is_touched() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for text in PIPES:
        list(make(text=text, balance=True).epoch(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
