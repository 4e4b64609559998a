"""Run the numeric tests as processors with fewer instructions would compute them.

    python scripts/processors.py

oneDNN (convolutions, products of matrices) and torch's own loops choose their code by what the
processor can do; both can be told to do without. A test that passes only with one of these codes
would fail on somebody else's machine. Combinations that this processor lacks, and those that are
the same code as another one on it, are named and not run; ``--all`` runs the latter, too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMERIC = (
    "tests/augment",
    "tests/fit",
    "tests/jobs/test_explain.py",
    "tests/keras/test_augment_parity.py",
    "tests/keras/test_network_parity.py",
    "tests/keras/test_training_parity.py",
    "tests/machine/test_device.py",
    "tests/machine/test_small_maps.py",
    "tests/machine/test_tune.py",
    "tests/networks",
    "tests/pictures/test_inputs.py",
    "tests/scoring",
    "tests/settings/test_fast_cifar10.py",
    "tests/settings/test_tutorial_settings.py",
)
"""Tests whose outcome could depend on how a processor rounds."""
UNSET = "(unset)"
ONEDNN = {
    "AVX2": ("avx2",),
    "AVX512_CORE": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"),
    UNSET: (),
}
"""Values of ONEDNN_MAX_CPU_ISA, and what a processor must have for each to be what it says."""
ATEN = {"default": (), "avx2": ("avx2", "fma3"), UNSET: ()}
"""Values of ATEN_CPU_CAPABILITY, likewise."""


@dataclass(frozen=True)
class Row:
    """A combination and what became of it."""

    onednn: str
    aten: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    why_not: str = ""
    names: tuple[str, ...] = ()


def missing(onednn: str, aten: str) -> str:
    """Instructions that this processor lacks for a combination."""
    has = _capabilities()
    lacks = sorted({n for n in (*ONEDNN[onednn], *ATEN[aten]) if not has.get(n)})
    return f"this processor has no {', '.join(lacks)}" if lacks else ""


def same(onednn: str, aten: str) -> str:
    """The combination that computes by the same code on this processor; empty if none does."""
    has = _capabilities()
    most = {
        "AVX2": not (has.get("avx512_f") or has.get("avx_vnni")),
        "AVX512_CORE": not has.get("avx512_vnni"),
    }
    other = (
        UNSET if most.get(onednn) else onednn,
        UNSET if aten == "avx2" and not has.get("avx512_f") else aten,
    )
    return "" if other == (onednn, aten) else f"the same as {other[0]} with {other[1]}"


def _capabilities() -> dict[str, object]:
    import torch

    return getattr(torch.cpu, "get_capabilities", dict)()


def run(onednn: str, aten: str, tests: list[str]) -> Row:
    """Run the tests in a process of their own, told to do without."""
    environment = dict(os.environ)
    for name, value in (("ONEDNN_MAX_CPU_ISA", onednn), ("ATEN_CPU_CAPABILITY", aten)):
        environment.pop(name, None)
        if value != UNSET:
            environment[name] = value
    with tempfile.TemporaryDirectory(prefix="processors-") as folder:
        results = Path(folder) / "results.xml"
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", *tests]
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - begun
        if not results.exists():
            raise SystemExit(f"pytest did not start: {done.stdout}{done.stderr}")
        cases = list(ElementTree.parse(results).iter("testcase"))  # noqa: S314
    bad = [case for case in cases if any(each.tag in ("failure", "error") for each in case)]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Row(
        onednn,
        aten,
        passed=len(cases) - len(bad) - skipped,
        failed=len(bad) or int(done.returncode != 0),
        skipped=skipped,
        seconds=seconds,
        names=tuple(f"{case.get('classname')}::{case.get('name')}" for case in bad),
    )


def line(row: Row) -> str:
    """A row of the table, as text."""
    start = f"{row.onednn:12}  {row.aten:8}  "
    if row.why_not:
        return f"{start}not run: {row.why_not}"
    return f"{start}{row.passed:6}  {row.failed:6}  {row.skipped:7}  {row.seconds:7.0f}"


def main(argv: list[str] | None = None) -> int:
    """Run every combination that there is; 1 if a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tests", nargs="*", help="files or folders; the numeric ones if not given")
    parser.add_argument("--onednn", nargs="*", choices=list(ONEDNN), default=list(ONEDNN))
    parser.add_argument("--aten", nargs="*", choices=list(ATEN), default=list(ATEN))
    parser.add_argument("--all", action="store_true", help="also those that are the same code")
    given = parser.parse_args(argv)
    print("ONEDNN_MAX_…  ATEN_CPU  passed  failed  skipped  seconds", flush=True)
    rows = []
    for onednn, aten in itertools.product(given.onednn, given.aten):
        why_not = missing(onednn, aten) or ("" if given.all else same(onednn, aten))
        tests = given.tests or list(NUMERIC)
        rows.append(Row(onednn, aten, why_not=why_not) if why_not else run(onednn, aten, tests))
        print(line(rows[-1]), flush=True)
        for name in rows[-1].names:
            print(f"    failed: {name}", flush=True)
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
