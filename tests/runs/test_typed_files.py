"""What a run writes, byte for byte, and what becomes of a run whose files are damaged or edited."""

from __future__ import annotations

import base64
import contextlib
import copy
import csv
import dataclasses
import functools
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fieldmark
from fieldmark.cli import _run, app
from fieldmark.data.dataset import BadFile, Dataset, Part
from fieldmark.errors import RunError
from fieldmark.fit.doctor import Finding
from fieldmark.fit.state import EpochRecord
from fieldmark.pages import figures
from fieldmark.pages import report as reporting
from fieldmark.pages.html import templates
from fieldmark.runs import choice as choice_file
from fieldmark.runs import doctor as doctor_file
from fieldmark.runs import (
    environment,
    gallery,
    history,
    incidents,
    ledger,
    manifest,
    predictions,
    scores,
)
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import ModelInfo
from fieldmark.scoring.metrics import scores as judged
from fieldmark.settings.config import DataFacts

JSON = (
    "choice.json",
    "doctor.json",
    "data.json",
    "evaluation.json",
    "gallery.json",
    "environment.json",
    "model.json",
)
TEMPLATES = functools.cache(templates)
"""Compiled once; that is most of what a page costs."""
STRANGE: tuple[Any, ...] = ("text", -3, 0.5, True, None, [], {}, 10**30)
"""Values of every kind that JSON has; a field takes a few of them at most."""


# --- what is written -------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "r", name="x")


def test_the_bytes_of_predictions(empty: RunDirectory) -> None:
    answers = [
        predictions.Answer(
            part="val", file='=a,"b".png', label="=x", predicted="=x", prob=0.1 + 0.2,
            label_prob=0.1 + 0.2, correct=True,
        ),
        predictions.Answer(
            part="test", file="two\nlines\r\n.png", label="'q", predicted="猫", prob=1.0,
            label_prob=1e-9, correct=False,
        ),
    ]  # fmt: skip
    predictions.write(empty, answers)
    assert (empty.path / "predictions.csv").read_bytes() == (
        b"\xef\xbb\xbfpart,file,label,predicted,prob,label_prob,correct\r\n"
        b'val,"\'=a,""b"".png",\'=x,\'=x,0.30000000,0.30000000,1\r\n'
        b"test,\"two\nlines\r\n.png\",''q,\xe7\x8c\xab,1.00000000,0.00000000,0\r\n"
    )
    first, second = predictions.read(empty)
    assert first == dataclasses.replace(answers[0], prob=0.3, label_prob=0.3)
    assert second == dataclasses.replace(answers[1], label_prob=0.0)


def test_the_bytes_of_the_scores(empty: RunDirectory) -> None:
    """Two pictures of two classes, one right, each with a probability of 3/4 for its answer."""
    logits = np.log([[3.0, 1.0], [3.0, 1.0]])
    found = judged(logits, np.array([0, 1]), part="val", class_names=("a", "\udcff"))
    found = dataclasses.replace(  # figures of many digits: those are the metrics' own tests
        found, low=0.1, high=0.9, loss=0.5, ece=0.25, ece_uncalibrated=0.25, macro_f1=1 / 3,
        bins=tuple(dataclasses.replace(b, confidence=0.75) for b in found.bins),
        per_class=tuple(
            dataclasses.replace(c, f1=None if c.f1 is None else 0.5) for c in found.per_class
        ),
    )  # fmt: skip
    scores.write(empty, scores.Evaluation(parts={"val": found}), data="other")
    text = """{
  "format": 1,
  "parts": {
    "val": {
      "part": "val",
      "n": 2,
      "accuracy": 0.5,
      "low": 0.1,
      "high": 0.9,
      "top5": null,
      "loss": 0.5,
      "macro_f1": 0.3333333333333333,
      "balanced_accuracy": 0.5,
      "temperature": 1.0,
      "ece": 0.25,
      "ece_uncalibrated": 0.25,
      "bins": [
        {
          "confidence": 0.75,
          "accuracy": 0.5,
          "n": 2
        }
      ],
      "per_class": [
        {
          "name": "a",
          "n": 1,
          "precision": 0.5,
          "recall": 1.0,
          "f1": 0.5
        },
        {
          "name": "\\udcff",
          "n": 1,
          "precision": null,
          "recall": 0.0,
          "f1": 0.5
        }
      ],
      "confusion": [
        [
          0,
          0,
          1
        ],
        [
          1,
          0,
          1
        ]
      ]
    }
  }
}
"""
    assert (empty.path / "evaluation-other.json").read_text("utf-8") == text
    assert scores.read(empty, data="other").parts == {"val": found}


