"""Disks that are full, read-only or gone, little memory, and files that never end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import tiny_run
from tests.faults.boundaries import Fault
from tests.faults.commands import command, mounted_read_only
from tests.faults.matrix import Matrix
from tests.faults.warm import Seen, Warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's mounts and limits")

MB = 2**20
HANGS = 60.0
"""Seconds after which a command that should have ended has hung."""


def train(matrix: Matrix, run: Path, **settings: object) -> list[str]:
    flags = tiny_run.flags(tiny_run.SETTINGS | settings)
    return ["train", str(matrix.pictures), "--out", str(run), *flags]


def elsewhere(run: Path, matrix: Matrix) -> list[str]:
    """What differs from the whole run, but for where the pictures are as seen from the run."""
    return [d for d in tiny_run.differences(run, matrix.whole) if d not in ("data.json", "report")]


def assert_told(seen: Seen, code: int = 6) -> None:
    """It ended with the code and one message, and Python's traceback was kept from the user."""
    assert seen.code == code, seen.err
    assert not seen.traceback, seen.err
    assert "error: " in seen.err


FILLING = """
import os, subprocess, sys, time
from pathlib import Path
disk, python, pictures, out, *flags = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], check=True)
run = Path(disk) / "run"
train = [python, "-m", "fieldmark", "train", pictures, "--out", str(run), *flags]
process = subprocess.Popen(train, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
while process.poll() is None and not (run / "metrics.jsonl").exists():
    time.sleep(0.005)
filler = Path(disk) / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
message = process.communicate()[1].decode()
filler.unlink()
parts = [p.name for p in run.glob(".*.part")]
resumed = subprocess.run([python, "-m", "fieldmark", "resume", str(run)], capture_output=True)
subprocess.run(["cp", "-r", str(run), out], check=True)
import json
print(json.dumps([process.returncode, message, parts, resumed.returncode, resumed.stderr.decode()]))
"""


def test_a_disk_that_fills_up(matrix: Matrix, tmp_path: Path) -> None:
    """A real one: a small file system in memory, filled by another program while a run trains."""
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = tiny_run.flags(tiny_run.SETTINGS)
    words = ["unshare", "-rm", sys.executable, "-c", FILLING, str(disk), sys.executable]
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("no small file system can be mounted here")
    done = subprocess.run(
        [*words, str(matrix.pictures), str(tmp_path / "run"), *flags],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FIELDMARK_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    code, message, parts, resumed, why = json.loads(done.stdout)
    assert code == 6, message
    assert "Traceback" not in message
    assert "space" in message or "full" in message
    assert not parts
    assert resumed == 0, why
    assert not elsewhere(tmp_path / "run", matrix)


def test_files_that_may_not_grow(matrix: Matrix, warm: Warm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert_told(warm.run(train(matrix, run), file_size=2000))
    assert not run.exists(), "what cannot be resumed is removed"


def test_a_folder_that_cannot_be_written(matrix: Matrix, tmp_path: Path) -> None:
    """Training there is refused at once; a finished run that lies there can still be used."""
    wrapped = mounted_read_only(tmp_path)
    if not wrapped:
        pytest.skip("nothing can be mounted here")
    finished = shutil.copytree(matrix.whole, tmp_path / "finished")
    watch = matrix.whole.parent / "watch"

    def run(*words: str) -> tuple[int, str]:
        done = command(words, env={"FIELDMARK_CACHE": None}, folder=watch, wrapped=wrapped)
        assert b"Traceback" not in done.err, done.err.decode()
        return done.code, done.err.decode()

    assert run(*train(matrix, tmp_path / "run"))[0] == 6
    assert run("resume", str(finished))[0] == 6
    code, why = run("predict", str(finished), str(matrix.pictures / "flat" / "0.png"))
    assert code == 0, why


@pytest.mark.parametrize("text", ["write .last.ckpt.part", "open .model.safetensors.part"])
def test_a_folder_that_is_gone(matrix: Matrix, warm: Warm, tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    places = [b for b in matrix.boundaries if b.text == text]
    fault = Fault("vanish", places[len(places) // 2].number)
    assert_told(warm.run(train(matrix, run), watched=[run], fault=fault))
    assert_told(warm.run(["resume", str(run)]), code=4)


@pytest.mark.parametrize("megabytes", [4, 24, 64])
def test_little_memory(matrix: Matrix, warm: Warm, tmp_path: Path, megabytes: int) -> None:
    """It says so, or gets by; and what it saved before can be resumed with enough.

    Not all libraries of C ask whether they were given memory: then the system ends the process.
    """
    run = tmp_path / "run"
    seen = warm.run(train(matrix, run), memory=megabytes * MB)
    assert not seen.traceback, seen.err
    assert seen.code in (0, 6, -signal.SIGSEGV, -signal.SIGABRT), seen.err
    if (run / "config.json").is_file():
        assert warm.run(["resume", str(run)]).code == 0
        assert not elsewhere(run, matrix)


def test_shared_memory_is_not_needed(matrix: Matrix, tmp_path: Path) -> None:
    """Containers give 64 MB of it by default; here there is none at all."""
    script = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$@"'
    wrapped = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if subprocess.run([*wrapped, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    done = command(
        train(matrix, tmp_path / "run", threads=2, epochs=1),
        env={"FIELDMARK_CACHE": str(tmp_path / "cache")},
        folder=tmp_path / "watch",
        wrapped=wrapped,
    )
    assert done.code == 0, done.err.decode()


def test_a_picture_that_never_ends(matrix: Matrix, warm: Warm, tmp_path: Path) -> None:
    """A pipe that nobody writes to, called like a picture: named or left out, and no hang."""
    pictures = tiny_run.make_pictures(tmp_path / "stripes")
    os.mkfifo(pictures / "flat" / "pipe.png")
    words = [
        "train",
        str(pictures),
        "--out",
        str(tmp_path / "run"),
        *tiny_run.flags(tiny_run.SETTINGS),
    ]
    seen = warm.run([*words, "--on-bad", "exclude"], kill_after=HANGS)
    assert seen.code == 0, f"{seen.code}: {seen.err}"
    run = matrix.whole.parent / "with-pipe"
    shutil.copytree(matrix.whole, run)
    seen = warm.run(["predict", str(run), str(pictures / "flat")], kill_after=HANGS)
    assert seen.code == 0, f"{seen.code}: {seen.err}"
    assert not seen.traceback, seen.err
