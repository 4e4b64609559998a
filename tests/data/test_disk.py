"""Decoded pictures on disk: whole or absent, shared by processes, kept to a size."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark.data import disk as module
from fieldmark.data.disk import Disk, Usage
from fieldmark.pictures.picture import Picture

MB = 10**6


def picture(number: int, height: int = 20, width: int = 31) -> Picture:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(pixels, f"{number:032x}", 4 * min(height, width), reducible=number % 2 == 1)


def name(number: int) -> str:
    return f"{number * 7919 % 65536:04x}{number:028x}"


def same(one: Picture | None, other: Picture) -> bool:
    return (
        one is not None
        and np.array_equal(one.pixels, other.pixels)
        and one.pixels.flags.writeable
        and (one.identity, one.side, one.reducible) == (other.identity, other.side, other.reducible)
    )


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_put_is_got_by_this_object_and_the_next(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "a" / "b", MB)
    assert disk.get(name(1)) is None
    for number in range(5):
        disk.put(name(number), picture(number))
    wide = np.asfortranarray(picture(9).pixels)
    disk.put(name(9), Picture(wide[::2], "0" * 32, 10))
    for one in (disk, Disk(tmp_path / "a" / "b", MB)):
        assert all(same(one.get(name(number)), picture(number)) for number in range(5))
        assert same(one.get(name(9)), Picture(wide[::2], "0" * 32, 10))
    assert disk.warning == ""
    assert disk.usage() == Usage(6, sum(path.stat().st_size for path in files(tmp_path)))


def test_a_damaged_file_is_absent_and_is_replaced(tmp_path: Path) -> None:
    disk = Disk(tmp_path, MB)
    disk.put(name(3), picture(3))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for at in (0, 4, 9, 13, 17, 21, 25, 30, 55, 60, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert disk.get(name(3)) is None, at
        disk.put(name(3), picture(3))
        assert same(disk.get(name(3)), picture(3))
    for cut in (b"", whole[:3], whole[:40], whole[:-1], whole + b"x", bytes(len(whole))):
        path.write_bytes(cut)
        assert disk.get(name(3)) is None
    path.unlink()
    path.mkdir()
    assert disk.get(name(3)) is None


def test_nothing_beyond_the_limit_and_the_oldest_go_first(tmp_path: Path) -> None:
    old = Disk(tmp_path, MB)
    for number in range(10):
        old.put(name(number), picture(number))
        path = tmp_path / name(number)[:2] / name(number)
        os.utime(path, (number + 1000, number + 1000))
    size = files(tmp_path)[0].stat().st_size
    disk = Disk(tmp_path, 10 * size)
    assert same(disk.get(name(0)), picture(0)), "used again: not the oldest any more"
    for number in range(100, 105):
        disk.put(name(number), picture(number))
    assert disk.usage().nbytes <= 10 * size
    there = {path.name for path in files(tmp_path)}
    assert [n for n in range(10) if name(n) in there] == [0, 6, 7, 8, 9]
    for number in range(105, 120):
        disk.put(name(number), picture(number))
    kept = [n for n in range(100, 120) if disk.get(name(n)) is not None]
    assert kept == list(range(100, 109)), "what this run wrote or read is not removed for more"
    assert disk.get(name(0)) is not None
    assert "disk_gb" in disk.warning
    assert disk.usage().nbytes <= 10 * size


@pytest.mark.parametrize("keep", [0, 3, 50])
def test_pruning(tmp_path: Path, keep: int) -> None:
    disk = Disk(tmp_path, MB)
    for number in range(10):
        disk.put(name(number), picture(number))
        os.utime(tmp_path / name(number)[:2] / name(number), (number, number))
    size = disk.usage().nbytes // 10
    left = disk.prune(keep * size)
    assert left == disk.usage() == Usage(min(keep, 10), min(keep, 10) * size)
    assert [n for n in range(10) if disk.get(name(n)) is not None] == list(range(10))[
        10 - left.pictures :
    ]


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "none", MB)
    assert disk.usage() == disk.prune(0) == Usage(0, 0)
    assert not (tmp_path / "none").exists()


def test_leftovers_of_killed_processes_go_but_not_those_of_running_ones(tmp_path: Path) -> None:
    disk = Disk(tmp_path, MB)
    disk.put(name(1), picture(1))
    folder = files(tmp_path)[0].parent
    for part, age in (("old", 10_000), ("new", 0)):
        (folder / f".{part}.part").write_bytes(b"half")
        when = (folder / f".{part}.part").stat().st_mtime - age
        os.utime(folder / f".{part}.part", (when, when))
    assert disk.usage().pictures == 1
    assert [path.name for path in files(tmp_path)] == [".new.part", name(1)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_said_once_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = Path.open
    tried: list[str] = []

    def refusing(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "x" in mode or "w" in mode:
            tried.append(self.name)
            raise OSError(code, os.strerror(code))
        return real(self, mode, *args, **options)

    disk = Disk(tmp_path, MB)
    disk.put(name(1), picture(1))
    monkeypatch.setattr(Path, "open", refusing)
    for number in range(2, 6):
        disk.put(name(number), picture(number))
    assert len(tried) == 1
    assert os.strerror(code) in disk.warning
    assert same(disk.get(name(1)), picture(1))
    assert len(files(tmp_path)) == 1


def test_a_margin_of_the_disk_is_left_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MARGIN", 10**18)
    disk = Disk(tmp_path, MB)
    disk.put(name(1), picture(1))
    assert files(tmp_path) == []
    assert "of the disk are free" in disk.warning


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_disk import name, picture, same
from fieldmark.data.disk import Disk
disk = Disk(Path(sys.argv[1]), 10**9)
for turn in range(8):
    for number in range(25):
        got = disk.get(name(number))
        assert got is None or same(got, picture(number)), number
        disk.put(name(number), picture(number))
        assert same(disk.get(name(number)), picture(number)), number
assert disk.warning == "", disk.warning
"""


def test_two_processes_write_the_same_pictures_at_once(tmp_path: Path) -> None:
    script = WRITER.format(here=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    disk = Disk(tmp_path, 10**9)
    assert len(files(tmp_path)) == disk.usage().pictures == 25
    assert all(same(disk.get(name(number)), picture(number)) for number in range(25))