def test_the_bytes_of_the_manifest(empty: RunDirectory) -> None:
    def part(*rows: tuple[str, int, str]) -> Part:
        keys, labels, digests = zip(*rows, strict=True)
        return Part(keys=keys, labels=np.array(labels), digests=digests)

    parts = {
        "train": part(("猫/1.png", 1, "aa"), ("a/2.png", 0, "bb")),
        "val": part(("3", 1, "cc")),
    }
    facts = DataFacts(num_classes=2, num_train=2, smallest_class=1, largest_class=1, median_side=0)
    fingerprint = "c42cd2df6c9a3d7e4ad0f1a3b7a4b29f"
    dataset = Dataset(
        name="pets", class_names=("a", "猫"), parts=parts, read=lambda key: None, facts=facts,  # type: ignore[return-value]
        fingerprint=fingerprint, bad=(BadFile("x.png", "truncated", "at 3"),), notes=("n",),
    )  # fmt: skip
    described = manifest.describe_data(dataset, path="../pets")
    manifest.write(empty, described)
    change = (
        '{"after_step": 5, "from": "f", "added": ["x"], "gone": [], "changed": [], '
        '"warning": "w", "when": "2026"}'
    )
    text = (
        '{"format": 1, "name": "pets", "path": "../pets", "class_names": ["a", "猫"], '
        '"counts": {"train": [1, 1], "val": [0, 1]}, '
        f'"fingerprint": "{fingerprint}", '
        '"bad": [{"file": "x.png", "reason": "truncated", "detail": "at 3"}], '
        '"notes": ["n"], "warnings": [], '
        '"parts": {"train": [["猫/1.png", 1, "aa"], ["a/2.png", 0, "bb"]], '
        '"val": [["3", 1, "cc"]]}}\n'
    )
    assert (empty.path / "data.json").read_text("utf-8") == text
    recorded = manifest.RecordedChange(
        after_step=5, from_="f", added=("x",), gone=(), changed=(), warning="w", when="2026"
    )
    manifest.write(empty, dataclasses.replace(described, changes=(recorded,)))
    text = text.replace("]]}}\n", f']]}}, "changes": [{change}]}}\n')
    assert (empty.path / "data.json").read_text("utf-8") == text


def test_the_bytes_of_the_gallery(empty: RunDirectory) -> None:
    item = gallery.Item(
        file="1.png", label="a", predicted="b", prob=0.75, label_prob=0.25, mime="image/jpeg",
        thumb="AAAA", heat="",
    )  # fmt: skip
    right = dataclasses.replace(item, predicted="a", heat=None)
    found = gallery.Gallery(part="test", mistakes=(item,), correct=(right,))
    gallery.write(empty, found)
    mistake = (
        '{"file": "1.png", "label": "a", "predicted": "b", "prob": 0.75, "label_prob": 0.25, '
        '"mime": "image/jpeg", "thumb": "AAAA"'
    )
    correct = mistake.replace('"predicted": "b"', '"predicted": "a"')
    assert (empty.path / "gallery.json").read_text() == (
        f'{{"format": 1, "part": "test", "mistakes": [{mistake}, "heat": ""}}], '
        f'"correct": [{correct}}}]}}\n'
    )
    assert gallery.read(empty) == found


DIAGNOSIS = doctor_file.Diagnosis(
    findings=(
        Finding(code="one_class", cause="c", evidence="e", next="n", figures={"val_n": 30}),
        Finding(code="rolled_back", cause="c", evidence="e", next="n", figures={"lr": 0.5}),
    ),
    measured={"train": doctor_file.Measured(accuracy=0.75, n=40)},
)


