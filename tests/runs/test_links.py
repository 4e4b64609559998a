"""A run directory from a stranger: links in it lead no write to a file outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fieldmark
from fieldmark.cli import _run, app
from fieldmark.errors import RunError
from fieldmark.files.lock import only_writer
from fieldmark.files.writing import new_folder, write_again, write_atomic
from fieldmark.jobs import compare
from fieldmark.runs import ledger as ledgers
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.ledger import Ledger

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")

NAMES = (
    *("config.json", "data.json", "metrics.jsonl", "environment.json", "results.csv", "model.json"),
    *("incidents.json", "last.ckpt", "previous.ckpt", "model.safetensors", "final.safetensors"),
    *(
        "best.safetensors",
        "evaluation.json",
        "predictions.csv",
        "gallery.json",
        "doctor.json",
        "choice.json",
        "budget.json",
        "preview.png",
    ),
    *("curves.png", "confusion.png", "predictions.png", "report.html", "bad_files.csv"),
    *("log.txt", ".lock", "evaluation-others.json", "predictions-others.csv", "compare.json"),
    *("model.onnx", "model_int8.onnx", "model.keras", "model_timm", "model_openvino"),
    *("import.json", "answers.csv", "comparison.html", "comparison.csv"),
)
"""Every name that is written; a part of each is written, too."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, the same under another name, and a finished run."""
    place = tmp_path_factory.mktemp("links")
    rng = np.random.default_rng(0)
    for name in ("pictures", "others"):
        for label, light in (("dark", 0), ("light", 120)):
            (place / name / label).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(light, light + 130, (8, 8, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / name / label / f"{i}.png")
    fieldmark.train(
        place / "pictures",
        out=place / "run",
        model="small_cnn(width=2)",
        size=8,
        epochs=2,
        threads=1,
        progress=False,
    )
    return place


def told(words: list[str]) -> int:
    """The exit code of a command."""
    return _run(lambda: app(words, result_action="return_value"))


def symbolic(name: Path, target: Path) -> None:
    name.symlink_to(target)


def hard(name: Path, target: Path) -> None:
    os.link(target, name)


def link_all(run: Path, outside: Path, link: Callable[[Path, Path], None]) -> dict[str, bytes]:
    """Make a link to a file outside of every name; what is there goes there. Returns the canaries.

    ``.lock`` and ``log.txt``, which are refused, stay without one, as have their own tests.
    """
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    for name in [*NAMES, *(f".{name}.part" for name in NAMES)]:
        file = run / name
        if name in (".lock", "log.txt"):
            continue
        if file.is_file():
            (outside / name).write_bytes(file.read_bytes())
            file.unlink()
        elif name.endswith((".part", ".csv", ".html", ".onnx", ".png")):
            (outside / name).write_bytes(b"canary")
        elif link is symbolic:
            link(file, outside / "dangling" / name)
            continue
        else:
            continue
        link(file, outside / name)
    return {path.name: path.read_bytes() for path in outside.iterdir()}


COMMANDS = (
    "evaluate RUN",
    "evaluate RUN --data PLACE/others",
    "report RUN",
    "resume RUN",
    "predict RUN PLACE/pictures --csv RUN/answers.csv",
)
EXPORTS = tuple(f"export RUN --to {to}" for to in ("onnx", "keras", "timm", "openvino"))


@pytest.mark.parametrize("link", [symbolic, hard])
@pytest.mark.parametrize(
    ("commands", "kept"),
    [
        (COMMANDS, True),
        (["resume RUN"], False),
        pytest.param(EXPORTS, True, marks=pytest.mark.slow),
    ],
)
def test_no_command_writes_through_a_link(
    place: Path,
    tmp_path: Path,
    link: Callable[[Path, Path], None],
    commands: Sequence[str],
    kept: bool,
) -> None:
    run, outside = place / "copy", tmp_path / "outside"
    for command in commands:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(place / "run", run)
        if not kept:  # killed in training: everything is written
            for name in (
                "evaluation.json",
                "report.html",
                "model.safetensors",
                "final.safetensors",
            ):
                (run / name).unlink()
        canaries = link_all(run, outside, link)
        words = command.replace("RUN", str(run)).replace("PLACE", str(place)).split()
        code = told(words)
        assert code in ((0,) if words[0] != "export" else (0, 2, 4, 6)), command
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == canaries, command


@pytest.mark.parametrize("name", [".lock", "log.txt"])
@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_what_is_written_in_place_is_refused_where_it_is_a_link(
    place: Path, tmp_path: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, canary = shutil.copytree(place / "run", tmp_path / "run"), tmp_path / "canary"
    canary.write_bytes(b"as it was")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(canary)
    assert told([command, str(run)]) == 4
    error = capsys.readouterr().err
    assert f"{run / name} is a link" in error
    assert "remove it" in error
    canary.unlink()
    assert told([command, str(run)]) == 4
    assert not canary.exists()


def test_a_lock_with_a_second_name_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"as it was")
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / ".lock"
    for what in ("hard link", "no ordinary file"):
        if what == "hard link":
            os.link(canary, lock)
        else:
            os.mkfifo(lock)
        with pytest.raises(RunError, match=what), only_writer(tmp_path / "run"):
            pytest.fail("written")
        lock.unlink()
    assert canary.read_bytes() == b"as it was"


def test_a_log_with_a_second_name_is_added_to_alone(place: Path, tmp_path: Path) -> None:
    """A backup of hard links keeps what it has."""
    run = RunDirectory(shutil.copytree(place / "run", tmp_path / "run"))
    run.log("before")
    os.link(run.path / "log.txt", tmp_path / "backup")
    before = (tmp_path / "backup").read_bytes()
    with run.writing():
        run.log("after")
    assert (tmp_path / "backup").read_bytes() == before
    assert (run.path / "log.txt").read_bytes() == before + b"after\n"


@pytest.mark.parametrize("write", [write_atomic, write_again])
@pytest.mark.parametrize("link", [symbolic, hard])
def test_a_part_that_is_a_link_is_not_written_through(
    tmp_path: Path, write: Callable[..., None], link: Callable[[Path, Path], None]
) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"as it was")
    for name in (".a.part", f".a.{os.getpid()}.{threading.get_ident()}.part"):
        link(tmp_path / name, canary)
    link(tmp_path / "a", canary)
    write(tmp_path / "a", b"new")
    assert canary.read_bytes() == b"as it was"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "a").is_symlink()


