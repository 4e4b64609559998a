"""The heap is kept and given back, in a process of its own; elsewhere nothing happens."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fieldmark.errors import ConfigError
from fieldmark.machine import process

glibc = pytest.mark.skipif(process._glibc() is None, reason="the C library is not glibc")

FAULTS = """
import resource, sys
from fieldmark.machine import process
kept = process.keep_heap()
block = bytearray(64 << 20)  # touches every page
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    block = bytearray(64 << 20)
    del block
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
held = resident()
process.trim_heap()
print(kept, faults, held - resident())
"""


def run(**environment: str) -> tuple[bool, int, int]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | environment
    out = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True
    ).stdout
    kept, faults, given_back = out.split()
    return kept == "True", int(faults), int(given_back)


@glibc
def test_a_kept_heap_faults_once_and_is_given_back_at_the_end() -> None:
    kept, faults, given_back = run()
    assert kept
    assert faults < 1000  # a block of 64 MiB has 16,384 pages
    assert given_back > 60 << 20


@glibc
def test_the_users_word_leaves_the_heap_alone() -> None:
    kept, faults, given_back = run(FIELDMARK_HEAP="system")
    assert not kept
    assert faults > 1000 or given_back == 0
    assert given_back < 1 << 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(os, "confstr", unknown, raising=False)
    process.keep_heap.cache_clear()
    try:
        assert process.keep_heap() is False
        process.trim_heap()
    finally:
        process.keep_heap.cache_clear()


def test_a_word_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.HEAP, "fast")
    process.keep_heap.cache_clear()
    try:
        with pytest.raises(ConfigError, match="FIELDMARK_HEAP is 'fast'"):
            process.keep_heap()
    finally:
        process.keep_heap.cache_clear()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_spin_less_unless_told(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    process.spin_less()
    found = os.environ.pop("GOMP_SPINCOUNT", None)
    assert found == after