CHOICE = choice_file.Choice(
    pictures=40,
    folds=3,
    seconds=2.5,
    tried=(
        choice_file.Tried(
            name="tiny", recipe="tiny", settings={"size": 8}, seconds=1.5, outcome="chosen",
            why="w", n=40, accuracy=0.75, loss=0.5, neighbours=0.5,
        ),
        choice_file.Tried(
            name="other", recipe="tiny", settings={}, seconds=1.0, outcome="stopped early", why="w",
            n=9, accuracy=0.5, loss=0.75, neighbours=float("nan"),
        ),
    ),
)  # fmt: skip


def test_the_bytes_of_the_choice(empty: RunDirectory) -> None:
    assert choice_file.read(empty) is None
    choice_file.write(empty, CHOICE)
    first = {"name": "tiny", "recipe": "tiny", "settings": {"size": 8}, "seconds": 1.5}
    second = {"name": "other", "recipe": "tiny", "settings": {}, "seconds": 1.0, "why": "w"}
    assert json.loads(empty.read_text("choice.json")) == {
        "format": 1, "pictures": 40, "folds": 3, "seconds": 2.5,
        "tried": [
            {**first, "outcome": "chosen", "why": "w", "n": 40, "accuracy": 0.75, "loss": 0.5,
             "neighbours": 0.5},
            {**second, "outcome": "stopped early", "n": 9, "accuracy": 0.5, "loss": 0.75,
             "neighbours": None},
        ],
    }  # fmt: skip
    assert repr(choice_file.read(empty)) == repr(CHOICE)  # NaN is not equal to itself


def test_the_bytes_of_the_diagnosis(empty: RunDirectory) -> None:
    healthy = doctor_file.Diagnosis(findings=(), measured={})
    assert doctor_file.read(empty) is None
    doctor_file.write(empty, healthy)
    text = '{\n  "format": 1,\n  "findings": [],\n  "measured": {}\n}\n'
    assert empty.read_text("doctor.json") == text
    doctor_file.write(empty, dataclasses.replace(DIAGNOSIS, findings=DIAGNOSIS.findings[:1]))
    found = json.loads(empty.read_text("doctor.json"))
    figures = {"val_n": 30}
    finding = {"code": "one_class", "cause": "c", "evidence": "e", "next": "n", "figures": figures}
    assert found == {
        "format": 1, "findings": [finding], "measured": {"train": {"accuracy": 0.75, "n": 40}},
    }  # fmt: skip
    empty.write_json("doctor.json", {**found, "findings": [finding, finding]})
    with pytest.raises(RunError, match=r"findings\.1\.code is 'one_class', which stands twice"):
        doctor_file.read(empty)


EPOCH = EpochRecord(
    epoch=0, step=0, lr=0.1, train_loss=float("nan"), train_accuracy=0.5, val_loss=float("inf"),
    val_accuracy=1.0, val_macro_f1=0.25, seconds=1.5, images_per_second=8.0, data_wait=0.0,
    best=True,
)  # fmt: skip


def test_the_bytes_of_the_epochs(empty: RunDirectory) -> None:
    later = dataclasses.replace(EPOCH, epoch=1, step=3, best=False, train_loss=2.0, val_loss=1e-07)
    empty.write("metrics.jsonl", history.encode([EPOCH, later]))
    rest = '"train_accuracy": 0.5, "val_loss": %s, "val_accuracy": 1.0, "val_macro_f1": 0.25, '
    times = '"seconds": 1.5, "images_per_second": 8.0, "data_wait": 0.0, "best": %s}\n'
    assert empty.read_text("metrics.jsonl") == (
        '{"epoch": 0, "step": 0, "lr": 0.1, "train_loss": null, '
        + rest % "null" + times % "true"
        + '{"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 2.0, '
        + rest % "1e-07" + times % "false"
    )  # fmt: skip
    first, second = history.read(empty)
    assert np.isnan([first.train_loss, first.val_loss]).all()
    assert second == later
    assert fieldmark.Run(empty).history[0]["val_loss"] is None
    assert history.encode_table([later]).splitlines()[1] == (
        b"1,3,0.1,2.0,0.5,1e-07,1.0,0.25,1.5,8.0,0.0,False"
    )


