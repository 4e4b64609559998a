"""Inputs of public bug reports, in ../shared/cases: what each of their commands must say now.

The scripts there were written for an older layout of the package: its module names are taken for
those of today.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not here"),
]

ALIASES = """
import importlib, importlib.abc, importlib.util, sys
OLD = {
    "fieldmark.data.decode": "fieldmark.pictures.decode",
    "fieldmark.metrics": "fieldmark.scoring.metrics",
}
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in OLD else None
    def create_module(self, spec):
        return importlib.import_module(OLD[spec.name])
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Finder())
"""
DAMAGED = (
    *("cut_with_end_marker", "sector_of_zeros", "sector_of_noise", "bytes_missing"),
    *("tail_zeroed_with_end_marker", "two_halves"),
)
DEEP = (
    "--recipe tiny --epochs 30 --batch-size 8 --augment none --model 'small_cnn(width=8)' "
    "--size 48 --split 0.6/0.2/0.2"
)
RENAMED = r"""sed -i 's/scores(v, labels, /scores(v, labels, part="val", /
s/\[str(i) for i in range(k)\]/tuple(map(str, range(k)))/' memory.py; """
SIDE = "--recipe tiny --epochs 1 --model 'small_cnn(width=2)' --size 16"

EXPECTED: dict[str, tuple[str, list[str], list[str]]] = {
    "01-compile-truth": ("sh repro.sh", [r"report: .*compiled"], ["Traceback", "TypeError"]),
    "02-jpeg-damaged-inside": (
        "$PY make.py; $FM predict $W/../run pictures/ 2>&1 || true",
        [
            r"whole +accepted, notes \(\), 0%",
            *(rf"(?m)^{name} +(?!accepted)\S" for name in DAMAGED),
        ],
        [],
    ),
    "03-png-stream-short": (
        "$PY make.py",
        [
            r"(?m)^whole +without the flag: accepted \(\), 0 black rows +with it: accepted \(\), 0",
            *(
                rf"(?m)^{name} +without the flag: (?!accepted).* with it: (?!accepted)"
                for name in ("rows_missing", "short_stream", "bad_deflate", "bad_adler")
            ),
        ],
        [],
    ),
    "04-twelve-bits": (
        f"$PY make.py; for d in b12 b16; do $FM train $d {DEEP} --out o_$d; done",
        [r"(?s)val: accuracy (0\.9|1\.0).*val: accuracy (0\.9|1\.0)"],
        ["Traceback"],
    ),
    "05-float-just-over-one": (
        "$PY make.py",
        [
            r"float, 0 to 1 .*0\.\.255",
            r"float, 0 to 1, one pixel of 1.001 .*0\.\.255",
            r"float, 0 to 1, one pixel of -0.001 .*0\.\.255",
        ],
        ["Traceback"],
    ),
    "06-tiff-read-wrongly": (
        "$PY make.py",
        [
            r"grey_white_is_zero_16 +pixel \(50, 10\) is \[200, 200, 200\]",
            r"grey_white_is_zero_float +pixel \(50, 10\) is \[200, 200, 200\]",
            r"grey_white_is_zero_16_big_endian +pixel \(50, 10\) is \[200, 200, 200\]",
            r"rgb_16_planar +pixel \(50, 10\) is \[200, 50, 120\]",
            r"rgb_nir_16_marked_opacity +pixel \(50, 10\) is \[200, 50, 120\]",
        ],
        ["string index out of range", "unknown pixel mode"],
    ),
    "07-sidecar-tiffs": (
        f"$PY make.py; $FM train side {SIDE} --out o_side 2>&1 || true",
        [r"unsupported format \(raw photograph, DNG\)", r"pictures +train 8, val 2, test 2"],
        [],
    ),
    "08-parts-as-classes": (
        f"$PY make.py; for d in lay/*/; do echo = $d; $FM train $d --preview {SIDE} --out o; done",
        [r"= lay/intel.*"],
        [r"classes \((seg_|train_|flowers_|1_|fold_)", "Traceback"],
    ),
    "09-nas-trash": (
        f"$PY make.py; $FM train nas --preview {SIDE} --out o_nas",
        [r"data +nas: 2 classes"],
        ["recycle", "Recently"],
    ),
    "11-device-names": (
        "sh repro.sh",
        [
            r"exit 2: predict --device gpu",
            r"exit 2: serve --device cuda:0,1",
            r"--num-classes is -5",
        ],
        [r"exit [013456]: ", "Traceback"],
    ),
    "12-threads-first-use": ("sh repro.sh", [r"\d"], ["Error", "wrong [1-9]"]),
    "13-fork-after-predict": (
        "sh repro.sh",
        [r"cold child: disc", r"warm child: disc", r"warm-one-thread child: disc"],
        ["no answer"],
    ),
    "15-bytes-and-streams": ("sh repro.sh", [r"bytes"], ["TypeError", "ValueError", "Attribute"]),
    "18-fifty-megapixels": ("sh repro.sh", [r"50mp.jpg: (disc|square)"], ["too many pixels"]),
    "19-many-classes-memory": (
        RENAMED + "sh repro.sh",
        [r"10000 pictures, 2000 classes: logits 152 MiB"],
        ["Traceback"],
    ),
    "21-lfs-pointers": ("sh repro.sh", [r"(?s)Git LFS.*Git LFS.*Git LFS"], ["Traceback"]),
    "23-train-longer": ("sh repro.sh", [r"is finished, after epoch 3", r"--from .*/run"], []),
    "90-all-right": ("$PY all_right.py", [r"all as they should be"], []),
}


@pytest.mark.parametrize("case", list(EXPECTED))
def test_case(case: str, tmp_path: Path) -> None:
    command, says, not_says = EXPECTED[case]
    cases = shutil.copytree(CASES, tmp_path / "cases")
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(ALIASES)
    paths = [str(hook), os.environ.get("PYTHONPATH", "")]
    work = tmp_path / "work" / "w"
    work.mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PY": sys.executable,
        "FM": f"{sys.executable} -m fieldmark",
        "W": str(work),
        "FIELDMARK_CACHE": str(tmp_path / "cache"),
    }
    needs_run = "$W/../run" in command
    if needs_run:
        command = f". ../run_base.sh; {command.replace('$W/../run', '$W/run')}"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=cases / case,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=580,
    )
    for pattern in says:
        assert re.search(pattern, done.stdout), f"{pattern!r} is not in:\n{done.stdout[-4000:]}"
    for pattern in not_says:
        assert not re.search(pattern, done.stdout), f"{pattern!r} is in:\n{done.stdout[-4000:]}"


def test_every_case_is_here() -> None:
    known = {folder.name for folder in CASES.iterdir() if folder.is_dir()}
    assert known - set(EXPECTED) <= {"16-checkpoints-of-others"}, "which tests/models makes itself"
