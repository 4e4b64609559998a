from __future__ import annotations

import builtins
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark.data import cifar
from fieldmark.data.cifar import is_cifar, read_cifar
from fieldmark.errors import DataError
from fieldmark.pictures.picture import BadPicture

NAMES10 = ["zebra", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def batch10(n: int = 12, *, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "batch_label": "training batch",
        "labels": [i % 10 for i in range(n)],
        "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        "filenames": [f"picture_{i}.png" for i in range(n)],
    }


def as_bytes(value: dict[str, Any]) -> dict[bytes, Any]:
    return {key.encode(): item for key, item in value.items()}


def write10(folder: Path, *, protocol: int = 2, meta: object = NAMES10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(BATCHES):
        (folder / name).write_bytes(pickle.dumps(batch10(seed=seed), protocol=protocol))
    if meta is not None:
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": meta}, protocol=2))
    return folder


def write100(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        batch = batch10(20)
        batch["fine_labels"] = [i * 5 for i in range(20)]
        batch["coarse_labels"] = batch.pop("labels")
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_cifar(folder)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def refused(tmp_path: Path, raw: bytes) -> str:
    folder = write10(tmp_path / "c")
    (folder / "data_batch_2").write_bytes(raw)
    message = refusal(folder)
    assert "data_batch_2" in message
    return message


def changed(tmp_path: Path, **changes: object) -> str:
    return refused(tmp_path, pickle.dumps({**batch10(), **changes}, protocol=2))


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar10_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    found = read_cifar(write10(tmp_path / "mine", protocol=protocol))
    assert found.name == "mine"
    assert found.class_names == tuple(sorted(NAMES10))
    assert len(found.entries) == 72
    assert [e.key for e in found.entries] == sorted(e.key for e in found.entries)
    by_key = {e.key: e for e in found.entries}
    assert by_key["data_batch_1/00000"].part == "train"
    assert by_key["test_batch/00011"].part == "test"
    for seed, name in enumerate(BATCHES):
        batch = batch10(seed=seed)
        for row in (0, 11):
            entry = by_key[f"{name}/{row:05d}"]
            assert found.class_names[entry.label] == NAMES10[batch["labels"][row]]
            pixels = found.load(entry.key).decode(1).pixels
            assert pixels.shape == (32, 32, 3)
            assert pixels.dtype == np.uint8
            assert (pixels[:, :, 0].ravel() == batch["data"][row, :1024]).all()  # red first
            assert (pixels[:, :, 2].ravel() == batch["data"][row, 2048:]).all()


def python2_pickle(batch: dict[str, Any]) -> bytes:
    """What Python 2's cPickle wrote: byte strings without a mark that they are bytes."""

    def text(value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value

    data = batch["data"]
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nK\x00\x85" + text(b"b")
    array += b"\x87R(K\x01" + b"M" + struct.pack("<H", len(data)) + b"M\x00\x0c\x86"
    array += b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
    array += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(data.tobytes()) + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([i]) for i in batch["labels"]) + b"e"
    return b"\x80\x02}q\x01(" + text(b"labels") + labels + text(b"data") + array + b"u."


def test_python_2_pickles_with_bytes_keys(tmp_path: Path) -> None:
    folder = write10(tmp_path / "c", meta=[n.encode() for n in NAMES10])
    raw = python2_pickle(batch10(seed=1))
    theirs = pickle.loads(raw, encoding="bytes")  # the made-up file is one Python reads too
    assert (theirs[b"data"] == batch10(seed=1)["data"]).all()
    before = read_cifar(folder)
    (folder / "data_batch_2").write_bytes(raw)
    after = read_cifar(folder)
    assert after.entries == before.entries
    for key in ("data_batch_2/00000", "data_batch_2/00011"):
        assert np.array_equal(after.load(key).decode(1).pixels, before.load(key).decode(1).pixels)


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(12) % 10,
        (np.arange(12) % 10).astype(">i2"),
        [np.int64(i % 10) for i in range(12)],
    ],
    ids=["array", "big-endian", "scalars"],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_labels_may_be_numpys(tmp_path: Path, labels: object, protocol: int) -> None:
    folder = write10(tmp_path / "c")
    before = read_cifar(folder).entries
    batch = as_bytes({**batch10(), "labels": labels})
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=protocol))
    assert read_cifar(folder).entries == before


