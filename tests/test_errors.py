"""Messages name flags on the command line, and arguments in a Python program."""

from __future__ import annotations

import io

import pytest

from fieldmark import errors
from fieldmark.cli import _run
from fieldmark.console import Terminal
from fieldmark.errors import ConfigError, Interrupted, for_the_command_line, worded


@pytest.fixture(autouse=True)
def python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_for_the_command_line", False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("give a lower --lr", "give a lower lr"),
        ("raise --memory-gb, else --disk-gb", "raise memory_gb, else disk_gb"),
        ("leave them out with --on-bad exclude", "leave them out with on_bad exclude"),
        ("score all with --no-whole-batches", "score all with whole_batches=False"),
        ("train anew without --from", "train anew without from_run"),
        ("say where with --data DIR", "say where with data DIR"),
        ("`fieldmark models` lists; or `fieldmark train X --lr 1`", None),
        ("continue with: fieldmark resume runs/a --data DIR", None),
        ("fieldmark train A --from b; or give --lr", "fieldmark train A --from b; or give lr"),
        ("pip install --upgrade 'fieldmark[keras]'", None),
        ("a--b is 5--6, --, -- x and runs/--odd", None),
    ],
)  # fmt: skip
def test_flags_become_arguments(text: str, said: str | None) -> None:
    assert worded(text) == (said or text)
    assert str(ConfigError(text)) == (said or text)
    with for_the_command_line():
        assert str(ConfigError(text)) == worded(text) == text
    assert str(ConfigError(text)) == (said or text)


def test_an_error_keeps_what_it_was_given() -> None:
    error = Interrupted("stopped; --lr", signal_number=2)
    assert error.args == ("stopped; --lr",)
    assert str(error) == "stopped; lr"
    assert error.exit_code == 130


def test_the_command_line_names_flags(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> None:
        raise ConfigError("give --lr")

    assert _run(failing) == 2
    assert "give --lr" in capsys.readouterr().err
    assert worded("give --lr") == "give lr"


def test_notes_are_worded_as_errors_are() -> None:
    stream = io.StringIO()
    told = Terminal(stream)
    told.warn("raise --memory-gb")
    told.say("raise --threads")
    assert stream.getvalue() == "warning: raise memory_gb\nraise threads\n"
