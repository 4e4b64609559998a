"""Opening every picture once: bad ones, copies, thin classes, memory, interrupts."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fieldmark.data.dataset import Dataset, Entry, Found
from fieldmark.data.scan import TINY, check_only, decoded_for, open_pictures
from fieldmark.errors import DataError
from fieldmark.machine.cores import threads_for
from fieldmark.pictures.decode import Encoded
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture, InMemory, digest
from fieldmark.settings.config import TrainConfig
from tests.making import encode


def picture(number: int, side: int = 4) -> U8:
    return np.random.default_rng(number).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)


def number_of(key: str) -> int:
    return int(key.rsplit("_", 1)[1])


def load(key: str) -> U8:
    return picture(number_of(key))


def found(
    sizes: tuple[int, ...] = (30, 30),
    *,
    bad: int = 0,
    loader: Callable[[str], U8] = load,
    part: str | None = None,
) -> Found:
    entries = [
        Entry(f"c{label}/p_{label * 1000 + i}", label, part)
        for label, n in enumerate(sizes)
        for i in range(n)
    ]
    broken = {e.key for e in entries[:bad]}

    def guarded(key: str) -> InMemory:
        if key in broken:
            raise BadPicture("truncated", "at byte 3")
        return InMemory(loader(key))

    return Found(
        name="set",
        class_names=tuple(f"class {i}" for i in range(len(sizes))),
        entries=tuple(sorted(entries, key=lambda e: e.key)),
        load=guarded,
    )


def run(given: Found, threads: int = 2, **changes: object) -> Dataset:
    config = TrainConfig(**changes)
    return open_pictures(given, config, threads=threads).divide(config)


def test_a_good_set() -> None:
    data = run(found((30, 40)))
    assert {k: len(p) for k, p in data.parts.items()} == {"train": 53, "val": 7, "test": 10}
    keys = [k for p in data.parts.values() for k in p.keys]
    assert len(keys) == len(set(keys)) == 70
    assert data.facts.num_classes == 2
    assert data.facts.num_train == 53
    assert (data.facts.smallest_class, data.facts.largest_class) == (23, 30)
    assert data.facts.median_side == 4
    assert data.warnings == ()
    assert "divided by class" in data.notes[-1]
    for part in data.parts.values():
        for key, d, label in zip(part.keys, part.digests, part.labels, strict=True):
            assert d == digest(load(key))
            assert np.array_equal(data.read(key), load(key))
            assert key.startswith(f"c{label}/")
        assert [f"{i:016x}" for i in part.ids.tolist()] == [d[:16] for d in part.digests]


def test_digest_tells_sizes_and_layouts_apart() -> None:
    image = picture(1)
    assert digest(image) == digest(np.asfortranarray(image))
    assert digest(image) != digest(image.reshape(6, 4, 3))
    other = image.copy()
    other[0, 0, 0] ^= 1
    assert digest(other) != digest(image)
    assert re.fullmatch("[0-9a-f]{32}", digest(image))


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_nothing(threads: int) -> None:
    def slow(key: str) -> U8:
        time.sleep((number_of(key) * 7919 % 5) / 2000)
        return load(key)

    one, many = run(found(bad=3), threads=1), run(found(bad=3, loader=slow), threads=threads)
    for name in one.parts:
        assert one.parts[name].keys == many.parts[name].keys
        assert one.parts[name].digests == many.parts[name].digests
    assert (one.bad, one.facts, one.fingerprint) == (many.bad, many.facts, many.fingerprint)
    assert (one.notes, one.warnings) == (many.notes, many.warnings)


def test_each_picture_is_opened_once() -> None:
    opened: list[str] = []

    def counting(key: str) -> U8:
        opened.append(key)
        return load(key)

    given = found((200, 100), loader=counting)
    data = run(given)
    assert sorted(opened) == [e.key for e in given.entries]
    for part in data.parts.values():
        for key in part.keys:
            data.read(key)
    assert len(opened) == 300


@pytest.mark.parametrize(
    ("bad", "on_bad", "passes"),
    [
        (0, "stop", True),
        (1, "stop", False),
        (10, "limit", True),
        (11, "limit", False),
        (20, "exclude", True),
        (60, "exclude", False),
        (60, "limit", False),
    ],
)
def test_bad_pictures(bad: int, on_bad: str, passes: bool) -> None:
    given = found((30, 30), bad=bad)
    if not passes:
        with pytest.raises(DataError, match=f"{bad} of 60 pictures in set.*truncated {bad}"):
            run(given, on_bad=on_bad)
        return
    data = run(given, on_bad=on_bad)
    assert len(data.bad) == bad
    assert sum(map(len, data.parts.values())) == 60 - bad
    left = {k for p in data.parts.values() for k in p.keys}
    for file in data.bad:
        assert file.key not in left
        assert (file.reason, file.detail) == ("truncated", "at byte 3")
    assert any(f"cannot be used: {bad}" in w for w in data.warnings) == (bad > 0)


def test_the_limit_grows_with_the_set() -> None:
    assert len(run(found((1000, 1000), bad=20)).bad) == 20
    with pytest.raises(DataError, match="allows 20"):
        run(found((1000, 1000), bad=21))


def test_a_class_whose_pictures_are_all_bad_is_an_error() -> None:
    with pytest.raises(DataError, match="no usable training picture of class class 0"):
        run(found((5, 60), bad=5))


def test_an_empty_set_is_an_error() -> None:
    with pytest.raises(DataError):
        run(found(()))


def test_other_errors_are_not_swallowed() -> None:
    def broken(key: str) -> U8:
        raise MemoryError(key)

    with pytest.raises(MemoryError):
        run(found(loader=broken))


def twin(key: str) -> U8:
    return picture(number_of(key) % 1000)


def parted(labels_and_parts: list[tuple[int, str, int]], classes: int = 2) -> Found:
    entries = [
        Entry(f"{part}/c{label}/{i}_{number}", label, part)
        for i, (label, part, number) in enumerate(labels_and_parts)
    ]
    return Found(
        name="set",
        class_names=tuple(f"class {i}" for i in range(classes)),
        entries=tuple(sorted(entries, key=lambda e: e.key)),
        load=lambda key: InMemory(load(key)),
    )


BASE = [(0, "train", 1), (0, "train", 2), (1, "train", 3), (1, "train", 4)]
REST = [(0, "val", 5), (1, "val", 6), (0, "test", 7), (1, "test", 8)]


def test_a_set_with_parts_keeps_them() -> None:
    data = run(parted(BASE + REST))
    assert {k: len(p) for k, p in data.parts.items()} == {"train": 4, "val": 2, "test": 2}
    assert data.warnings == ()
    assert data.notes == ()


def test_leaks_are_said_or_stop() -> None:
    given = parted([*BASE, *REST, (0, "test", 1), (1, "val", 3), (1, "test", 3)])
    (warning,) = run(given).warnings
    assert warning.startswith("in two splits, so that scores will be too good: 3")
    assert "train/c0/0_1 = test/c0/8_1" in warning
    with pytest.raises(DataError, match=r"in two splits.*: 3 .*--fail-on-leak"):
        run(given, fail_on_leak=True)
    assert run(parted(BASE + REST), fail_on_leak=True).warnings == ()


def test_copies_in_one_part_are_no_leak() -> None:
    assert run(parted([*BASE, *REST, (0, "train", 1)]), fail_on_leak=True).warnings == ()


def test_pictures_labelled_two_ways() -> None:
    (warning,) = run(parted([*BASE, *REST, (1, "train", 1)])).warnings
    assert warning.startswith("labelled two ways: 1 (train/c0/0_1 = train/c1/8_1")


def test_copies_never_leak_through_our_own_split() -> None:
    data = run(found((60,), loader=lambda k: picture(number_of(k) // 3)), fail_on_leak=True)
    assert data.warnings == ()


def test_unequal_classes_are_said() -> None:
    assert not any("unequal" in w for w in run(found((20, 95))).warnings)
    assert any("unequal" in w and "--balance" in w for w in run(found((20, 105))).warnings)
    assert not any("unequal" in w for w in run(found((20, 105)), balance=True).warnings)


def test_a_class_without_validation_is_said() -> None:
    given = parted([*BASE, (0, "val", 5), (0, "test", 7), (1, "test", 8)])
    (warning,) = run(given).warnings
    assert warning == "no val picture of class 1: nothing can be said of them"


def test_val_is_cut_from_train_and_test_is_left_alone() -> None:
    rows = [(c, "train", c * 100 + i) for c in (0, 1) for i in range(40)]
    data = run(parted([*rows, (0, "test", 7000), (1, "test", 8000)]))
    assert {k: len(p) for k, p in data.parts.items()} == {"train": 70, "val": 10, "test": 2}
    assert data.notes == ("no val split: 11.8% of train is kept for validation",)
    assert all(k.startswith("train/") for k in data.parts["val"].keys)


def test_no_test_part_is_said() -> None:
    data = run(found(), split="80/20/0")
    assert set(data.parts) == {"train", "val"}
    assert any("no test split" in n for n in data.notes)


def test_a_val_share_of_0_validates_on_the_test_part_and_says_so() -> None:
    own = found((40, 40), part="train")
    tested = replace(own.entries[0], key="c0/q_777777", part="test")
    with_parts = replace(own, entries=(*own.entries, tested))
    for given in (found((40, 40)), with_parts):
        data = run(given, split="0.8/0/0.2")
        assert data.parts["val"] is data.parts["test"]
        assert any("test split validates" in w for w in data.warnings)
        assert not any("in two splits" in w or "leak" in w for w in data.warnings)
    assert len(data.parts["train"]) == 80
    assert data.parts["test"].keys == ("c0/q_777777",)
    assert not any("test split validates" in w for w in run(found((40, 40))).warnings)
    with pytest.raises(DataError, match="too few"):
        run(own, split="0.8/0/0.2")  # no test split either


def test_the_last_epoch_is_chosen_by_nothing() -> None:
    """With a val share of 0 the test split validates, which matters if it decides anything."""
    for settings, warned in (
        ({}, "chooses the one it is scored by"),
        ({"keep": "last", "callbacks": "early_stopping(2)"}, "callbacks decide by it"),
        ({"keep": "last"}, ""),
    ):
        data = run(found((40, 40)), split="0.8/0/0.2", **settings)
        about = [text for text in data.warnings if "val share of 0" in text]
        assert bool(about) == bool(warned)
        assert all(warned in text for text in about)
        assert any("it chooses none" in note for note in data.notes) == (not warned)


def test_a_val_share_of_0_leaves_a_val_part_alone() -> None:
    given = found((40, 40))
    parts = [("train", "val", "test")[i % 3] for i in range(80)]
    entries = tuple(replace(e, part=p) for e, p in zip(given.entries, parts, strict=True))
    data = run(replace(given, entries=entries), split="0.8/0/0.2")
    assert set(data.parts["val"].keys).isdisjoint(data.parts["test"].keys)


def test_whole_batches_leave_out_pictures_at_random() -> None:
    """As Keras does, whose validation is shuffled: no class loses more than its share."""
    every = run(found((40, 40)), split="0.5/0.25/0.25")
    settings = {"split": "0.5/0.25/0.25", "whole_batches": True, "batch_size": 6}
    cut = run(found((40, 40)), **settings)
    lost = []
    for name, part in every.parts.items():
        n = len(part) if name == "train" else 18
        kept = cut.parts[name]
        assert len(kept) == n
        places = [part.keys.index(key) for key in kept.keys]
        assert places == sorted(places)
        assert kept.labels.tolist() == part.labels[places].tolist()
        assert kept.digests == tuple(part.digests[i] for i in places)
        lost += sorted({*range(len(part))} - {*places})
    assert lost != [18, 19, 18, 19]
    again = run(found((40, 40)), **settings)
    assert again.fingerprint == cut.fingerprint
    assert any("left out: 2 of val, 2 of test" in note for note in cut.notes)
    with pytest.raises(DataError, match="less than one batch of 64"):
        run(found((40, 40)), whole_batches=True, batch_size=64)


def test_the_split_follows_its_own_seed() -> None:
    data, other_seed, other_split = (
        run(found((40, 40)), **s) for s in ({}, {"seed": 9}, {"split_seed": 9})
    )
    assert data.parts["test"].keys == other_seed.parts["test"].keys
    assert data.parts["test"].keys != other_split.parts["test"].keys


def test_two_of_each_class_are_enough_and_one_is_not() -> None:
    data = run(found((2, 2)))
    assert {k: len(p) for k, p in data.parts.items()} == {"train": 2, "val": 2}
    with pytest.raises(DataError, match="at least two of each class"):
        run(found((1, 1)))


def test_check_only_makes_everything_test() -> None:
    given = parted([(0, "train", 1), (1, "val", 2), (0, "test", 3)])
    data = check_only(given, TrainConfig(), threads=1)
    assert set(data.parts) == {"test"}
    assert len(data.parts["test"]) == 3
    with pytest.raises(DataError):
        check_only(found((3,), bad=3), TrainConfig(on_bad="exclude"), threads=1)


def test_the_fingerprint_follows_pixels_labels_names_and_parts() -> None:
    base = run(parted(BASE + REST)).fingerprint
    assert run(parted(BASE + REST)).fingerprint == base
    others = [
        parted([(0, "train", 99), *BASE[1:], *REST]),
        parted([(1, "train", 1), *BASE[1:], *REST]),
        parted([(0, "val", 1), *BASE[1:], *REST]),
        parted([*BASE, *REST, (0, "train", 55)]),
    ]
    prints = {run(o).fingerprint for o in others}
    relabelled = parted(BASE + REST)
    first = relabelled.entries[0]
    entries = (replace(first, label=1 - first.label), *relabelled.entries[1:])
    prints.add(run(replace(relabelled, entries=entries)).fingerprint)
    renamed = found((30, 30))
    entries = tuple(replace(e, key="x" + e.key) for e in renamed.entries)
    prints |= {run(renamed).fingerprint, run(replace(renamed, entries=entries)).fingerprint}
    assert len(prints | {base}) == 8


def test_the_same_pictures_under_other_names_are_divided_the_same() -> None:
    one = found((50, 50))
    entries = tuple(
        sorted(
            (
                replace(e, key=f"z{1000 - number_of(e.key) % 100}_{number_of(e.key)}")
                for e in one.entries
            ),
            key=lambda e: e.key,
        )
    )
    two = replace(one, entries=entries)
    for name, part in run(one).parts.items():
        assert sorted(part.digests) == sorted(run(two).parts[name].digests)


@pytest.mark.parametrize("pictures", [0, 3, 60])
def test_memory_is_kept_to_the_budget(pictures: int) -> None:
    opened: list[str] = []

    def counting(key: str) -> U8:
        opened.append(key)
        return load(key)

    budget = (pictures * picture(0).nbytes + 1) / 1e9  # 0 would leave it open
    data = run(found(loader=counting), threads=1, memory_gb=budget)
    opened.clear()
    keys = [k for p in data.parts.values() for k in p.keys]
    for key in keys:
        assert np.array_equal(data.read(key), load(key))
    assert len(opened) == 60 - pictures


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_stops_soon_and_leaves_no_thread(threads: int) -> None:
    opened: list[str] = []

    def slow(key: str) -> U8:
        opened.append(key)
        time.sleep(0.002)
        return load(key)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        given = found((2000, 2000), loader=slow)
        open_pictures(given, TrainConfig(), threads=threads, progress=interrupt)
    assert time.perf_counter() - start < 3
    assert len(opened) <= 64 * (2 * threads + 1), "blocks that wait are dropped"
    assert not [t for t in threading.enumerate() if t.name.startswith("scan")]


def test_progress_counts_up_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    open_pictures(found((300, 33)), TrainConfig(), threads=2, progress=lambda *a: told.append(a))
    assert told[-1] == (333, 333)
    assert told == sorted(told)
    assert {total for _, total in told} == {333}


def test_names_in_messages_cannot_reorder_the_terminal() -> None:
    entries = tuple(Entry(f"\u202e\x1b[2J/p_{i}", i % 2) for i in range(20))

    def broken(key: str) -> InMemory:
        raise BadPicture("truncated")

    given = Found(name="a\u202eb", class_names=("x", "y"), entries=entries, load=broken)
    with pytest.raises(DataError) as caught:
        run(given)
    assert "\u202e" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_threads_for() -> None:
    assert threads_for(5) == 5
    assert threads_for(0) >= 1


@pytest.mark.parametrize(("side", "together"), [(TINY, False), (TINY + 1, True)])
def test_tiny_pictures_are_opened_one_after_the_other(side: int, together: bool) -> None:
    """Threads would only take the interpreter from each other."""
    lock, now, most = threading.Lock(), 0, 0

    def slow(key: str) -> U8:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now if len(opened) > 100 else 0)  # the first 96 show their size
            opened.append(key)
        time.sleep(0.001)
        with lock:
            now -= 1
        return picture(number_of(key), side)

    opened: list[str] = []
    data = open_pictures(found((100, 100), loader=slow), TrainConfig(), threads=3)
    assert len(data.seen) == len(opened) == 200
    assert (most > 1) is together


# What is unusual about pictures that are used


def of_files(files: dict[str, bytes]) -> Found:
    """A data set of files' bytes, divided by the folder in their names."""
    names = ("train", "val", "test")
    entries = [
        Entry(key, int(key[-1]) % 2, part) for key in sorted(files) for part in [key.split("/")[0]]
    ]
    assert {entry.part for entry in entries} <= set(names)
    return Found(
        name="set",
        class_names=("even", "odd"),
        entries=tuple(entries),
        load=lambda key: Encoded(files[key]),
    )