def test_a_column_major_array(tmp_path: Path) -> None:
    folder = write10(tmp_path / "c")
    before = read_cifar(folder)
    data = np.asfortranarray(batch10()["data"])
    for protocol in (2, 5):
        raw = pickle.dumps({**batch10(), "data": data}, protocol=protocol)
        (folder / "data_batch_1").write_bytes(raw)
        key = "data_batch_1/00003"
        found = read_cifar(folder).load(key).decode(1).pixels
        assert np.array_equal(found, before.load(key).decode(1).pixels)


def test_cifar100_takes_fine_labels(tmp_path: Path) -> None:
    folder = write100(tmp_path / "c")
    names = [f"n{99 - i:02d}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    found = read_cifar(folder)
    assert found.class_names == tuple(sorted(names))
    last = next(e for e in found.entries if e.key == "train/00019")
    assert found.class_names[last.label] == names[95]
    assert {e.part for e in found.entries} == {"train", "test"}


def test_names_without_a_meta_file(tmp_path: Path) -> None:
    ten = read_cifar(write10(tmp_path / "a", meta=None))
    assert ten.class_names[0] == "airplane"
    assert any("published" in note for note in ten.notes)
    hundred = read_cifar(write100(tmp_path / "b"))
    assert hundred.class_names[:2] == ("class 00", "class 01")
    assert next(e for e in hundred.entries if e.key == "train/00019").label == 95


def test_what_counts_as_cifar(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for part in ("train", "test", "meta"):
        (pictures / part).mkdir(parents=True)
    one = tmp_path / "one"
    one.mkdir()
    (one / "train").touch()
    assert not is_cifar(pictures)
    assert not is_cifar(one)
    assert not is_cifar(tmp_path / "nowhere")
    assert is_cifar(write10(tmp_path / "a"))
    assert is_cifar(write100(tmp_path / "b"))
    write10(tmp_path / "outer" / "cifar-10-batches-py")
    assert is_cifar(tmp_path / "outer")
    assert len(read_cifar(tmp_path / "outer").entries) == 72
    write100(tmp_path / "outer" / "cifar-100-python")
    assert "cifar-100-python" in refusal(tmp_path / "outer")  # which of the two is not guessed
    assert "neither" in refusal(pictures)


def test_pictures_are_copies_and_unknown_keys_bad_pictures(tmp_path: Path) -> None:
    found = read_cifar(write10(tmp_path / "c"))
    before = found.load("test_batch/00000").decode(1).pixels.copy()
    found.load("test_batch/00000").decode(1).pixels[:] = 0
    assert (found.load("test_batch/00000").decode(1).pixels == before).all()
    for key in ("test_batch/00012", "test_batch/-0001", "x", "nothing/00000"):
        with pytest.raises(BadPicture):
            found.load(key)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_a_missing_batch_is_named(tmp_path: Path, name: str) -> None:
    folder = write10(tmp_path / "c")
    (folder / name).unlink()
    assert f"lacks {name};" in refusal(folder)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["top", "data", "key"])
def test_no_code_runs(tmp_path: Path, protocol: int, place: str) -> None:
    marker = tmp_path / "marker"
    calls = [
        Call(os.system, f"touch {marker}"),
        Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
        Call(os.mkdir, str(marker)),
    ]
    for call in calls:
        value = {"top": call, "data": {"data": call}, "key": {call: 1}}[place]
        message = refused(tmp_path, pickle.dumps(value, protocol=protocol))
        assert "not run" in message
        assert not marker.exists()
    raw = pickle.dumps(calls[0], protocol=2)
    pickle.loads(raw)  # the trap is a live one
    assert marker.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"(S'touch x'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch x'\no.",  # OBJ
        b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pid\n.",  # PERSID
        b"\x80\x02}c_codecs\nencode\n}U\x01xK\x01sb.",  # BUILD of a function
        b"\x80\x02c_codecs\nencode\nU\x02abU\x03hex\x86R.",  # doubles its input
        b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x40\x85R.",  # a gigabyte
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R.",  # empty array
        b"\x80\x02c__builtin__\nbytes\nJ\x00\x00\x00\x40\x85R.",  # a gigabyte
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02]K\x01K\x02e.",  # APPENDS without a mark
        b"\x80\x02(e.",
        b"\x80\x02N}\x86s.",
        b"\x80\x020.",  # POP
        b"\x80\x02h\x07.",  # GET of nothing
        b"\x80\x02(.",
        b"\x80\x02q\x01.",
        b"\x80\x02K\x01K\x02K\x03s.",
        b"\x80\x02K\x01.",
        b"\x80\x02.",
        b"",
        b"\xff\xd8\xff\xe0 a photo",
        b"\x80\x02}",  # no STOP
    ],
)
def test_made_up_operations(tmp_path: Path, raw: bytes) -> None:
    assert "not a batch that can be read" in refused(tmp_path, raw)


