"""A container's quota counts, not the machine it runs on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fieldmark.machine.cores import cores


@pytest.fixture(autouse=True)
def _sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),
        ("10000 100000\n", 1),
        ("6400000 100000\n", 16),
        ("", 16),
        ("0 0\n", 16),
    ],
)
def test_a_quota_of_the_second_kind(tmp_path: Path, text: str, wanted: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores(tmp_path) == wanted


@pytest.mark.parametrize(("quota", "wanted"), [("-1", 16), ("400000", 4)])
def test_a_quota_of_the_first_kind(tmp_path: Path, quota: str, wanted: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores(tmp_path) == wanted


def test_no_control_group_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores(tmp_path) == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores(tmp_path) == 1