def twelve_bits(seed: int, low: int = 500, high: int = 1500) -> bytes:
    values = np.random.default_rng(seed).integers(low, high, (8, 9)).astype(np.uint16)
    values[0, 0], values[0, 1] = low, high
    return encode(Image.fromarray(values), "PNG")


def test_one_scale_is_chosen_on_the_training_split_alone() -> None:
    files = {f"train/{i}": twelve_bits(i) for i in range(4)}
    files |= {
        f"{part}/{i}": twelve_bits(seed + i, 0, 60_000)
        for seed, part in ((9, "val"), (19, "test"))
        for i in (0, 1)
    }
    data = run(of_files(files))
    assert data.scale == "500,1500"
    assert any(
        "samples of 16 bits in 4 pictures: 500 is black and 1500 white" in note
        and "--range LOW,HIGH" in note
        for note in data.notes
    )
    assert data.warnings == ()
    assert not any("unusual" in note for note in data.notes)  # of the scale they were opened with
    assert any("unusual: 4" in note for note in run(of_files(files), range="type").notes)
    for text, want in (("0,4095", "0,4095"), ("type", "type"), ("picture", "picture")):
        assert run(of_files(files), range=text).scale == want
    scaled = decoded_for(data, PictureLimits(range=data.scale))
    assert scaled.read("train/0").min() == 0 and scaled.read("train/0").max() == 255
    assert data.fingerprint == run(of_files(files), range="0,4095").fingerprint