def peak_megabytes(tmp_path: Path, raw: bytes) -> float:
    folder = write10(tmp_path / "c")
    (folder / "data_batch_1").write_bytes(raw)
    tracemalloc.start()
    try:
        refusal(folder)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


BILLION = struct.pack("<Q", 10**9)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02T" + struct.pack("<i", 10**9) + b"x.",
        b"\x80\x03B" + struct.pack("<I", 10**9) + b"x.",
        b"\x80\x02X" + struct.pack("<I", 10**9) + b"x.",
        b"\x80\x04\x8e" + BILLION + b"x.",
        b"\x80\x04\x8d" + BILLION + b"x.",
        b"\x80\x05\x96" + BILLION + b"x.",
        b"\x80\x02\x8b" + struct.pack("<i", 10**9) + b"x.",
        b"\x80\x04\x95" + BILLION + b"\x96" + struct.pack("<Q", 2**63) + b".",
        b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".",  # a memo of two billion places
        b"\x80\x02" + b"]" * 1_000_000 + b".",
        b"\x80\x02" + b"(" * 1_000_000 + b".",
        b"\x80\x02)" + b"\x85" * 9_000 + b"}q\x01h\x01\x86.",
    ],
    ids=lambda raw: repr(raw[:6]),
)
def test_declared_lengths_and_nesting_take_no_memory(tmp_path: Path, raw: bytes) -> None:
    assert peak_megabytes(tmp_path, raw) < 40


def test_nested_keys_and_values_end_well(tmp_path: Path) -> None:
    nested = b")" + b"\x85" * 9_000
    assert "keys other than texts" in refused(tmp_path, b"\x80\x02}" + nested + b"K\x01s.")
    assert "lacks 'data'" in refused(tmp_path, b"\x80\x02}U\x06labels" + nested + b"s.")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(batch10(), protocol=2)
    step = max(len(whole) // 25, 1)
    for length in range(0, len(whole), step):
        assert "data_batch_2" in refused(tmp_path, whole[:length])
    assert "data_batch_2" in refused(tmp_path, whole[:-1])


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write10(tmp_path / "c")
    monkeypatch.setattr(cifar, "MAX_FILE_BYTES", 2000)
    assert "at most" in refusal(folder)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((12, 3072), np.float32), "float32 [12, 3072]"),
        (np.zeros((12, 3072), np.int8), "int8 [12, 3072]"),
        (np.zeros((12, 3071), np.uint8), "uint8 [12, 3071]"),
        (np.zeros((12 * 3072,), np.uint8), "uint8 [36864]"),
        (np.zeros((11, 3072), np.uint8), "11 pictures and labels has 12"),
        (np.zeros((0, 3072), np.uint8), "N at least 1"),
        (np.zeros((12, 3, 32, 32), np.uint8), "shape does not fit"),
        (np.zeros((2, 2), object), "no array of numbers"),
        (np.zeros((2,), [("a", "u1")]), "no plain number"),
        ([[0] * 3072] * 2, "no array"),
        (None, "no array"),
    ],
    ids=str,
)
def test_wrong_pixels(tmp_path: Path, data: object, words: str) -> None:
    assert words in changed(tmp_path, data=data)