def test_compare_leaves_a_linked_runs_folder(place: Path, tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "comparison"
    outside.mkdir()
    out.mkdir()
    models = ("small_cnn(width=2)", "small_cnn(width=3)")
    settings = {"epochs": 1, "size": 8}
    request = compare.Request(models=models, seeds=1, recipe="auto", settings=settings)
    ledger = Ledger(
        name="x", path="", fingerprint="", request=request.asked(), memory={}, results=None
    )
    ledgers.write(RunDirectory(out), ledger)
    (out / next(request.runs()).folder).symlink_to(outside)
    with pytest.raises(RunError, match="is a link"):
        compare.compare(str(place / "pictures"), models=models, seeds=1, settings=settings, out=out)
    assert not list(outside.iterdir())


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """And a folder that a living process fills stays."""
    filling = (
        "import sys, pathlib\n"
        "from fieldmark.files.writing import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as part:\n"
        "    (part / 'model.onnx').write_bytes(b'half')\n"
        "    print('there', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    place = tmp_path / "model_openvino"

    def parts() -> int:
        return len(list(tmp_path.glob(".*.part")))

    other = subprocess.Popen(
        [sys.executable, "-c", filling, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    RunDirectory(tmp_path).clean()
    assert parts() == 1
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with new_folder(place) as part:
        assert parts() == 1
        (part / "model.xml").write_bytes(b"whole")
    assert parts() == 0
    assert [path.name for path in place.iterdir()] == ["model.xml"]