def test_no_epoch_and_no_incident_is_no_file(empty: RunDirectory) -> None:
    assert history.read(empty) == ()
    assert incidents.read(empty) == ()
    empty.write("incidents.json", incidents.encode(["out of memory"]))
    assert empty.read_text("incidents.json") == (
        '{\n  "format": 1,\n  "incidents": [\n    "out of memory"\n  ]\n}\n'
    )
    assert incidents.read(empty) == ("out of memory",)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1.5", '"long"', r"line 2: seconds is 'long', but must be a number from 0 on"),
        ('"epoch": 1', '"epoch": 7', r"line 2: epoch is 7, after 0"),
        (', "data_wait": 0.0', "", r"line 2: it lacks data_wait"),
        ('"best": false', '"best": false, "worst": 1', r"line 2: worst is unknown"),
        ('"step": 3', '"step": 3, "step": 3', r"line 2 is not valid JSON: a key is there twice"),
    ],
)
def test_an_edited_epoch_is_named(empty: RunDirectory, old: str, new: str, words: str) -> None:
    lines = history.encode([EPOCH, dataclasses.replace(EPOCH, epoch=1, step=3, best=False)])
    first, second, _ = lines.decode().split("\n")
    assert old in second
    empty.write("metrics.jsonl", f"{first}\n{second.replace(old, new, 1)}\n".encode())
    with pytest.raises(RunError, match=r"metrics\.jsonl " + words):
        history.read(empty)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 3}, "name is 3, but must be a text"),
        ({"memory": {"a": "much"}}, "memory.a is 'much', but must be a whole number"),
        ({"request": {"models": ["a"]}}, "request lacks seeds"),
        ({"extra": 1}, "extra is unknown"),
    ],
)
def test_an_edited_comparison_is_named(
    empty: RunDirectory, change: dict[str, Any], words: str
) -> None:
    asked = ledger.Asked(models=("a", "b"), seeds=1, recipe="auto", settings={"lr": 0.1})
    found = ledger.Ledger(
        name="x", path="x", fingerprint="f", request=asked, memory={"a": 5}, results=None
    )
    ledger.write(empty, found)
    assert ledger.read(empty) == found
    empty.write_json("compare.json", {**empty.read_json("compare.json"), **change})
    with pytest.raises(RunError, match=rf"compare\.json: {words}"):
        ledger.read(empty)


# --- a whole run, damaged --------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with mistakes, a class that has no test picture, and names that are not plain."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    draw = np.random.default_rng(0)
    for name, count in {"=a": 9, "猫": 9, "lone": 1}.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    out = tmp_path_factory.mktemp("runs") / "whole"
    settings = {"model": "small_cnn(width=2)", "size": 8, "epochs": 2, "threads": 1}
    settings["norm_statistics"] = "running"  # which leaves mistakes for the gallery
    fieldmark.train(folder, out=out, progress=False, **settings)
    (out / "incidents.json").write_bytes(incidents.encode(["out of memory"]))
    doctor_file.write(RunDirectory(out), DIAGNOSIS)
    choice_file.write(RunDirectory(out), CHOICE)
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage. Nothing is drawn or written: only what is said of the files matters."""
    drawn = figures.curves([("x", [])])
    for name in ("curves", "confusion", "calibration"):
        monkeypatch.setattr(figures, name, lambda *_, **__: drawn)
    monkeypatch.setattr(RunDirectory, "write", lambda *_: None)
    monkeypatch.setattr(reporting, "write_atomic", lambda *_: None)
    monkeypatch.setattr(reporting, "templates", TEMPLATES)
    light = [*JSON, "metrics.jsonl", "predictions.csv", "incidents.json", "config.json"]
    (tmp_path / "run").mkdir()
    for name in light:
        shutil.copy(whole / name, tmp_path / "run" / name)
    return tmp_path / "run"


def reported(run: Path) -> tuple[int, str]:
    """The exit code of ``fieldmark report`` and what it says; any other exception comes through."""
    said = io.StringIO()
    words = ["report", str(run)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = _run(lambda: app(words, exit_on_error=False, result_action="return_value"))
    return code, said.getvalue()


Route = tuple[str | int, ...]


def routes(value: Any, route: Route = ()) -> Iterator[Route]:
    """The way to every value in a JSON value; of long lists to the first and the last alone."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, content in inner:
        if isinstance(value, list) and 0 < key < len(value) - 1:
            continue
        yield (*route, key)
        if isinstance(content, dict | list):
            yield from routes(content, (*route, key))


