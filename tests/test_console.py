"""Output that cannot be printed stops no work."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fieldmark.cli import main
from fieldmark.console import Terminal, has_width, watcher
from fieldmark.progress import Silent


class Refusing(io.StringIO):
    """A stream whose reader is gone, or whose disk is full."""

    def __init__(self, error: type[OSError]) -> None:
        super().__init__()
        self.error, self.tries = error, 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise self.error("nobody reads")

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_a_stream_that_refuses_is_left_alone(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldmark.console.SHOW_AFTER", -1)
    stream = Refusing(error)
    terminal = Terminal(stream)
    terminal.count("reading", 1, 10)
    terminal.say("one")
    tries = stream.tries
    assert tries >= 1
    terminal.warn("two")
    terminal.count("reading", 5, 10)
    terminal.close()
    assert stream.tries == tries


def test_a_stream_that_is_closed_meanwhile_is_left_alone() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    terminal.say("one")
    stream.close()
    terminal.say("two")
    terminal.close()


@pytest.mark.parametrize("closed", [True, False])
def test_without_standard_output_nothing_is_printed(
    closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream if closed else None)
    with watcher(True) as watching:
        assert isinstance(watching, Silent)


@pytest.mark.parametrize("columns", ["0", "00", "9" * 30])
def test_a_width_that_can_be_none_loses_no_line(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert not has_width()
    stream = io.StringIO()
    Terminal(stream).say("a line of some words")
    assert stream.getvalue() == "a line of some words\n"


@pytest.mark.parametrize("words", [["recipes"], ["--help"], ["recipes", "--json"]])
def test_a_pipe_that_nobody_reads_is_no_error(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert ended.value.code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
def test_a_command_without_any_stream_does_its_work(tmp_path: Path) -> None:
    """What it opens first must not become its standard output."""
    (tmp_path / "a").mkdir()
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m fieldmark cache --json <&- >&- 2>&-"],
        env=os.environ
        | {"FIELDMARK_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0
