"""Decoding processes: what crashes, hangs or eats memory in them is one bad file, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fieldmark.data.folder import read_folder
from fieldmark.data.scan import open_pictures
from fieldmark.errors import ResourceError
from fieldmark.pictures import isolated
from fieldmark.pictures.decode import REASONS, decode, decode_file, decode_here
from fieldmark.pictures.isolated import Decoders, announced
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture, Decoded
from fieldmark.settings.config import TrainConfig
from tests.making import encode, scene

TRAPS = """
import ctypes, os, sys, time
from pathlib import Path
from fieldmark.pictures import worker
from fieldmark.pictures.picture import Decoded

def once(folder):
    marker = Path({folder!r}) / "marker"
    if not marker.exists():
        marker.touch()
        os.abort()

def eat():
    held = []
    while True:
        held.append(bytearray(2**24))

def hang():
    while True:
        pass

TRAPS = {{
    b"crash": lambda: ctypes.string_at(0),
    b"exit": lambda: os._exit(7),
    b"hang": hang,
    b"sleep": lambda: ctypes.CDLL(None).sleep(100),
    b"memory": eat,
    b"chatter": lambda: os.write(sink(), b"\\xff" * 100),
    b"once": lambda: once({folder!r}),
}}
real = worker.decode_here

def sink():
    return next(fd for fd in range(3, 9) if os.path.exists(f"/proc/self/fd/{{fd}}")
        and os.readlink(f"/proc/self/fd/{{fd}}").startswith("pipe:"))

def decode_here(data, limits):
    for end, act in TRAPS.items():
        if data.endswith(end):
            act()
    return real(data, limits)