def at(value: Any, route: Route) -> Any:
    for key in route:
        value = value[key]
    return value


READERS: dict[str, Callable[[RunDirectory], object]] = {
    "data.json": manifest.read,
    "evaluation.json": scores.read,
    "gallery.json": gallery.read,
    "environment.json": environment.read,
    "incidents.json": incidents.read,
    "doctor.json": doctor_file.read,
    "choice.json": choice_file.read,
    "model.json": lambda run: ModelInfo.from_json(
        run.read_text("model.json"), where=str(run.path / "model.json")
    ),
    "config.json": RunDirectory.config,
}


def refusal(run: Path, name: str, value: object) -> str:
    """What the file's reader says of a value in its place; empty if it takes it."""
    (run / name).write_text(json.dumps(value), "utf-8")
    try:
        READERS[name](RunDirectory(run))
    except RunError as error:
        assert str(run / name) in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize("name", READERS)
def test_every_field_of_another_kind_is_named(run: Path, name: str) -> None:
    """Or it is taken, where the value is one that the field may have; then the page takes it."""
    good = json.loads((run / name).read_text("utf-8"))
    assert refusal(run, name, good) == ""
    assert reported(run) == (0, "")
    refused = 0
    for route in routes(good):
        kind = type(at(good, route))
        for strange in STRANGE:
            bad = copy.deepcopy(good)
            at(bad, route[:-1])[route[-1]] = strange
            said = refusal(run, name, bad)
            if said:
                refused += 1
                assert any(key in said for key in route if isinstance(key, str)), (route, said)
                continue
            alike = {int, float} if kind in (int, float) else {kind}
            if "settings" not in route:  # those of a candidate are of any plain kind
                assert strange is None or kind is type(None) or type(strange) in alike, route
            if name != "config.json":  # settings are only shown
                assert reported(run) == (0, ""), (route, strange)
    assert refused > 15
    assert reported(run)[0] in (0, 4)


@pytest.mark.parametrize("name", READERS)
def test_missing_and_unknown_fields_are_named(run: Path, name: str) -> None:
    good = json.loads((run / name).read_text("utf-8"))
    for route in [(), *routes(good)]:
        value = at(good, route)
        if not isinstance(value, dict) or route[-1:] in (
            ("figures",),
            ("settings",),
        ):  # which has any names
            continue
        for key in value:
            bad = copy.deepcopy(good)
            del at(bad, route)[key]
            optional = key in ("heat", "value") or (route == ("input",) and key != "size")
            optional = optional or (name, key) == ("config.json", "range")  # runs from before it
            named_freely = (("evaluation.json", ("parts",)), ("doctor.json", ("measured",)))
            if optional or (name, route) in named_freely:
                assert refusal(run, name, bad) == ""
                assert reported(run) == (0, "")
            else:
                assert key in refusal(run, name, bad)
        bad = copy.deepcopy(good)
        at(bad, route)["novel"] = 1
        assert "novel" in refusal(run, name, bad), route
        code, said = reported(run)
        assert code == 4
        assert name in said and "novel" in said


