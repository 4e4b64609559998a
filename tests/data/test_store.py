"""Decoded once: memory, then disk, then the file; and the same pixels from all of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fieldmark import augment
from fieldmark.cli import main
from fieldmark.data import decoded_for, open_dataset
from fieldmark.data.batches import Batches
from fieldmark.data.dataset import Dataset
from fieldmark.data.disk import Disk
from fieldmark.data.folder import read_folder
from fieldmark.data.store import Memory, Pictures, disk_folder
from fieldmark.errors import DataError
from fieldmark.pictures.decode import Encoded
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import Deep, InMemory, Picture
from fieldmark.settings.config import FULL_SIDE, TrainConfig
from tests.making import encode
from tests.pictures.test_jpeg import photo


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often files of each size were decoded."""
    counts: Counter[int] = Counter()
    real = Encoded.decode

    def counting(self: Encoded, limits: PictureLimits) -> object:
        counts[len(self._data)] += 1
        return real(self, limits)

    monkeypatch.setattr(Encoded, "decode", counting)
    return counts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 JPEGs and 12 PNGs of two classes, a few above the least side."""
    root = tmp_path / "data"
    for number in range(24):
        side = 40 + 5 * number
        kind = "JPEG" if number % 2 else "PNG"
        path = root / ("cat", "dog")[number // 2 % 2] / f"{number}.img.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.roll(photo(side, side + 10), number, axis=0), kind))
    return root


DECODED_BYTES = sum(3 * (40 + 5 * n) * (50 + 5 * n) for n in range(24))


def opened(folder: Path, *, memory: int, disk: float = 1.0, **settings: object) -> Dataset:
    config = TrainConfig(
        memory_gb=(memory + 1) / 1e9,
        disk_gb=disk,
        threads=2,
        decode_side=FULL_SIDE,
        split="0.5/0.25/0.25",
        **settings,
    )
    return open_dataset(str(folder), config).divide(config)


def batches(data: Dataset, text: str, *, threads: int = 2) -> Batches:
    return Batches(
        data.parts["train"],
        data.read,
        spec=InputSpec(size=16, interpolation="bilinear"),
        augment=augment.build(text),
        batch_size=4,
        seed=3,
        threads=threads,
        fast=True,
    )


def every_pixel(data: Dataset) -> dict[str, bytes]:
    return {key: data.read(key).tobytes() for part in data.parts.values() for key in part.keys}


@pytest.mark.parametrize("memory", [0, DECODED_BYTES // 3, DECODED_BYTES])
@pytest.mark.parametrize("text", ["none", "random_resized_crop(0.5)|flip_lr"])
def test_no_epoch_decodes_what_the_scan_did(
    folder: Path, decoded: Counter[int], memory: int, text: str
) -> None:
    data = opened(folder, memory=memory)
    assert set(decoded.values()) == {1} and len(decoded) == 24
    source = batches(data, text)
    for epoch in range(3):
        assert sum(len(batch.labels) for batch in source.epoch(epoch)) == 12
    assert set(decoded.values()) == {1}
    stored = Disk(disk_folder(), 0).usage().pictures
    assert (stored == 24) if memory == 0 else (stored == 0) if memory == DECODED_BYTES else stored


def test_a_later_run_finds_what_is_on_disk(folder: Path, decoded: Counter[int]) -> None:
    first = opened(folder, memory=0)
    pixels = every_pixel(first)
    decoded.clear()
    later = opened(folder, memory=0)
    assert not decoded
    assert every_pixel(later) == pixels
    assert later.fingerprint == first.fingerprint
    assert later.facts == first.facts
    assert opened(folder, memory=DECODED_BYTES).fingerprint == first.fingerprint
    assert not decoded


def test_pixels_are_the_same_with_any_memory_and_any_disk(folder: Path) -> None:
    plain = opened(folder, memory=0, disk=0)
    assert not disk_folder().exists()
    for memory in (0, DECODED_BYTES // 2, DECODED_BYTES):
        for disk in (0.0, 1e-4, 1.0):
            for _ in range(2):
                data = opened(folder, memory=memory, disk=disk)
                assert every_pixel(data) == every_pixel(plain)
                assert data.fingerprint == plain.fingerprint


def test_without_a_disk_what_does_not_fit_is_decoded_again(
    folder: Path, decoded: Counter[int]
) -> None:
    data = opened(folder, memory=0, disk=0)
    every_pixel(data)
    assert set(decoded.values()) == {2}


def test_a_picture_that_goes_bad_later_is_a_named_error(folder: Path) -> None:
    data = opened(folder, memory=0, disk=0.0)
    key = data.parts["train"].keys[0]
    whole = (folder / key).read_bytes()
    for content in (whole[: len(whole) // 2], None):
        if content is None:
            (folder / key).unlink()
        else:
            (folder / key).write_bytes(content)
        with pytest.raises(DataError, match=f"{key} could be read before.*resume"):
            data.read(key)


def test_a_damaged_file_of_the_cache_is_decoded_anew(folder: Path, decoded: Counter[int]) -> None:
    data = opened(folder, memory=0)
    pixels = every_pixel(data)
    decoded.clear()
    broken = [path for path in disk_folder().rglob("*") if path.is_file()][:5]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-1])
    assert every_pixel(data) == pixels
    assert decoded.total() == 5
    assert every_pixel(data) == pixels
    assert decoded.total() == 5, "they are replaced"


def test_a_full_disk_cache_is_warned_of(folder: Path) -> None:
    data = opened(folder, memory=0, disk=1e-5)
    (warning,) = [text for text in data.warnings if "decoded in every epoch" in text]
    assert "disk_gb" in warning
    assert not any("decoded in every" in text for text in opened(folder, memory=0).warnings)


def test_the_users_folder_is_left_as_it_is(folder: Path) -> None:
    def state() -> list[tuple[str, float, bytes]]:
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(str(path), path.stat().st_mtime, path.read_bytes()) for path in found]

    before = state()
    every_pixel(opened(folder, memory=0))
    assert state() == before


def test_another_size_decodes_only_what_it_changes(folder: Path, decoded: Counter[int]) -> None:
    config = TrainConfig(decode_side=40, split="0.5/0.25/0.25", disk_gb=0)
    data = open_dataset(str(folder), config).divide(config)
    jpegs = [n for n in range(24) if n % 2]
    reduced = [n for n in jpegs if 40 + 5 * n >= 79]
    decoded.clear()
    whole = decoded_for(data, PictureLimits())
    pixels = every_pixel(whole)
    assert decoded.total() == len(reduced)
    assert all(
        min(whole.read(key).shape[:2]) == 40 + 5 * int(Path(key).name.partition(".")[0])
        for key in pixels
    )
    config = TrainConfig(decode_side=FULL_SIDE, split="0.5/0.25/0.25", disk_gb=0)
    fresh = open_dataset(str(folder), config).divide(config)
    assert every_pixel(fresh) == pixels
    assert fresh.fingerprint == data.fingerprint
    assert fresh.facts == data.facts


def test_bytes_of_the_cache_depend_on_all_that_decides_the_pixels() -> None:
    jpeg, png = encode(photo(64, 80), "JPEG"), encode(photo(64, 80), "PNG")
    full, reduced = PictureLimits(), PictureLimits(decode_side=32)
    assert Encoded(jpeg).name(full) != Encoded(jpeg).name(reduced)
    assert Encoded(png).name(full) == Encoded(png).name(reduced)
    assert Encoded(png).name(full) != Encoded(png).name(PictureLimits(64 * 80))
    assert Encoded(b"\xff\xd8\xff and nothing").name(reduced) == ""
    assert InMemory(photo(4, 4)).name(reduced) == ""


# The budget


def test_memory_is_taken_and_given() -> None:
    memory = Memory(100)
    assert memory.take(60)
    assert not memory.take(41)
    assert memory.take(70, giving=30)
    assert memory.take(0)
    assert not memory.take(1)
    memory.give(100)
    assert memory.take(100)


def test_the_setting_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Memory.of(1.5).budget == 1_500_000_000
    monkeypatch.setattr("fieldmark.machine.memory.free", lambda: 8000)
    assert Memory.of(0).budget == 2000
    monkeypatch.setattr("fieldmark.machine.memory.free", lambda: 2**40)
    assert Memory.of(0).budget == 2 * 2**30
    monkeypatch.undo()
    assert Memory.of(0).budget > 2**20


def test_a_decoded_picture_gives_way_only_if_that_is_enough() -> None:
    read = Pictures(
        lambda key: InMemory(photo(4, 5)), limits=PictureLimits(decode_side=1), memory=Memory(100)
    )
    read("a")  # 60 of 100
    assert not read.make_room("a", 101)
    assert list(read._held) == ["a"]
    assert read.make_room("a", 30)  # fits beside it
    assert list(read._held) == ["a"]
    assert not read.make_room("b", 30)
    assert read.make_room("a", 65)  # 10 are free, and 60 for the picture's own
    assert not read._held


def test_a_folder_reader_gives_sources(folder: Path) -> None:
    found = read_folder(folder)
    for entry in found.entries:
        picture = found.load(entry.key).decode(PictureLimits())
        assert picture.side == min(picture.pixels.shape[:2])
        assert len(picture.identity) == 32


def test_the_command_tells_and_prunes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cache(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["cache", *words])
        return int(str(stop.value.code)), capsys.readouterr().out

    assert json.loads(cache("--json")[1])["pictures"] == 0
    opened(folder, memory=0)
    told = json.loads(cache("--json")[1])
    assert told["pictures"] == 24
    assert told["bytes"] > DECODED_BYTES
    assert told["folder"] == str(disk_folder())
    assert cache()[1].startswith("24 pictures, 0.0")
    half = told["bytes"] / 2
    left = json.loads(cache("--prune", str(half / 1e9), "--json")[1])
    assert 0 < left["bytes"] <= half
    assert json.loads(cache("--prune", "0", "--json")[1])["pictures"] == 0
    assert cache("--prune", "-1")[0] == 2
    assert cache("--prune", "nan")[0] == 2


@pytest.mark.parametrize("memory", [0, DECODED_BYTES])
def test_a_picture_in_the_place_of_another_is_found_when_it_is_decoded_again(
    folder: Path, memory: int
) -> None:
    data = opened(folder, memory=memory, disk=0)
    keys = sorted(key for part in data.parts.values() for key in part.keys)
    one, other = (key for key in keys[:2])
    before = data.read(one)
    (folder / one).write_bytes((folder / other).read_bytes())
    if memory:  # it is still held as it was
        assert np.array_equal(data.read(one), before)
        data = decoded_for(data, PictureLimits(decode_side=20))
        one = next(k for k in keys if k.endswith("jpeg"))
        (folder / one).write_bytes(encode(photo(99, 99)[::-1], "JPEG"))
    with pytest.raises(DataError, match="another picture is in its place"):
        data.read(one)


def test_the_disk_keeps_what_is_unusual_about_a_picture(tmp_path: Path) -> None:
    pixels = photo(9, 11)
    deep = Deep("ab" * 16, -1.5, 4095.0, "16 bits")
    picture = Picture(pixels, "cd" * 16, 9, False, ("first of 3 frames", "é"), deep, "0,4095")
    disk = Disk(tmp_path / "pictures", 10**6)
    disk.put("ab" * 16, picture)
    found = disk.get("ab" * 16)
    assert found is not None
    assert (found.notes, found.deep, found.scale) == (picture.notes, deep, "0,4095")
    assert np.array_equal(found.pixels, pixels)
    (file,) = (f for f in (tmp_path / "pictures").rglob("*") if f.is_file())
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert disk.get("ab" * 16) is None
