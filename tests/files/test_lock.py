"""One writer at a time, however the last one ended, and where file systems have no locks."""

from __future__ import annotations

import getpass
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fieldmark.errors import ConfigError, ResourceError
from fieldmark.files import lock
from fieldmark.files.lock import FILE, Owner, only_writer

HOLD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from fieldmark.files.lock import only_writer\n"
    "with only_writer(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def holder(folder: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.communicate()


def test_the_second_writer_is_told_the_first_ones_number(tmp_path: Path) -> None:
    first = holder(tmp_path)
    told = f"written by process {first.pid};"
    with pytest.raises(ConfigError, match=told) as caught, only_writer(tmp_path):
        pytest.fail("two writers")
    assert caught.value.exit_code == 2
    end(first)
    assert not (tmp_path / FILE).exists()
    with only_writer(tmp_path):
        assert Owner.read(tmp_path / FILE) == Owner.of(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writers_lock_is_free_at_once(tmp_path: Path) -> None:
    first = holder(tmp_path)
    first.send_signal(signal.SIGKILL)
    end(first)
    assert (tmp_path / FILE).exists()
    with only_writer(tmp_path):
        pass
    assert not (tmp_path / FILE).exists()


def test_two_writers_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(ConfigError), only_writer(tmp_path):
        pytest.fail("two writers")


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path):
        raise KeyError
    assert not (tmp_path / FILE).exists()


def test_a_lock_file_that_was_replaced_meanwhile_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes its file between our opening and our locking of it."""
    real, calls = lock._lock, 0

    def locking(handle: int) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / FILE).unlink()
        return real(handle)

    monkeypatch.setattr(lock, "_lock", locking)
    with only_writer(tmp_path):
        assert calls == 2
        assert (tmp_path / FILE).exists()
        with pytest.raises(ConfigError), only_writer(tmp_path):
            pytest.fail("two writers")


def test_it_names_nobody(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        text = (tmp_path / FILE).read_text(encoding="ascii")
    assert json.loads(text).keys() == {"pid", "start", "machine"}
    assert getpass.getuser() not in text
    assert platform.node() not in text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="writable"), only_writer(tmp_path / "nowhere"):
        pytest.fail("no folder")


# --- where the file system has no locks ----------------------------------------------------------


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_lock", lambda handle: False)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives as long as the test, and holds no lock."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    if process.poll() is None:
        process.communicate(b"\n")


def write(folder: Path, owner: Owner) -> None:
    (folder / FILE).write_text(json.dumps(asdict(owner)))


@pytest.mark.usefixtures("lockless")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
class TestWithoutLocks:
    def test_a_living_process_is_respected(
        self, tmp_path: Path, other: subprocess.Popen[bytes]
    ) -> None:
        write(tmp_path, Owner.of(other.pid))
        with pytest.raises(ConfigError, match=f"process {other.pid}; wait"), only_writer(tmp_path):
            pytest.fail("two writers")

    def test_a_dead_ones_lock_is_taken_over(
        self, tmp_path: Path, other: subprocess.Popen[bytes]
    ) -> None:
        dead = Owner.of(other.pid)
        other.communicate(b"\n")
        write(tmp_path, dead)
        with only_writer(tmp_path):
            assert Owner.read(tmp_path / FILE) == Owner.of(os.getpid())

    def test_a_zombie_is_dead(self, tmp_path: Path) -> None:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        zombie = Owner.of(process.pid)
        assert zombie.may_live()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not zombie.may_live()
        process.communicate()

    def test_a_later_process_of_the_same_number_is_another(
        self, tmp_path: Path, other: subprocess.Popen[bytes]
    ) -> None:
        write(tmp_path, replace(Owner.of(other.pid), start="1"))
        with only_writer(tmp_path):
            pass

    def test_of_another_machine_nothing_is_known(self, tmp_path: Path) -> None:
        write(tmp_path, Owner(2**22 + 1, "1", "another"))
        with pytest.raises(ConfigError, match=r"remove .*\.lock"), only_writer(tmp_path):
            pytest.fail("two writers")

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": -1}', b"\xff", b'{"pid": 1}'])
    def test_rubbish_holds_nobody_up(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / FILE).write_bytes(content)
        with only_writer(tmp_path):
            pass


def test_errors_of_the_system_mean_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_writer(tmp_path):
        assert Owner.read(tmp_path / FILE) == Owner.of(os.getpid())