@pytest.mark.parametrize("name", [*JSON, "metrics.jsonl", "incidents.json", "config.json"])
def test_flipped_bits_are_no_traceback(run: Path, name: str) -> None:
    whole = (run / name).read_bytes()
    draw = random.Random(name)
    for _ in range(50):
        broken = bytearray(whole)
        broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (run / name).write_bytes(bytes(broken))
        code, said = reported(run)
        assert code == 0 or (code == 4 and name in said), said


def test_flipped_bits_of_predictions_are_no_traceback(run: Path) -> None:
    directory = RunDirectory(run)
    whole = (run / "predictions.csv").read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        broken = bytearray(whole)
        broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (run / "predictions.csv").write_bytes(bytes(broken))
        try:
            predictions.read(directory)
        except RunError as error:
            refused += 1
            assert "predictions.csv" in str(error)
    assert refused > 50


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("part", "tset", "part is 'tset', but must be train, val or test"),
        ("prob", "sure", "prob is 'sure', but must be a number from 0 to 1"),
        ("prob", "nan", "prob is 'nan'"),
        ("label_prob", "1.5", "label_prob is '1.5'"),
        ("correct", "yes", "correct is 'yes', which does not fit"),
        ("correct", "", "correct is ''"),
    ],
)
def test_an_edited_prediction_is_named(run: Path, column: str, value: str, words: str) -> None:
    text = (run / "predictions.csv").read_text("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    rows[1][column] = value
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (run / "predictions.csv").write_text(file.getvalue(), "utf-8", newline="")
    with pytest.raises(RunError, match=rf"predictions\.csv: line 3: {words}.*fieldmark evaluate"):
        predictions.read(RunDirectory(run))


def test_files_that_are_no_table_are_refused(run: Path) -> None:
    whole = (run / "predictions.csv").read_text("utf-8-sig")
    head, first, *_ = whole.splitlines()
    for text, words in (
        ("", "is empty"),
        (f"{head},more\r\n", "the columns are not part, file"),
        (f"{first}\r\n", "the columns are not"),
        (f"{head}\r\n{first},more\r\n", "line 2 has 8 cells, not 7"),
        (f'{head}\r\n"{first}\r\n', "line 2: unexpected end"),
    ):
        (run / "predictions.csv").write_text(text, "utf-8", newline="")
        with pytest.raises(RunError, match=rf"predictions\.csv.*{words}"):
            predictions.read(RunDirectory(run))


def test_figures_that_do_not_agree_are_named(run: Path) -> None:
    good = json.loads((run / "evaluation.json").read_text("utf-8"))
    cells, n = good["parts"]["test"]["confusion"], good["parts"]["test"]["n"]
    (true, predicted, count) = cells[0]
    for change, words in (
        ({"confusion": [[3, 0, 1], *cells]}, "parts.test.confusion.0 is of class 3, but of 3"),
        ({"confusion": [*cells, cells[0]]}, "confusion has a cell twice"),
        ({"confusion": [[true, predicted, count + 1], *cells[1:]]}, "per_class.0.n is"),
        ({"n": n + 1}, f"n is {n + 1}, but confusion has {n} pictures"),
        ({"accuracy": 0.123}, "accuracy is 0.123, but"),
        ({"low": 1.0, "high": 0.0}, "low and high are 1.0 and 0.0"),
        ({"part": "val"}, "parts.test.part is 'val', but must be 'test'"),
    ):
        bad = copy.deepcopy(good)
        bad["parts"]["test"].update(change)
        (run / "evaluation.json").write_text(json.dumps(bad), "utf-8")
        code, said = reported(run)
        assert code == 4
        assert words in said and "evaluation.json" in said
    bad = {"format": 1, "parts": {"tset": good["parts"]["test"]}}
    (run / "evaluation.json").write_text(json.dumps(bad), "utf-8")
    assert "parts.tset is 'tset', but must be train, val or test" in reported(run)[1]


def test_thumbnails_are_the_pictures(run: Path) -> None:
    """The gallery's pictures open, so what the damage tests start from is not damaged."""
    found = gallery.read(RunDirectory(run))
    assert found.mistakes
    for item in (*found.mistakes, *found.correct):
        Image.open(io.BytesIO(base64.b64decode(item.thumb))).verify()
