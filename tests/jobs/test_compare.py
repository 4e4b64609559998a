"""Models compared: the same pictures and draws, going on after a stop, verdicts, hostile names."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from fieldmark.data.batches import Batches
from fieldmark.data.scan import fingerprint
from fieldmark.errors import ConfigError, DivergedError, FieldmarkError, Interrupted, RunError
from fieldmark.jobs import compare as comparing
from fieldmark.jobs import plan, prepared
from fieldmark.jobs.compare import Request, compare
from fieldmark.jobs.plan import read_data
from fieldmark.pages.comparison import Comparison, Pair
from fieldmark.runs import history, manifest
from fieldmark.runs.directory import RunDirectory
from fieldmark.scoring.significance import Difference, holm
from fieldmark.settings.config import TrainConfig

SMALL, LARGE = "small_cnn(width=2)", "small_cnn(width=6)"
MODELS = [SMALL, LARGE, SMALL]
SETTINGS: dict[str, Any] = {
    "size": 8,
    "epochs": 2,
    "batch_size": 16,
    "lr": 0.02,
    "augment": "pad_crop(1)",
    "split": "0.5/0.2/0.3",
    "threads": 1,
}
TIMES = ("seconds", "images_per_second", "memory")


def write_pictures(root: Path, classes: dict[str, int]) -> Path:
    """Classes that differ by the height of a bright line, under noise."""
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 150, (8, 8, 3))
            image[2 * label : 2 * label + 2] += 90
            Image.fromarray(image.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


class Watching:
    """Counts what is told, and sends a signal after some epochs."""

    def __init__(self, *, stop_after: int = 0, number: int = signal.SIGINT) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.epochs = 0
        self._stop_after, self._number = stop_after, number

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def count(self, what: str, done: int, total: int) -> None:
        pass

    def epoch(self, record: Any, epochs: int) -> None:
        self.epochs += 1
        if self.epochs == self._stop_after:
            signal.raise_signal(self._number)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "lines", {"a": 60, "b": 40, "c": 30})


Draws = dict[tuple[str, int], list[tuple[Any, ...]]]


@dataclasses.dataclass(frozen=True)
class Whole:
    """The comparison that nobody disturbs, and what its networks were shown."""

    result: Comparison
    path: Path
    draws: Draws
    watching: Watching


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    draws: Draws = {}
    real = prepared.training_batches

    def recording(job: Any) -> Batches:
        batches = real(job)
        seen = draws[job.config.model, job.config.seed] = []
        epoch = batches.epoch

        def watched(number: int, *, start: int = 0, only: Any = None) -> Iterator[Any]:
            for batch in epoch(number, start=start, only=only):
                seen.append((number, batch.indices.tolist(), batch.images.numpy().tobytes()))
                yield batch

        batches.epoch = watched  # type: ignore[method-assign,assignment]
        return batches

    path, watching = tmp_path_factory.mktemp("runs") / "whole", Watching()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "training_batches", recording)
        result = compare(
            str(pictures), MODELS, seeds=2, settings=SETTINGS, out=path, progress=watching
        )
    yield Whole(result, path, draws, watching)


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / "compare.json").read_text("utf-8"))
    return value


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


# --- the whole -----------------------------------------------------------------------------------


def test_every_model_sees_the_same_pictures_in_the_same_order(whole: Whole) -> None:
    for seed in (0, 1):
        assert whole.draws[SMALL, seed] == whole.draws[LARGE, seed]
        assert len(whole.draws[SMALL, seed]) > 6
    assert whole.draws[SMALL, 0] != whole.draws[SMALL, 1]
    parts = [
        RunDirectory(whole.path / run.run).read_json("data.json")["parts"]
        for model in whole.result.models
        for run in model.runs
    ]
    assert len(parts) == 6
    assert all(part == parts[0] for part in parts)


def test_figures_are_those_of_the_runs(whole: Whole) -> None:
    assert [model.spec for model in whole.result.models] == MODELS
    assert whole.result.part == "test"
    for model in whole.result.models:
        scores = []
        for seed, run in enumerate(model.runs):
            directory = RunDirectory(whole.path / run.run)
            assert (run.seed, directory.config().seed) == (seed, seed)
            assert directory.config().model == model.spec
            selected, records = directory.model_info().selected, history.read(directory)
            assert selected.metric == "val_accuracy"  # never by the test split
            assert run.best_epoch == selected.epoch
            assert run.epochs == len(records) == 2
            assert run.train_accuracy == records[run.best_epoch - 1].train_accuracy
            assert run.seconds == sum(r.seconds for r in records)
            parts = directory.read_json("evaluation.json")["parts"]
            assert run.val_accuracy == parts["val"]["accuracy"] == selected.value
            assert run.test_accuracy == parts["test"]["accuracy"]
            assert whole.result.n == parts["test"]["n"]
            scores.append(run.test_accuracy)
        assert model.accuracy.mean == pytest.approx(np.mean(scores))
        assert model.accuracy.std == pytest.approx(np.std(scores, ddof=1))
        assert model.accuracy.low <= model.accuracy.mean <= model.accuracy.high
        assert model.num_params == directory.model_info().num_params


def test_a_model_against_itself_shows_no_difference(whole: Whole) -> None:
    first, second, third = whole.result.models
    assert (first.name, second.name, third.name) == (SMALL, LARGE, f"{SMALL} (2)")
    assert without_times(first.to_json()["runs"][0]) == {
        **without_times(third.to_json()["runs"][0]),
        "run": first.runs[0].run,
    }
    pair = next(p for p in whole.result.pairs if (p.first, p.second) == (SMALL, f"{SMALL} (2)"))
    assert pair.difference.value == 0.0
    assert pair.difference.p == pair.corrected == 1.0
    assert not pair.differs
    assert "no difference shown" in pair.verdict
    assert len(whole.result.pairs) == 3


def test_operations_are_counted_by_hand(whole: Whole) -> None:
    """Two 3x3 convolutions a block on 8, 4 and 2 px, and the head; a multiply-add is two."""
    for model, w in zip(whole.result.models, (2, 6, 2), strict=True):
        blocks = [(8, 3, w), (4, w, 2 * w), (2, 2 * w, 4 * w)]
        adds = sum(side**2 * 9 * (i * o + o * o) for side, i, o in blocks) + 8 * w * 3
        assert model.flops == 2 * adds


def test_the_files(whole: Whole) -> None:
    value = read(whole.path)
    assert value["format"] == 1
    assert value["request"] == {
        "models": MODELS, "seeds": 2, "recipe": "auto", "settings": SETTINGS,
    }  # fmt: skip
    assert value["results"] == whole.result.to_json()
    assert str(whole.path.parent) not in (whole.path / "compare.json").read_text("utf-8")
    text = (whole.path / "compare.csv").read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["model"] for row in rows] == [SMALL, LARGE, f"{SMALL} (2)"]
    assert [float(row["test_accuracy_mean"]) for row in rows] == [
        m.accuracy.mean for m in whole.result.models
    ]
    Image.open(whole.path / "convergence.png").verify()
    assert sorted(p.name for p in whole.path.iterdir() if p.is_dir()) == sorted(
        f"small_cnn-width-{name}-seed{seed}" for name in ("2", "6", "2-2") for seed in (0, 1)
    )


def test_the_table_says_it_all(whole: Whole) -> None:
    lines = whole.result.table()
    assert lines[0].split()[:3] == ["model", "train", "val"]
    for line, model in zip(lines[1:4], whole.result.models, strict=True):
        assert line.startswith(model.name)
        assert f"{100 * model.accuracy.mean:.2f} % ± {100 * (model.accuracy.std or 0):.2f}" in line
        assert f"{model.num_params:,}" in line
    text = "\n".join(lines)
    for pair in whole.result.pairs:
        assert pair.verdict in text
    assert "other seeds" in text
    assert "note:" not in text
    assert "settings that differ" not in text


class Page(html.parser.HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def links(self) -> list[str]:
        return [unquote(a["href"] or "") for tag, a in self.tags if "href" in a]

    def check(self) -> None:
        names = {tag for tag, _ in self.tags}
        assert not names & {"script", "iframe", "link", "object", "embed", "form", "base"}
        for tag, attributes in self.tags:
            assert not [key for key in attributes if key.startswith("on") or key == "style"]
            assert "href" not in attributes or tag == "a"
            if tag == "img":
                assert (attributes["src"] or "").startswith("data:image/png;base64,")
                assert attributes["alt"]
        policies = [a.get("content") or "" for _, a in self.tags if "http-equiv" in a]
        assert policies[0].startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_the_page(whole: Whole) -> None:
    page = Page((whole.path / "compare.html").read_text("utf-8"))
    page.check()
    for pair in whole.result.pairs:
        assert pair.verdict in page.text
    for row in whole.result.cells():
        assert " ".join(row[:6]) in page.text
        assert f"{row[0]} {' '.join(row[6:])}" in page.text
    assert len(page.links()) == 6
    assert all((whole.path / link).is_file() for link in page.links())
    assert sum(tag == "img" for tag, _ in page.tags) == 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts it")
def test_memory_is_the_peak_of_its_time(whole: Whole) -> None:
    run = RunDirectory(whole.path / whole.result.models[0].runs[0].run)
    peak = comparing._Peak()
    before = peak.bytes(run)
    block = np.ones(40_000_000)  # 320 MB
    del block
    after, anew = peak.bytes(run), comparing._Peak().bytes(run)
    assert before is not None and after is not None and anew is not None
    assert after - before > 250e6
    assert after - anew > 250e6
    assert all(run.memory for model in whole.result.models for run in model.runs)


# --- going on ------------------------------------------------------------------------------------


def test_finished_runs_are_only_read(whole: Whole, pictures: Path) -> None:
    names = ("compare.json", "compare.csv", "compare.html", "convergence.png")
    before = {name: (whole.path / name).read_bytes() for name in names}
    watching = Watching()
    again = compare(
        str(pictures), MODELS, seeds=2, settings=SETTINGS, out=whole.path, progress=watching
    )
    assert watching.epochs == 0
    assert again == whole.result
    assert {name: (whole.path / name).read_bytes() for name in names} == before


def test_a_run_that_was_not_judged_is_judged(whole: Whole, pictures: Path, tmp_path: Path) -> None:
    """It has a page, which `fieldmark report` wrote, and no scores."""
    shutil.copytree(whole.path, tmp_path / "c")
    (tmp_path / "c" / whole.result.models[1].runs[0].run / "evaluation.json").unlink()
    watching = Watching()
    again = compare(
        str(pictures), MODELS, seeds=2, settings=SETTINGS, out=tmp_path / "c", progress=watching
    )
    assert watching.epochs == 0
    assert without_times(again.to_json()) == without_times(whole.result.to_json())


def test_what_was_stopped_goes_on_to_the_same_result(
    whole: Whole, pictures: Path, tmp_path: Path
) -> None:
    def go(watching: Watching) -> Comparison:
        return compare(
            str(pictures), MODELS, seeds=2, settings=SETTINGS, out=tmp_path / "c", progress=watching
        )

    for stop, number, code in ((3, signal.SIGINT, 130), (4, signal.SIGTERM, 143)):
        with pytest.raises(Interrupted, match="same command and --out") as stopped:
            go(Watching(stop_after=stop, number=number))
        assert stopped.value.exit_code == code
        assert read(tmp_path / "c")["results"] is None
    half = tmp_path / "c" / "small_cnn-width-6-seed1"  # killed before it could be resumed
    assert not half.exists()
    half.mkdir()
    (half / ".lock").write_text("")
    (half / ".config.json.part").write_text("{")
    (half / "preview.png").write_bytes(b"")
    last = Watching()
    result = go(last)
    assert 12 - 3 - 4 <= last.epochs <= 12 - 3 - 4 + 1
    assert without_times(result.to_json()) == without_times(whole.result.to_json())
    assert without_times(read(tmp_path / "c")) == without_times(read(whole.path))


def test_ctrl_c_between_two_runs_says_how_to_go_on(pictures: Path, tmp_path: Path) -> None:
    class Impatient(Watching):
        def say(self, text: str) -> None:
            if text.startswith("run 1 of"):
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="--out") as stopped:
        compare(
            str(pictures), MODELS[:2], settings=SETTINGS, out=tmp_path / "c", progress=Impatient()
        )
    assert stopped.value.exit_code == 130
    assert read(tmp_path / "c")["results"] is None


def test_another_request_is_refused_with_the_differences(whole: Whole, pictures: Path) -> None:
    def refused(models: list[str], *, seeds: int = 2, **settings: Any) -> str:
        with pytest.raises(ConfigError, match="holds another comparison") as error:
            compare(
                str(pictures), models, seeds=seeds, settings=settings or SETTINGS, out=whole.path
            )
        return str(error.value)

    assert "seeds was 2, is 3" in refused(MODELS, seeds=3)
    assert "models was" in refused(MODELS[:2])
    assert "epochs was 2, is 9" in refused(MODELS, **{**SETTINGS, "epochs": 9})
    assert "ema was the recipe's, is 0.9" in refused(MODELS, **SETTINGS, ema=0.9)


def test_other_pictures_are_refused(whole: Whole, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "c")
    shutil.copytree(pictures, tmp_path / "lines")
    Image.new("RGB", (8, 8)).save(tmp_path / "lines" / "a" / "0.png")

    def again(data: Path) -> None:
        compare(str(data), MODELS, seeds=2, settings=SETTINGS, out=tmp_path / "c")

    with pytest.raises(RunError, match="pictures changed"):
        again(tmp_path / "lines")
    run = RunDirectory(tmp_path / "c" / whole.result.models[1].runs[1].run)
    stored = run.read_json("data.json")
    run.write_json("data.json", {**stored, "fingerprint": "0" * 64})
    with pytest.raises(RunError, match=r"data\.json was changed by hand"):
        again(pictures)
    # Of other pictures, and consistent in itself: one of the training pictures is not there.
    rows = {**stored["parts"], "train": stored["parts"]["train"][1:]}
    classes = range(len(stored["class_names"]))
    counts = [sum(label == k for _, label, _ in rows["train"]) for k in classes]
    fewer = {**stored, "parts": rows, "counts": {**stored["counts"], "train": counts}}
    parts = {name: manifest._part(list(map(tuple, of))) for name, of in rows.items()}
    run.write_json("data.json", {**fewer, "fingerprint": fingerprint(parts)})
    with pytest.raises(RunError, match="saw other pictures"):
        again(pictures)
    other_order = {**stored["parts"], "val": stored["parts"]["val"][::-1]}
    run.write_json("data.json", {**stored, "parts": other_order})
    with pytest.raises(RunError, match="divide the pictures differently"):
        again(pictures)
    run.write_json("data.json", stored)
    text = run.read_text("predictions.csv")
    run.write("predictions.csv", text.replace("test,a/", "test,b/").encode())
    with pytest.raises(RunError, match="are not those of"):
        again(pictures)
    run.write("predictions.csv", b"part,file\r\ntest,x\r\n")
    with pytest.raises(RunError, match=r"predictions\.csv: the columns are not part, file"):
        again(pictures)
    head, *rows_of_all = text.splitlines(keepends=True)
    run.write(
        "predictions.csv", "".join([head, *(r for r in rows_of_all if r[:4] != "test")]).encode()
    )
    with pytest.raises(RunError, match="holds no test pictures"):
        again(pictures)


def test_what_is_in_the_way_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds no comparison"):
        compare(str(pictures), MODELS, settings=SETTINGS, out=out)
    with pytest.raises(RunError, match=r"holds thesis\.txt"):
        comparing._clear(out)
    assert (out / "thesis.txt").read_text() == "x"
    for text in ("[]", "{}", '{"format": 1, "name": 3}', '{"format": 2}', "{"):
        (out / "compare.json").write_text(text)
        with pytest.raises(RunError):
            compare(str(pictures), MODELS, settings=SETTINGS, out=out)


def test_the_folder_by_default(
    whole: Whole, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = Request(models=tuple(MODELS), seeds=2, recipe="auto", settings=SETTINGS)

    def folder(asked: Request) -> str:
        return comparing._folder(None, str(pictures), asked).path.as_posix()

    assert folder(request) == "runs/compare-lines"
    Path("runs/compare-lines").mkdir(parents=True)
    (Path("runs/compare-lines") / "compare.json").write_bytes(
        (whole.path / "compare.json").read_bytes()
    )
    assert folder(request) == "runs/compare-lines"
    assert folder(dataclasses.replace(request, seeds=3)) == "runs/compare-lines-2"


def test_nothing_is_written_when_a_model_cannot_be_trained(pictures: Path, tmp_path: Path) -> None:
    """The last model is at fault, and the first is not trained in vain."""
    bad = [SMALL, "cifar_resnet(depth=21)"]
    with pytest.raises(ConfigError, match="depth"):
        compare(str(pictures), bad, settings=SETTINGS, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_model_that_diverges_is_named(pictures: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "lr": 1e11}
    with pytest.raises(DivergedError, match=r"width=2\), seed 0"):
        compare(str(pictures), MODELS[:2], seeds=1, settings=settings, out=tmp_path / "c")


# --- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": (SMALL,)}, "at least two"),
        ({"models": ()}, "at least two"),
        ({"models": (SMALL, "small_cn")}, "did you mean 'small_cnn'"),
        ({"models": (SMALL, "auto")}, "no model 'auto'"),
        ({"seeds": 0}, "1 to 100"),
        ({"seeds": True}, "1 to 100"),
        ({"settings": {"model": SMALL}}, "--models"),
        ({"settings": {"seed": 3}}, "--seeds"),
        ({"settings": {"weights": "file.pth"}}, "auto, none, hub or imagenet"),
    ],
)
def test_requests_that_cannot_be_met(changes: dict[str, Any], message: str) -> None:
    good = {"models": (SMALL, LARGE), "seeds": 2, "recipe": "auto", "settings": {}}
    assert Request(**good).seeds == 2
    with pytest.raises(FieldmarkError, match=message):
        Request(**{**good, **changes})


def test_folder_names_are_safe_and_different() -> None:
    specs = ["timm/a.b", "timm/A.b", "timm-a.b", "timm/a.b", "x(a='../../y')", "m" * 300]
    names = comparing._folder_names(specs)
    assert names[0] == "timm-a.b"
    assert len({name.casefold() for name in names}) == len(specs)
    for name in names:
        assert Path(name).name == name
        assert not name.startswith(".")
        assert len(name) < 70


# --- settings that vary --------------------------------------------------------------------------

GRID: dict[str, list[Any]] = {"lr": [0.02, 0.05], "augment": ["none", "flip_lr|pad_crop(1)"]}
OTHERS = {key: value for key, value in SETTINGS.items() if key not in GRID} | {"epochs": 1}


@pytest.fixture(scope="module")
def grid(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    path, watching = tmp_path_factory.mktemp("runs") / "grid", Watching()
    kind: dict[str, Any] = {"vary": GRID, "seeds": 2, "settings": OTHERS}
    result = compare(str(pictures), [SMALL], out=path, progress=watching, **kind)
    return Whole(result, path, {}, watching)


def test_a_grid_has_every_combination(grid: Whole) -> None:
    assert [model.name for model in grid.result.models] == [
        f"lr={lr}, augment={augment}" for lr in GRID["lr"] for augment in GRID["augment"]
    ]
    for model in grid.result.models:
        for run in model.runs:
            config = RunDirectory(grid.path / run.run).config()
            assert (config.model, config.lr, config.augment, config.seed) == (
                model.spec, *model.values.values(), run.seed,
            )  # fmt: skip
            assert len(run.run) < 70
    assert len({run.run for model in grid.result.models for run in model.runs}) == 8
    assert len(grid.result.pairs) == 6
    assert not [text for text in [*grid.watching.warned, *grid.result.notes] if "alike" in text]


def test_the_files_of_a_grid(grid: Whole) -> None:
    value = read(grid.path)
    assert value["request"]["vary"] == [
        {"setting": key, "values": values} for key, values in GRID.items()
    ]
    assert value["results"] == grid.result.to_json()
    assert [model["values"] for model in value["results"]["models"][:2]] == [
        {"lr": 0.02, "augment": augment} for augment in GRID["augment"]
    ]
    text = (grid.path / "compare.csv").read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(r["model"], float(r["set_lr"]), r["set_augment"]) for r in rows] == [
        (m.spec, *m.values.values()) for m in grid.result.models
    ]
    page = Page((grid.path / "compare.html").read_text("utf-8"))
    page.check()
    for model in grid.result.models:
        assert f"{model.name} {model.spec} {model.values['lr']} {model.values['augment']}" in (
            page.text
        )
    for marginal in grid.result.marginals:
        assert marginal.pairs[0].verdict in page.text
        assert any(marginal.pairs[0].verdict in line for line in grid.result.table())


def test_each_setting_by_itself_is_the_mean_over_the_rest(grid: Whole) -> None:
    accuracies = np.array([m.accuracy.mean for m in grid.result.models]).reshape(2, 2)
    assert [marginal.setting for marginal in grid.result.marginals] == list(GRID)
    for means, marginal in zip((accuracies, accuracies.T), grid.result.marginals, strict=True):
        assert [level.accuracy.mean for level in marginal.levels] == pytest.approx(
            means.mean(axis=1)
        )
        (pair,) = marginal.pairs
        assert pair.difference.value == pytest.approx(means[0].mean() - means[1].mean())
        assert marginal.rest == 2
        assert marginal.higher == (int((means[0] > means[1]).sum()),)
        assert marginal.lower == (int((means[0] < means[1]).sum()),)
    raw = [marginal.pairs[0].difference.p for marginal in grid.result.marginals]
    assert [m.pairs[0].corrected for m in grid.result.marginals] == holm(raw)


def test_models_are_an_axis_of_the_grid() -> None:
    vary = {"lr": (0.1, 0.2), "l2": (0.0, 5e-4)}
    request = Request(models=(SMALL, LARGE), seeds=1, recipe="auto", settings={}, vary=vary)
    assert request.names[:3] == (
        f"{SMALL}, lr=0.1, l2=0",
        f"{SMALL}, lr=0.1, l2=0.0005",
        f"{SMALL}, lr=0.2, l2=0",
    )
    right = [np.array([[i % 2 == 0, i < 4, True, False]]) for i in range(8)]
    found = {each.setting: each for each in comparing._marginals(request, right)}
    assert list(found) == ["model", "lr", "l2"]
    assert [level.name for level in found["model"].levels] == [SMALL, LARGE]
    assert found["model"].pairs[0].difference.value == pytest.approx(0.25)
    assert found["lr"].pairs[0].difference.value == pytest.approx(0)
    assert found["l2"].pairs[0].verdict.startswith("l2=0 ")
    assert (found["l2"].higher, found["l2"].lower) == ((4,), (0,))


def test_a_setting_against_itself_shows_no_difference(pictures: Path, tmp_path: Path) -> None:
    """No models are named: the network is that of the settings."""
    result = compare(
        str(pictures),
        vary={"lr": [0.02, 0.02]},
        seeds=2,
        settings={**OTHERS, "model": SMALL},
        out=tmp_path / "c",
    )
    assert [model.name for model in result.models] == ["lr=0.02", "lr=0.02 (2)"]
    assert [model.spec for model in result.models] == [SMALL, SMALL]
    (pair,) = result.pairs
    assert (pair.difference.value, pair.corrected) == (0.0, 1.0)
    assert "no difference shown" in pair.verdict
    assert result.marginals == ()


def test_a_grid_that_was_stopped_goes_on_to_the_same_result(
    grid: Whole, pictures: Path, tmp_path: Path
) -> None:
    """It has a run that is finished, one without a page, and none of the others."""
    shutil.copytree(grid.path, tmp_path / "c")
    folders = [run.run for model in grid.result.models for run in model.runs]
    shutil.rmtree(tmp_path / "c" / folders[-1])
    (tmp_path / "c" / folders[3] / "evaluation.json").unlink()
    kind: dict[str, Any] = {"vary": GRID, "seeds": 2, "settings": OTHERS, "out": tmp_path / "c"}
    watching = Watching()
    again = compare(str(pictures), [SMALL], progress=watching, **kind)
    assert watching.epochs == 1
    assert without_times(again.to_json()) == without_times(grid.result.to_json())
    with pytest.raises(ConfigError, match=r"vary lr was 0\.02 0\.05, is 0\.02 0\.1"):
        compare(str(pictures), [SMALL], **{**kind, "vary": {**GRID, "lr": [0.02, 0.1]}})
    with pytest.raises(ConfigError, match="order of --vary was lr augment, is augment lr"):
        turned = dict(reversed(GRID.items()))
        compare(str(pictures), [SMALL], **{**kind, "vary": turned})


@pytest.mark.parametrize(
    ("vary", "changes", "message"),
    [
        ({"lrr": [1, 2]}, {}, "did you mean 'lr'"),
        ({"lr": [0.1]}, {}, "at least two"),
        ({"lr": [0.1, "b"]}, {}, "lr is 'b', but must be a number"),
        ({"lr": [0.1, 1e99]}, {}, "lr is 1e"),
        ({"resize": ["crop", "crush"]}, {}, "no resize 'crush'"),
        ({"seed": [1, 2]}, {}, "--seeds"),
        ({"model": [SMALL, LARGE]}, {}, "--models"),
        ({"split": ["0.5/0.2/0.3", "0.6/0.2/0.2"]}, {}, "same pictures"),
        ({"split_seed": [0, 1]}, {}, "--split-seed"),
        ({"whole_batches": [False, True]}, {}, "same pictures"),
        ({"max_pixels": [100, 200]}, {}, "same pictures"),
        ({"memory_gb": [1.0, 2.0]}, {}, "read once for all runs"),
        ({"lr": [0.1, 0.2]}, {"settings": {"lr": 0.3}}, "also given as 0.3"),
        ({"lr": [0.1, 0.2]}, {"models": (SMALL,), "settings": {"model": SMALL}}, "--models"),
        ({"weights": ["none", "file.pth"]}, {}, "fits one model only"),
        ({"lr": [0.1] * 60}, {}, "120 candidates"),
    ],
)
def test_what_cannot_vary_is_refused(
    vary: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    good = {"models": (SMALL, LARGE), "seeds": 2, "recipe": "auto", "settings": {}}
    with pytest.raises(FieldmarkError, match=message):
        Request(**{**good, **changes}, vary=vary)


def test_candidates_that_would_be_scored_on_other_pictures_are_refused(
    pictures: Path, tmp_path: Path
) -> None:
    """Whole batches of 16 and of 7 leave out different pictures; nothing is trained before."""
    settings = {**OTHERS, "model": SMALL, "whole_batches": True}
    del settings["batch_size"]
    with pytest.raises(ConfigError, match="not have the same pictures"):
        compare(str(pictures), vary={"batch_size": [16, 7]}, settings=settings, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_only_makes_it_faster_is_said(whole: Whole) -> None:
    notes = comparing._notes(
        "test", {"val": [1]}, whole.result.models, {"threads": ("1", "2")}, {"threads": (1, 2)},
        chose=True,
    )  # fmt: skip
    assert ["threads decide how fast" in note for note in notes] == [True]


# --- one seed, no test split, names that attack ---------------------------------------------------

SCRIPT, ONERROR = "<script>alert(1)<", '"><img src=x onerror=alert(1)>'


def test_one_seed_without_a_test_part_under_hostile_names(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / ONERROR, {SCRIPT: 20, '=HYPERLINK("x")': 20, "\u202ec": 20})
    watching = Watching()
    out = tmp_path / "<b>猫 #1"
    settings = {**SETTINGS, "epochs": 1, "split": "70/30/0"}
    result = compare(
        str(data), [SMALL, LARGE], seeds=1, settings=settings, out=out, progress=watching
    )
    assert (result.part, result.seeds) == ("val", 1)
    assert result.pairs[0].difference.method == "mcnemar"
    assert result.models[0].accuracy.std is None
    assert [text[:8] for text in result.notes] == ["There is", "One seed"]
    assert result.table()[-2].startswith("note: There is no test split")
    assert "± std" not in result.table()[0]
    page = Page((out / "compare.html").read_text("utf-8"))
    page.check()
    assert ONERROR in page.text
    assert "There is no test split" in page.text
    assert all((out / link).is_file() for link in page.links())
    named = dataclasses.replace(
        result,
        models=tuple(dataclasses.replace(m, name="=cmd|'/c calc'!A1") for m in result.models),
    )
    rows = list(csv.reader(io.StringIO(named.csv().decode("utf-8-sig"), newline="")))
    assert rows[1][0] == "'=cmd|'/c calc'!A1"


# --- what differs is said ------------------------------------------------------------------------


def test_settings_that_differ_are_found_and_told(whole: Whole) -> None:
    one, other = TrainConfig(epochs=3, size=32, seed=0), TrainConfig(epochs=9, size=224, seed=0)
    again = dataclasses.replace(one, seed=1, device="cuda")
    shared, differing = comparing._settings_by_candidate([[one, again], [other, other]])
    assert differing == {
        "size": ("32", "224"),
        "epochs": ("3", "9"),
        "device": ("auto or cuda", "auto"),
    }
    assert not {"model", "seed", *differing} & set(shared)
    assert shared["batch_size"] == 64
    assert comparing._unlike(differing, {}) == [
        "epochs"
    ]  # size fits the network, device the machine
    candidates = list(whole.result.models)
    candidates[1] = dataclasses.replace(candidates[1], weights="hub: x")
    notes = " ".join(
        comparing._notes("test", {"val": [1], "test": [1]}, candidates, differing, {}, chose=True)
    )
    assert "The test split also validated" in notes
    assert "not trained alike: epochs differ" in notes
    assert f"{LARGE}: hub: x" in notes
    assert "Times cannot be compared: device" in notes
    three = {key: (*values, "1") for key, values in differing.items()}
    table = dataclasses.replace(whole.result, differing=three, notes=("careful",)).table()
    assert (
        f"settings that differ: size: {SMALL} 32, {LARGE} 224, {SMALL} (2) 1; epochs:" in table[-2]
    )
    assert table[-1] == "note: careful"


def test_verdicts() -> None:
    worse = Difference(value=-0.0312, low=-0.05, high=-0.01, p=0.002, method="mcnemar")
    pair = Pair(first="a", second="b\u202e", difference=worse, corrected=0.004)
    assert pair.verdict == (
        "b\\u202e is better than a by 3.12 points (95 % interval +1.00 to +5.00, p = 0.004)"
    )
    same = dataclasses.replace(pair, corrected=0.06)
    assert same.verdict == (
        "a and b\\u202e: no difference shown (difference -3.12 points, "
        "95 % interval -5.00 to -1.00, p = 0.06)"
    )
    assert "p < 0.0001" in dataclasses.replace(pair, corrected=1e-9).verdict


def test_pictures_are_read_once_for_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def counting(*args: Any) -> Any:
        reads.append(args[0])
        return read_data(*args)

    monkeypatch.setattr(comparing, "read_data", counting)
    monkeypatch.setattr(plan, "read_data", counting)
    root = write_pictures(tmp_path / "set", {"a": 12, "b": 12})
    compare(str(root), [SMALL, LARGE], seeds=1, settings=SETTINGS, out=tmp_path / "out")
    assert reads == [str(root)]


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        compare("digits", [SMALL, LARGE], settings={"epoch": 1}, out=tmp_path / "out")


@pytest.mark.slow
def test_a_grid_that_is_killed_twice_ends_as_if_it_had_not_been(
    grid: Whole, pictures: Path, tmp_path: Path
) -> None:
    """Processes that end without a word, in the midst of a run."""
    flags = [
        f"--{key.replace('_', '-')}={value}" for key, value in OTHERS.items()
    ] + [
        word for key, values in GRID.items() for word in ("--vary", key, *map(str, values))
    ]  # fmt: skip
    command = [sys.executable, "-m", "fieldmark", "compare", str(pictures), "--models", SMALL]
    for finished in (2, 5):
        process = subprocess.Popen(
            [*command, *flags, "--seeds", "2", "--out", str(tmp_path / "c")],
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and len(list((tmp_path / "c").glob("*/*.jsonl"))) < finished:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    kind: dict[str, Any] = {"vary": GRID, "seeds": 2, "settings": OTHERS, "out": tmp_path / "c"}
    watching = Watching()
    result = compare(str(pictures), [SMALL], progress=watching, **kind)
    assert watching.epochs <= 4
    assert without_times(result.to_json()) == without_times(grid.result.to_json())