def test_9999_pictures_for_10000_labels(tmp_path: Path) -> None:
    labels = [0] * 10_000
    data = np.zeros((9_999, 3072), np.uint8)
    assert "9999 pictures and labels has 10000" in changed(tmp_path, labels=labels, data=data)


def test_a_shape_that_its_bytes_do_not_fill(tmp_path: Path) -> None:
    raw = python2_pickle(batch10())
    lie = raw.replace(b"M\x0c\x00M\x00\x0c\x86", b"M\x0d\x00M\x00\x0c\x86")
    assert lie != raw
    assert "cannot have 36864 bytes" in refused(tmp_path, lie)
    huge = raw.replace(b"M\x0c\x00M\x00\x0c\x86", b"J\xff\xff\xff\x7fM\x00\x0c\x86")
    assert "shape does not fit" in refused(tmp_path, huge)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (10, "labels[5] is 10"),
        (-1, "labels[5] is -1"),
        (10**5000, "labels[5] is huge"),
        (True, "labels[5] is a bool"),
        (np.True_, "labels[5] is a bool"),
        (3.0, "labels[5] is a float"),
        ("3", "labels[5] is a str"),
        (None, "labels[5] is a NoneType"),
        ([3], "labels[5] is a list"),
    ],
    ids=lambda value: str(type(value)),
)
def test_wrong_labels(tmp_path: Path, label: object, words: str) -> None:
    labels: list[object] = list(batch10()["labels"])
    labels[5] = label
    message = changed(tmp_path, labels=labels)
    assert words in message
    assert "whole numbers 0 to 9" in message


@pytest.mark.parametrize(
    "labels", [None, "abc", 3, np.zeros(12), np.zeros(12, bool), np.zeros((12, 1), int)]
)
def test_labels_that_are_no_list(tmp_path: Path, labels: object) -> None:
    assert "no list of whole numbers" in changed(tmp_path, labels=labels)


@pytest.mark.parametrize("key", ["data", "labels"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    batch = batch10()
    del batch[key]
    assert f"lacks '{key}'" in refused(tmp_path, pickle.dumps(batch, protocol=2))


@pytest.mark.parametrize(
    "names",
    [
        *("ten", 7, NAMES10[:9], [*NAMES10, "x"]),
        *([*NAMES10[:9], last] for last in (3, "bird", " ", b"\xff\xfe")),
    ],
)
def test_wrong_names(tmp_path: Path, names: object) -> None:
    assert "label_names" in refusal(write10(tmp_path / "c", meta=names))


def test_random_damage_raises_nothing_else(tmp_path: Path) -> None:
    """Any flipped bytes give a DataError or a reading of the right shape."""
    rng = np.random.default_rng(0)
    small = {**batch10(2), "labels": [1, 2]}
    folder = write10(tmp_path / "c")
    for protocol in (2, 4, 5):
        whole = np.frombuffer(pickle.dumps(small, protocol=protocol), np.uint8)
        at_data = bytes(whole).index(small["data"].tobytes()[:2]) if protocol > 2 else 0
        header = np.array([i for i in range(len(whole)) if not 0 < at_data <= i < at_data + 6144])
        for _ in range(150):
            hurt = whole.copy()
            hurt[rng.choice(header, 2)] = rng.integers(0, 256, 2)
            (folder / "data_batch_1").write_bytes(hurt.tobytes())
            try:
                found = read_cifar(folder)
            except DataError:
                continue
            assert found.load("data_batch_1/00000").decode(1).pixels.shape == (32, 32, 3)