worker.decode_here = decode_here
sys.argv[1:] = ["{seconds}"]
worker.main()
"""
GOOD = encode(scene(), "BMP")  # whatever follows a BMP is not looked at, but by the traps


def trapped(folder: Path, *, count: int = 1, seconds: float = 30.0) -> Decoders:
    """Processes with a decoder that has a weak spot for each of the traps."""
    script = TRAPS.format(folder=str(folder), seconds=seconds)
    return Decoders(count, seconds=seconds, command=[sys.executable, "-c", script])


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    pool = Decoders(2)
    yield pool
    pool.close()


def ask(pool: Decoders, data: bytes) -> Decoded:
    return pool.decode(data, PictureLimits(10**6, 64))


def bad(pool: Decoders, data: bytes) -> BadPicture:
    with pytest.raises(BadPicture) as caught:
        ask(pool, data)
    assert caught.value.reason in REASONS
    return caught.value


def alive(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith(" Z")
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP", "AVIF", "PNG", "JPEG"])
def test_the_answer_is_that_of_the_one_decoder(decoders: Decoders, kind: str) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    options = {} if kind in ("BMP", "GIF") else {"exif": exif}
    data = encode(scene(300, 200), kind, **options)
    got = ask(decoders, data)
    want = decode_here(data, PictureLimits(decode_side=64))
    assert np.array_equal(got.pixels, want.pixels)
    assert got[1:] == want[1:]
    assert got.pixels.flags.writeable
    assert np.array_equal(decode(data, PictureLimits(decode_side=64))[0], want.pixels)


def test_a_bad_picture_costs_no_process(decoders: Decoders) -> None:
    ask(decoders, GOOD)
    before = decoders.pids
    assert bad(decoders, GOOD[:-50]).reason == "truncated"
    assert bad(decoders, b"").reason == "empty file"
    with pytest.raises(BadPicture, match="too many pixels"):
        decoders.decode(GOOD, PictureLimits(10, 64))
    assert decoders.pids == before


def test_as_many_at_once_as_there_are_processes(decoders: Decoders) -> None:
    datas = [encode(scene(seed=i), "BMP") for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda data: ask(decoders, data), datas))
    for i, result in enumerate(results):
        assert np.array_equal(result.pixels, scene(seed=i))
    assert len(decoders.pids) <= 2


# What goes wrong


@pytest.mark.parametrize(
    ("trap", "reason", "detail"),
    [
        ("crash", "decoder crashed", "SIGSEGV"),
        ("exit", "decoder crashed", "exit code 7"),
        ("memory", "cannot be read", "not enough memory"),
        ("chatter", "decoder crashed", "its answer makes no sense"),
    ],
)
def test_a_decoder_that_fails_is_named(tmp_path: Path, trap: str, reason: str, detail: str) -> None:
    pool = trapped(tmp_path)
    try:
        error = bad(pool, GOOD + trap.encode())
        assert error.reason == reason
        assert detail in error.detail
        assert np.array_equal(ask(pool, GOOD).pixels, scene())
    finally:
        pool.close()


@pytest.mark.parametrize("trap", ["hang", "sleep"])
def test_a_decoder_that_hangs_is_stopped_in_time(tmp_path: Path, trap: str) -> None:
    pool = trapped(tmp_path, seconds=0.5)
    try:
        error = bad(pool, GOOD + trap.encode())
        assert str(error) == "took too long (more than 0.5 s to decode)"
    finally:
        pool.close()
    assert pool.pids == set()


def test_a_picture_whose_process_fails_once_is_good(tmp_path: Path) -> None:
    pool = trapped(tmp_path)
    try:
        assert np.array_equal(ask(pool, GOOD + b"once").pixels, scene())
        assert (tmp_path / "marker").exists()
    finally:
        pool.close()


def test_processes_killed_from_outside_lose_no_picture() -> None:
    pool = Decoders(2, tries=1)
    try:
        first, second = pool._take(), pool._take()
        pool._give_back(first)
        pool._give_back(second)
        for process in (first, second):
            os.kill(process.pid, signal.SIGKILL)
            process._popen.wait()
        assert np.array_equal(ask(pool, GOOD).pixels, scene())
        assert pool.pids.isdisjoint({first.pid, second.pid})
    finally:
        pool.close()


def test_a_process_that_is_stopped_is_given_up_in_time() -> None:
    pool = Decoders(1, seconds=0.4)
    try:
        ask(pool, GOOD)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        assert bad(pool, GOOD).reason == "took too long"
        assert not alive(pid)
    finally:
        pool.close()


def test_time_does_not_pass_while_the_whole_program_is_stopped() -> None:
    script = (
        "import time\nfrom fieldmark.pictures.isolated import Decoders\n"
        "from fieldmark.pictures.limits import PictureLimits\n"
        "pool = Decoders(1, seconds=0.5)\n"
        f"pool.decode({GOOD!r}, PictureLimits(10**6, 64))\n"
        "process = pool._idle[0]\nprocess._left = 2.0\nprint('ready', flush=True)\n"
        "time.sleep(0.5)\nprint(process._late, flush=True)\npool.close()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(signal.SIGSTOP)
        time.sleep(3)
        program.send_signal(signal.SIGCONT)
        assert program.stdout.readline() == b"False\n"


def test_whoever_stops_waiting_leaves_no_half_answer_behind(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(decoders, GOOD)
    before = decoders.pids

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolated, "_read_array", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(decoders, GOOD)
    assert len(before - decoders.pids) == 1
    other = encode(scene(seed=5), "BMP")
    assert np.array_equal(ask(decoders, other).pixels, scene(seed=5))


def test_processes_that_cannot_start_are_an_error_not_bad_pictures() -> None:
    for command in ([sys.executable, "-c", "raise SystemExit(1)"], ["/no/such/program"]):
        pool = Decoders(1, command=command)
        with pytest.raises(ResourceError, match="could not be started"):
            ask(pool, GOOD)
        assert pool.pids == set()
        pool.close()


def test_what_decoders_leak_goes_with_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_PICTURES", 2)
    pool = Decoders(1)
    try:
        seen: set[int] = set()
        for _ in range(4):
            ask(pool, GOOD)
            seen |= pool.pids
        assert len(seen) == 2
    finally:
        pool.close()


@pytest.mark.parametrize("shape", [[1, 1], [0, 5, 3], [-1, -5, 3], [20_000, 20_000, 3]])
def test_a_process_that_was_taken_over_cannot_ask_for_memory(shape: list[int]) -> None:
    with pytest.raises(ValueError, match="shape"):
        announced({"shapes": [shape], "types": ["uint8"]}, PictureLimits())
    found = announced({"shapes": [[5000, 10_000, 3]], "types": ["uint8"]}, PictureLimits())
    assert found == [((5000, 10_000, 3), "uint8")]
    with pytest.raises(ValueError, match="object"):
        announced({"shapes": [[5, 5, 3]], "types": ["object"]}, PictureLimits())


# Where the processes come from and go


def test_nothing_of_the_current_folder_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "PIL", "fieldmark"):
        (tmp_path / f"{name}.py").write_text(f"open('canary', 'w').write({name!r})")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    pool = Decoders(1)
    try:
        assert np.array_equal(ask(pool, GOOD).pixels, scene())
    finally:
        pool.close()
    assert not (tmp_path / "canary").exists()


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux")
def test_where_memory_runs_out_they_go_first(decoders: Decoders) -> None:
    ask(decoders, GOOD)
    for pid in decoders.pids:
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"


def test_they_end_with_a_program_that_is_killed() -> None:
    script = (
        "import sys, time\nfrom fieldmark.pictures import isolated\n"
        "from fieldmark.pictures.limits import PictureLimits\n"
        f"isolated.decode({GOOD!r}, PictureLimits(10**6, 64))\n"
        "print(*isolated.pids(), flush=True)\ntime.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert pids and all(map(alive, pids))
        program.kill()
    for pid in pids:
        wait_until_gone(pid)


def test_a_fork_has_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_pools", {})
    monkeypatch.setattr("fieldmark.pictures.isolated.atexit.register", lambda _: None)
    mine = isolated._pool()
    assert isolated._pool() is mine
    monkeypatch.setattr(os, "getpid", lambda: -5)
    assert isolated._pool() is not mine
    assert list(isolated._pools) != [-5]


def test_plain_files_need_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_pool", lambda: pytest.fail("a process was asked for"))
    for kind in ("JPEG", "PNG"):
        (tmp_path / "a").write_bytes(encode(scene(), kind))
        assert decode_file(tmp_path / "a")[0].shape == scene().shape
    for data in (b"", b"text", b"%PDF-1.7", b"\0" * 99):
        with pytest.raises(BadPicture):
            decode(data)


def test_a_folder_with_traps_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = trapped(tmp_path, count=2, seconds=1.0)
    monkeypatch.setattr(isolated, "_pools", {os.getpid(): pool})
    data = tmp_path / "data"
    traps = ("crash", "hang", "memory", "exit")
    for label in ("a", "b"):
        (data / label).mkdir(parents=True)
        for i in range(12):
            content = encode(scene(seed=100 * (label == "b") + i), "BMP")
            (data / label / f"{i}.bmp").write_bytes(content)
    for trap in traps:
        (data / "a" / f"{trap}.bmp").write_bytes(GOOD + trap.encode())
    config = TrainConfig(disk_gb=0.0, max_pixels=10**6)
    try:
        opened = open_pictures(read_folder(data), config, threads=2)
    finally:
        pool.close()
    assert {(b.key, b.reason) for b in opened.bad} == {
        ("a/crash.bmp", "decoder crashed"),
        ("a/exit.bmp", "decoder crashed"),
        ("a/hang.bmp", "took too long"),
        ("a/memory.bmp", "cannot be read"),
    }
    assert len(opened.seen) == 24


def gif() -> bytes:
    return encode(scene(10, 20), "GIF")


def test_what_python_prints_when_it_starts_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an environment's sitecustomize may: before the first answer, more than a pipe holds."""
    (tmp_path / "sitecustomize.py").write_text("print('hello' * 50_000, flush=True)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = Decoders(1)
    try:
        assert pool.decode(gif(), PictureLimits()).pixels.shape == (10, 20, 3)
        assert pool.failed == 0
    finally:
        pool.close()


class TestPrograms:
    """Programs that are no Python are never started as one."""

    @pytest.fixture(autouse=True)
    def nothing_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def start(*_: object, **__: object) -> None:
            raise AssertionError("a process was started")

        monkeypatch.setattr(subprocess, "Popen", start)
        isolated._warn_once.cache_clear()

    def test_a_frozen_program_decodes_by_itself_and_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        with pytest.warns(RuntimeWarning, match="no Python"):
            assert decode(gif())[0].shape == (10, 20, 3)
        with pytest.raises(BadPicture):
            decode(gif()[:40])
        with pytest.raises(ResourceError, match="frozen"):
            Decoders(1)

    def test_a_program_with_python_inside_does_not_start_itself(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        program = tmp_path / "photo-tool"
        program.touch(0o755)
        monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
        for name in (str(program), "", None):
            monkeypatch.setattr(sys, "executable", name)
            assert isolated.interpreter() == ""
        with pytest.warns(RuntimeWarning, match="no Python"):
            assert decode(gif())[0].shape == (10, 20, 3)

    def test_the_python_beside_it_is_used_where_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """As with uWSGI, whose Python has an interpreter in its environment."""
        monkeypatch.setattr(sys, "executable", str(tmp_path / "uwsgi"))
        monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
        (tmp_path / "bin").mkdir()
        there = tmp_path / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        there.touch(0o755)
        assert isolated.interpreter() == str(there)

    def test_this_python_is_one(self) -> None:
        assert isolated.interpreter() == sys.executable
