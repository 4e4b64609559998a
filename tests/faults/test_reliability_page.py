"""``docs/reliability.md`` says what the results say, and what is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.faults.warm import ROOT

CRASHES = {
    "boundaries": 9,
    "cases": 2,
    "rows": [
        {"fault": "kill", "at": "write a", "code": -9, "went_on": "resume", "wrong": ""},
        {"fault": "kill", "at": "fsync a", "code": -9, "went_on": "train", "wrong": "metrics"},
    ],
}
HOSTILE = [
    {"item": "1", "input": "a|b\n<b>*x*", "expected": "exit 3", "seen": "\x1b[0m", "ok": True},
    {"item": "+", "input": "c", "expected": "exit 3", "seen": "exit 1", "ok": False},
]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with results in a folder of the test's own."""
    script = ROOT / "scripts" / "reliability_page.py"
    spec = importlib.util.spec_from_file_location("reliability_page", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_says_what_is_not_yet_run(made: ModuleType) -> None:
    assert made.page().count(made.NOT_RUN) == 5


def test_counts_and_names_what_broke_a_promise(made: ModuleType) -> None:
    (made.RESULTS / "crashes.json").write_text(json.dumps(CRASHES))
    page = made.page()
    assert "changes its files 9 times" in page
    assert "| kill | 2 | 0 | 1 | 1 | 1 |" in page
    assert "- **Not as promised**: kill at fsync a: metrics" in page
    assert "kill at write a" not in page


def test_inputs_are_inert_text(made: ModuleType) -> None:
    (made.RESULTS / "hostile.json").write_text(json.dumps(HOSTILE))
    page = made.page()
    assert "1 of 2 as expected" in page
    assert r"| 1 | a\|b &lt;b&gt;\*x\* | exit 3 | U+001B\[0m | as expected |" in page
    assert "| + | c | exit 3 | exit 1 | **not as expected** |" in page


def test_results_of_the_repository_are_shown(made: Any) -> None:
    """Whatever the scripts wrote last must be readable."""
    made.RESULTS = made.DOCS / "reliability"
    results = list(made.RESULTS.glob("*.json"))
    assert made.page().count(made.NOT_RUN) == 5 - len(results)