def test_pictures_of_8_bits_need_no_scale() -> None:
    files = {f"{part}/{i}": encode(picture(i), "PNG") for part in ("train", "val") for i in (0, 1)}
    data = run(of_files(files))
    assert data.scale == "type"
    assert not any("samples" in note for note in data.notes)


def test_different_depths_in_one_set_are_said() -> None:
    files = {f"train/{i}": encode(picture(i), "PNG") for i in range(6)} | {
        "train/7": twelve_bits(7),
        "val/0": twelve_bits(8),
        "val/1": twelve_bits(9),
    }
    data = run(of_files(files))
    assert data.scale == "type"  # 8 bits are most of them
    assert any("1 of 7 pictures have samples of more than 8 bits" in w for w in data.warnings)


def test_notes_on_files_are_one_line_a_kind_and_damage_is_a_warning() -> None:
    whole = encode(np.kron(picture(1, 60), np.ones((4, 4, 1), np.uint8)), "JPEG")
    frames = io.BytesIO()
    images = [Image.new("RGB", (8, 8), (50 * k, k, k)) for k in range(5)]
    images[0].save(frames, "WEBP", save_all=True, append_images=images[1:])
    files = {
        "train/0": whole,
        "train/1": whole[:-40] + whole[-2:],
        "train/2": whole + bytes(100),
        "train/3": whole + bytes(200),
        "train/4": frames.getvalue(),
        "val/0": encode(picture(3), "PNG"),
        "val/1": encode(picture(4), "PNG"),
    }
    data = run(of_files(files))
    (damaged,) = (w for w in data.warnings if "damaged" in w)
    assert damaged.startswith("used, but damaged: 1 (train/1: damaged: ")
    assert "used, but unusual: 2 (train/2: 100 bytes after the end; and 1 more)" in data.notes
    assert "used, but unusual: 1 (train/4: first of 5 frames)" in data.notes
