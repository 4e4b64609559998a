"""The tracer sees what a program does to its files, and harms it where it is told to."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.warm import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PROGRAM = """
import errno, os, pathlib, shutil, sys
sys.path.insert(0, {root!r})
from tests.faults.boundaries import Boundaries, Fault
folder = pathlib.Path({folder!r})
boundaries = Boundaries([folder], {fault})
boundaries.install()
try:
    {body}
finally:
    print([b.text for b in boundaries.seen], boundaries.missed)
"""
SAVE = """
    with (folder / '.a.part').open('wb') as file:
        file.write(b'12345678')
        file.flush()
        os.fsync(file.fileno())
    (folder / '.a.part').replace(folder / 'a')
"""


def program(folder: Path, body: str, fault: str = "None") -> subprocess.CompletedProcess[str]:
    text = PROGRAM.format(root=str(ROOT), folder=str(folder), body=body.strip(), fault=fault)
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=60
    )


def test_sees_every_step_of_an_atomic_write(tmp_path: Path) -> None:
    seen = program(tmp_path, SAVE).stdout
    steps = ["open .a.part", "write .a.part", "fsync .a.part", "close .a.part", "replace a"]
    assert seen == f"{steps} []\n"
    assert (tmp_path / "a").read_bytes() == b"12345678"


def test_sees_folders_removals_handles_and_text(tmp_path: Path) -> None:
    body = """
    os.makedirs(folder / 'b' / 'c')
    handle = os.open(folder / 'b' / 'x', os.O_CREAT | os.O_WRONLY)
    os.write(handle, b'1'); os.fsync(handle); os.close(handle)
    (folder / 'b' / 'log').write_text('2')
    shutil.rmtree(folder / 'b')
"""
    seen = program(tmp_path, body).stdout
    for step in ("mkdir b", "mkdir c", "open x", "write x", "fsync x", "write log", "rmdir b"):
        assert f"'{step}'" in seen
    assert seen.endswith(" []\n")


def test_other_folders_and_reading_do_not_count(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "there").write_text("1")
    body = "(folder / 'there').read_text(); (folder.parent / 'outside').write_text('1')"
    assert program(inside, body).stdout == "[] []\n"


def test_what_no_wrapper_sees_is_recorded(tmp_path: Path) -> None:
    """A writer that goes past the wrappers must not make the matrix silently smaller."""
    body = "import io; io.FileIO(str(folder / 'raw'), 'w').close()"
    assert program(tmp_path, body).stdout == "[] ['open raw']\n"


@pytest.mark.parametrize(
    ("kind", "at", "left"),
    [
        ("kill", 0, {}),
        ("kill", 1, {".a.part": b""}),
        ("kill", 4, {".a.part": b"12345678"}),
        ("torn", 1, {".a.part": b"1234"}),
        ("power", 2, {".a.part": b"1234"}),
        ("power", 4, {".a.part": b"12345678"}),
    ],
)
def test_kills_where_it_is_told(tmp_path: Path, kind: str, at: int, left: dict[str, bytes]) -> None:
    done = program(tmp_path, SAVE, f"Fault({kind!r}, {at})")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == left


def test_a_power_cut_loses_what_was_renamed_without_a_flush(tmp_path: Path) -> None:
    body = SAVE.replace("os.fsync(file.fileno())", "pass") + "    (folder / 'b').mkdir()"
    done = program(tmp_path, body, "Fault('power', 4)")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "a").read_bytes() == b"1234"


def test_the_system_refuses_as_often_as_it_is_told(tmp_path: Path) -> None:
    body = """
    codes = []
    for number in range(3):
        try:
            (folder / str(number)).mkdir()
        except OSError as error:
            codes.append(error.errno)
    print(codes)
"""
    seen = program(tmp_path, body, "Fault('error', 0, errno.ENOSPC, 2)").stdout
    assert seen.startswith(f"{[errno.ENOSPC] * 2}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
