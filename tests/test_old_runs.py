"""Runs that an older version made go on working: what they answered then, they answer now.

``old_runs/make.py`` made them and says what each is. Everything here goes through the command line
or the public names, as a user's own old runs do; nothing is said of where modules lie.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from fieldmark.cli import main
from tests.old_runs import pictures

HERE = Path(__file__).resolve().parent / "old_runs"
EXPECTED: dict[str, dict[str, Any]] = json.loads((HERE / "expected.json").read_text("utf-8"))
STOPPED = {"killed": 4, "stopped_within": 5, "stopped_choosing": 4}
"""Runs that are to be gone on with, and the epochs they were to have."""
FINISHED = [kind for kind, wanted in EXPECTED.items() if wanted["scores"]]
TOLERANCE = 1e-4
"""Of a probability: processors sum in different orders."""

Copy = Callable[[str], Path]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures, made once."""
    root = tmp_path_factory.mktemp("drawn")
    pictures.write_all(root)
    return root


@pytest.fixture
def old(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """Copies a run to where its pictures are beside it as they were; works from there."""
    monkeypatch.chdir(drawn)
    shutil.rmtree("runs", ignore_errors=True)

    def copy(kind: str) -> Path:
        shutil.copytree(HERE / kind, Path("runs") / kind)
        return Path("runs") / kind

    return copy


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """What a command prints as JSON; it must end well."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    return json.loads(out)


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def percent(accuracy: float) -> str:
    """How pages write an accuracy, up to the sign."""
    return f"{100 * accuracy:.1f}"


def check_answers(found: list[dict[str, Any]], wanted: dict[str, list[tuple[str, float]]]) -> None:
    """The same labels, and probabilities within the tolerance; no answer where there was none."""
    assert [answer["file"] for answer in found] == list(wanted)
    for answer, top in zip(found, wanted.values(), strict=True):
        if not top:
            assert answer["error"]
            continue
        assert (answer["label"], answer["label"]) == (top[0][0], answer["top"][0]["label"])
        probs = {row["label"]: row["prob"] for row in answer["top"]}
        assert probs == pytest.approx(dict(top), abs=TOLERANCE), answer["file"]


def test_every_run_is_in_the_tests() -> None:
    folders = {path.name for path in HERE.iterdir() if (path / "config.json").is_file()}
    assert folders == EXPECTED.keys()
    assert {*FINISHED, *STOPPED, "imported"} == folders


# --- every run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXPECTED)
def test_loads(kind: str, old: Copy) -> None:
    run, wanted = fieldmark.load(old(kind)), EXPECTED[kind]
    assert run.class_names == tuple(wanted["class_names"])
    assert run.config.model == wanted["model"]
    assert run.selected == wanted["selected"]
    assert [record["epoch"] for record in run.history] == wanted["epochs"]
    assert [record["val_loss"] for record in run.history] == wanted["val_loss"]
    if kind in FINISHED:
        keys = ("n", "accuracy", "top5")
        found = {part: {key: row[key] for key in keys} for part, row in run.scores.items()}
        assert found == wanted["scores"]


@pytest.mark.parametrize("kind", EXPECTED)
def test_predicts(kind: str, old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    run, wanted = old(kind), EXPECTED[kind]["answers"]
    assert len(wanted) >= 6
    words = ("predict", run, *wanted, "--top", 99, "--device", "cpu")
    check_answers(command(capsys, *words), wanted)


@pytest.mark.parametrize(
    "kind", ["finished", "stopped_within", "probe", "no_test", "mended", "changed", "imported"]
)
def test_reports(kind: str, old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    run, scores = old(kind), EXPECTED[kind]["scores"]
    (run / "report.html").unlink(missing_ok=True)
    page = Path(command(capsys, "report", run)["file"])
    assert page.resolve() == (run / "report.html").resolve()
    text = page.read_text("utf-8")
    assert EXPECTED[kind]["model"] in text
    for part in scores.values():
        assert percent(part["accuracy"]) in text
    if kind == "changed":
        assert "rows/added.png" in text
    if kind == "mended":
        assert "half the learning rate" in text
    if kind == "no_test":
        assert "There is no test split" in text
        assert "broken.png" in text


@pytest.mark.parametrize("kind", ["finished", "probe", "no_test", "divided", "changed", "named"])
def test_evaluates(kind: str, old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own pictures again; the files are written anew and say the same."""
    run, wanted = old(kind), EXPECTED[kind]["scores"]
    files = [run / "evaluation.json", run / "predictions.csv"]
    scores_before, rows_before = read(files[0])["parts"], rows(files[1])
    for file in files:
        file.unlink()
    found = command(capsys, "evaluate", run, "--device", "cpu")
    part = "test" if "test" in wanted else "val"
    some = 1.5 / found["n"] if kind == "named" else 1e-9  # too many to be sure of each
    assert (found["part"], found["n"]) == (part, wanted[part]["n"])
    assert found["accuracy"] == pytest.approx(wanted[part]["accuracy"], abs=some)
    scores = read(files[0])["parts"]
    assert scores.keys() == wanted.keys()
    for name, row in scores.items():
        assert row.keys() == scores_before[name].keys()
        assert row["loss"] == pytest.approx(scores_before[name]["loss"], abs=1e-3)
    keys = ("part", "file", "label")
    assert [[row[k] for k in keys] for row in rows(files[1])] == [
        [row[k] for k in keys] for row in rows_before
    ]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


# --- particular ones -----------------------------------------------------------------------------


def test_scores_of_other_pictures(old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    run = old("scored")
    file = run / "evaluation-others.json"
    before = read(file)["parts"]["test"]
    (run / "predictions-others.csv").unlink()
    found = command(capsys, "evaluate", run, "--data", "others", "--device", "cpu")
    assert (found["n"], found["accuracy"]) == (before["n"], before["accuracy"]) != (0, 0)
    assert read(file)["parts"]["test"]["confusion"] == before["confusion"]
    assert len(rows(run / "predictions-others.csv")) == before["n"]


def test_an_imported_run_is_scored(old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    run, wanted = old("imported"), EXPECTED["imported"]
    found = command(capsys, "evaluate", run, "--data", wanted["folder"], "--device", "cpu")
    assert found["accuracy"] * found["n"] == pytest.approx(wanted["right"])
    with pytest.raises(fieldmark.RunError, match="imported"):
        fieldmark.resume(run, progress=False)


def test_settings_are_taken_again(old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    settings = old("finished") / "config.json"
    words = ("train", "pictures", "--config", settings, "--preview", "--out", "preview")
    assert Path(command(capsys, *words)["file"]).is_file()


# --- exporting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["finished", "imported"])
def test_exports_onnx(kind: str, old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    run, wanted = old(kind), EXPECTED[kind]["answers"]
    made = command(capsys, "export", run, "--to", "onnx")
    assert made["check"]["same_label"] == made["check"]["pictures"] > 0
    assert made["check"]["made_up"] == (kind == "imported")
    check_answers(command(capsys, "predict", made["file"], *wanted, "--top", 99), wanted)


@pytest.mark.parametrize("kind", ["finished", "imported"])
def test_exports_keras(kind: str, old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    run, wanted = old(kind), EXPECTED[kind]["answers"]
    made = command(capsys, "export", run, "--to", "keras")
    command(capsys, "import-keras", made["file"], "--out", "runs/back")
    words = ("predict", "runs/back", *wanted, "--top", 99, "--device", "cpu")
    check_answers(command(capsys, *words), wanted)


def test_an_old_onnx_file_answers(old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    file, wanted = old("exported") / "model.onnx", EXPECTED["exported"]["answers"]
    check_answers(command(capsys, "predict", file, *wanted, "--top", 99), wanted)


def test_an_old_keras_file_is_imported(old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    file, wanted = old("exported") / "model.keras", EXPECTED["exported"]["answers"]
    made = command(capsys, "import-keras", file, "--out", "runs/back")
    assert made["classes"] == EXPECTED["exported"]["class_names"]
    words = ("predict", "runs/back", *wanted, "--top", 99, "--device", "cpu")
    check_answers(command(capsys, *words), wanted)


# --- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STOPPED)
def test_resumes(kind: str, old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    """One of them from the checkpoint before, as the last one is damaged."""
    run, wanted = old(kind), EXPECTED[kind]
    known = len(wanted["epochs"])
    if (run / "previous.ckpt").is_file():
        damaged = bytearray((run / "last.ckpt").read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (run / "last.ckpt").write_bytes(damaged)
        known -= 1
    found = command(capsys, "resume", run)
    assert found["epochs"] == STOPPED[kind]
    resumed = fieldmark.load(run)
    assert [record["epoch"] for record in resumed.history] == list(range(1, STOPPED[kind] + 1))
    losses = [record["val_loss"] for record in resumed.history]
    assert losses[:known] == wanted["val_loss"][:known]
    told = "resuming from previous.ckpt" in (run / "log.txt").read_text("utf-8")
    assert told == (kind == "killed")
    assert set(resumed.scores) == {"val", "test"}
    kept_last = resumed.config.keep == "last"
    assert (resumed.selected["metric"] == "last") == kept_last
    assert (run / "best.safetensors").is_file() == kept_last
    assert percent(found["test"]["accuracy"]) in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize("kind", ["probe", "mended", "changed"])
def test_a_finished_run_is_concluded_again(
    kind: str, old: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last checkpoint is read, nothing is left to train, and it ends as it did."""
    run, wanted = old(kind), EXPECTED[kind]
    found = command(capsys, "resume", run)
    assert found["epochs"] == sum(epoch > 0 for epoch in wanted["epochs"])
    assert found["test"]["accuracy"] == wanted["scores"]["test"]["accuracy"]
    if kind == "mended":
        assert len(read(run / "incidents.json")["incidents"]) == 2
    if kind == "changed":
        (change,) = read(run / "data.json")["changes"]
        assert change["added"] == [pictures.ADDED]


# --- comparisons ---------------------------------------------------------------------------------


def compare(folder: Path) -> fieldmark.Comparison:
    """Ask for a comparison again as its file says it was asked for."""
    request = read(folder / "compare.json")["request"]
    return fieldmark.compare(
        "pictures",
        request["models"],
        seeds=request["seeds"],
        recipe=request["recipe"],
        out=folder,
        progress=False,
        **request["settings"],
    )


def test_a_finished_comparison_is_judged_again(old: Copy) -> None:
    folder = old("compared")
    before = read(folder / "compare.json")
    weights = {path: path.read_bytes() for path in folder.glob("*/model.safetensors")}
    for name in ("compare.html", "compare.csv"):
        (folder / name).unlink()
    result = compare(folder)
    assert len(weights) == 4
    assert {path: path.read_bytes() for path in weights} == weights
    assert len(list(folder.glob("*/last.ckpt"))) == 0
    after = read(folder / "compare.json")
    assert after["results"].keys() == before["results"].keys()
    assert {**after, "results": None} == {**before, "results": None}
    for key in ("models", "pairs"):
        assert nearly(after["results"][key], before["results"][key])
    page = (folder / "compare.html").read_text("utf-8")
    for model in result.models:
        assert percent(model.accuracy.mean) in page
    assert (folder / "compare.csv").is_file()
    assert (folder / "convergence.png").is_file()


def nearly(value: Any, other: Any) -> bool:
    """Equal up to rounding."""
    if isinstance(other, dict):
        return value.keys() == other.keys() and all(nearly(value[k], other[k]) for k in other)
    if isinstance(other, list):
        return len(value) == len(other) and all(map(nearly, value, other))
    return bool(value == (pytest.approx(other, abs=1e-6) if isinstance(other, float) else other))


def test_a_comparison_goes_on(old: Copy) -> None:
    """A finished run is left, an interrupted one is resumed, one that was not begun is trained."""
    folder = old("compared_in_part")
    assert read(folder / "compare.json")["results"] is None
    ready, begun = sorted(path.name for path in folder.iterdir() if path.is_dir())
    weights = (folder / ready / "model.safetensors").read_bytes()
    history = fieldmark.load(folder / begun).history
    result = compare(folder)
    assert [model.runs[0].epochs for model in result.models] == [3, 3, 3]
    assert (folder / ready / "model.safetensors").read_bytes() == weights
    assert fieldmark.load(folder / begun).history[: len(history)] == history != []
    assert len(read(folder / "compare.json")["results"]["models"]) == 3
    assert (folder / "compare.html").is_file()


def test_reports_of_several(old: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of a comparison on one page."""
    runs = sorted(path for path in old("compared").iterdir() if path.is_dir())[1:3]
    page = Path(command(capsys, "report", *runs, "--out", "page.html")["file"])
    text = page.read_text("utf-8")
    assert all(run.name in text for run in runs)
