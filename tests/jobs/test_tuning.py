"""A search: the default first, judged on validation alone, going on after a kill, told honestly."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fieldmark
from fieldmark.cli import main
from fieldmark.errors import ConfigError, DataError, Interrupted, MissingExtraError
from fieldmark.jobs import choice, evaluate, prepared, running, study
from fieldmark.jobs import train as training
from fieldmark.jobs import tune as searching
from fieldmark.jobs.request import TrainRequest
from fieldmark.jobs.tune import tune
from fieldmark.pages.tuning import Finalist, Tuning
from fieldmark.runs import history
from fieldmark.runs import trials as trials_file
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.trials import Trial
from fieldmark.scoring.significance import mcnemar
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.space import Axis, Span, default_space, rounded, spaces, span
from fieldmark.settings.varied import grouped
from tests.jobs.test_compare import Page, Watching, write_pictures

pytest.importorskip("optuna")

SMALL = "small_cnn(width=2)"
SETTINGS: dict[str, Any] = {
    "model": SMALL,
    "size": 8,
    "epochs": 2,
    "batch_size": 16,
    "augment": "none",
    "split": "0.5/0.25/0.25",
    "lr": 0.002,
    "threads": 1,
}
OVER: dict[str, Any] = {"weight_decay": "1e-5..1e-2", "optimizer": ["adam", "sgd", "adamw"]}
KIND: dict[str, Any] = {"over": OVER, "settings": SETTINGS, "most": 4, "minutes": 5}
CLOCK = ("seconds", "at")


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in CLOCK}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "lines", {"a": 40, "b": 36, "c": 32})


@dataclasses.dataclass(frozen=True)
class Whole:
    """The search that nobody disturbs, and what was scored when."""

    result: Tuning
    path: Path
    scored: list[tuple[list[str], bool]]
    """The splits of each scoring, and whether the choice had been written down."""

    @property
    def journal(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.path / "tune.json").read_text("utf-8"))
        return value


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    path, scored = tmp_path_factory.mktemp("runs") / "t", []
    real, batches = evaluate.score, prepared.split_batches

    def watched(model: Any, parts: Any, progress: Any) -> Any:
        chosen = json.loads((path / "tune.json").read_text("utf-8")).get("chosen") is not None
        scored.append((list(parts), chosen))
        return real(model, parts, progress)

    def asked(job: Any, part: str) -> Any:
        if part == "test":
            assert json.loads((path / "tune.json").read_text("utf-8")).get("chosen") is not None
        return batches(job, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "score", watched)
        patch.setattr(running, "split_batches", asked)
        result = tune(str(pictures), out=path, **KIND)
    return Whole(result, path, scored)


# --- the whole -----------------------------------------------------------------------------------


def test_the_test_split_is_scored_once_after_the_choice(whole: Whole) -> None:
    assert whole.scored == [(["val", "test"], True)]


def test_the_default_is_the_first_trial(whole: Whole, pictures: Path, tmp_path: Path) -> None:
    first, *others = whole.result.rows
    assert (first.number, first.settings) == (
        0,
        {"weight_decay": 5e-4, "optimizer": "sgd(momentum=0.9, nesterov=True)"},
    )
    assert whole.journal["trials"][0]["settings"] == {}
    run = training.train(TrainRequest(data=str(pictures), settings=SETTINGS, out=tmp_path / "r"))
    assert whole.journal["trials"][0]["curve"] == [r.val_accuracy for r in history.read(run)]
    for row in others:
        assert 1e-5 <= row.settings["weight_decay"] <= 1e-2
        assert row.settings["optimizer"] in OVER["optimizer"]
    settings = [json.dumps(row.settings) for row in whole.result.rows]
    assert len(set(settings)) == len(settings) == 4


def test_what_is_chosen_is_never_worse_than_the_default(whole: Whole) -> None:
    complete = [row for row in whole.result.rows if row.state == "complete"]
    finalists = {each.trial: each for each in whole.result.finalists}
    if finalists:  # validation is small: the best were trained again, and the default
        assert 0 in finalists
        assert all(len(each.fresh) == searching.FRESH for each in finalists.values())
        for each in finalists.values():
            assert each.mean == pytest.approx(np.mean([each.first, *each.fresh]))
        assert finalists[whole.result.chosen].mean == max(f.mean for f in finalists.values())
    else:
        assert whole.result.chosen == 0
    assert max(row.value for row in complete) >= whole.result.rows[0].value


def test_it_ends_in_one_ordinary_run(whole: Whole, pictures: Path, tmp_path: Path) -> None:
    """The same bits as training with these settings gives."""
    result, run = whole.result, fieldmark.load(whole.result.run)
    assert {key: getattr(run.config, key) for key in result.settings} == result.settings
    assert result.scores["test"][0] == run.scores["test"]["accuracy"]
    again = training.train(
        TrainRequest(
            data=str(pictures), settings={**SETTINGS, **result.settings}, out=tmp_path / "again"
        )
    )
    assert (again.path / "model.safetensors").read_bytes() == (
        result.run / "model.safetensors"
    ).read_bytes()
    assert {p.name for p in again.path.iterdir()} == {p.name for p in result.run.iterdir()}
    assert sorted(p.name for p in whole.path.iterdir()) == [
        "best", "tune.csv", "tune.html", "tune.json", "tune.png",
    ]  # fmt: skip


def test_the_files(whole: Whole) -> None:
    value = whole.journal
    assert (value["format"], value["chosen"]) == (1, whole.result.chosen)
    assert value["results"] == json.loads(json.dumps(whole.result.to_json()))
    assert str(whole.path.parent) not in (whole.path / "tune.json").read_text("utf-8")
    text = (whole.path / "tune.csv").read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [float(row["set_weight_decay"]) for row in rows] == [
        row.settings["weight_decay"] for row in whole.result.rows
    ]
    page = Page((whole.path / "tune.html").read_text("utf-8"))
    page.check()
    for line in (*whole.result.verdict(), *whole.result.notes(), *whole.result.scored()):
        assert line in page.text
        assert any(line in each for each in whole.result.table())
    assert (whole.path / page.links()[0]).is_file()


def test_a_finished_search_is_only_read(whole: Whole, pictures: Path) -> None:
    before = {p: p.read_bytes() for p in whole.path.rglob("*") if p.is_file()}
    assert tune(str(pictures), out=whole.path, **{**KIND, "minutes": 50, "most": 9}) == whole.result
    assert {p: p.read_bytes() for p in whole.path.rglob("*") if p.is_file()} == before


# --- going on ------------------------------------------------------------------------------------


def test_what_was_killed_goes_on_to_the_same_result(
    whole: Whole, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in a trial, killed after one before it was noted, and killed after the choice."""
    out = tmp_path / "t"

    def go(watching: Watching | None = None) -> Tuning:
        return tune(str(pictures), out=out, progress=watching, **KIND)

    with pytest.raises(Interrupted, match="same command and --out") as stopped:
        go(Watching(stop_after=3, number=signal.SIGTERM))
    assert stopped.value.exit_code == 143
    assert len(json.loads((out / "tune.json").read_text("utf-8"))["trials"]) == 1

    class Killed(BaseException):
        pass

    def dying(owner: Any, name: str, when: Callable[..., bool]) -> None:
        real = getattr(owner, name)

        def instead(*args: Any, **changes: Any) -> Any:
            if when(*args, **changes):
                raise Killed
            return real(*args, **changes)

        monkeypatch.setattr(owner, name, instead)

    dying(searching._Search, "note", lambda self, **c: len(c.get("trials", ())) == 3)
    with pytest.raises(Killed):
        go()
    monkeypatch.undo()
    dying(running, "_conclude", lambda *args: True)
    with pytest.raises(Killed):
        go()
    monkeypatch.undo()
    used = json.loads((out / "tune.json").read_text("utf-8"))["seconds"]
    watching = Watching()
    result = go(watching)
    assert watching.epochs == 0  # nothing is trained again
    assert result.seconds >= used
    assert without_times(result.to_json()) == without_times(whole.result.to_json())


def test_another_search_is_refused_with_the_differences(whole: Whole, pictures: Path) -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(ConfigError, match="holds another search") as error:
            tune(str(pictures), out=whole.path, **{**KIND, **changes})
        return str(error.value)

    assert "over weight_decay was 1e-05..0.01" in refused(over={**OVER, "weight_decay": "1e-4..1"})
    assert "epochs was 2, is 3" in refused(settings={**SETTINGS, "epochs": 3})
    assert "recipe was auto, is tiny" in refused(recipe="tiny")


def test_time_that_was_used_before_counts(
    whole: Whole, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that was stopped when its time was nearly over tries nothing new."""
    shutil.copytree(whole.path, tmp_path / "t")
    folder = RunDirectory(tmp_path / "t")
    journal = trials_file.read(folder)
    shutil.rmtree(tmp_path / "t" / "best")
    trials_file.write(
        folder,
        dataclasses.replace(
            journal, trials=journal.trials[:2], seconds=299.0, chosen=None, results=None, again=()
        ),
    )
    monkeypatch.setattr(searching._Search, "_trial", None)
    result = tune(str(pictures), out=tmp_path / "t", **{**KIND, "most": 0})
    assert len(result.rows) == 2
    assert result.finalists == ()


def test_a_trial_that_fails_is_a_trial(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that diverges does not end the search, nor win it."""
    over = {"lr": [1e11, 1e-6]}
    settings = {key: value for key, value in SETTINGS.items() if key != "lr"}
    result = tune(
        str(pictures), over=over, settings={**settings, "epochs": 1}, minutes=5, out=tmp_path / "t"
    )
    states = {row.settings["lr"]: row.state for row in result.rows}
    assert states == {0.05: "complete", 1e11: "failed", 1e-6: "complete"}  # and all were tried
    assert "1 trials failed" in " ".join(result.notes())


def test_without_time_it_is_the_default(pictures: Path, tmp_path: Path) -> None:
    watching = Watching()
    kind = {**KIND, "minutes": 1e-4, "most": 0}
    result = tune(str(pictures), out=tmp_path / "t", progress=watching, **kind)
    assert ([row.state for row in result.rows], result.chosen) == (["complete"], 0)
    assert any("the default alone took" in text for text in watching.warned)
    assert "No setting was better" in result.verdict()[0]
    assert "nothing was searched" in " ".join(result.notes())
    assert (result.run / "report.html").is_file()


def test_a_trial_that_would_end_too_late_is_ended(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is over while the first trial after the default trains."""
    monkeypatch.setattr(
        searching._Search,
        "search_ends",
        property(lambda self: math.inf if self.journal.running is None else 0.0),
    )
    result = tune(str(pictures), out=tmp_path / "t", **KIND)
    assert [row.state for row in result.rows] == ["complete", "late"]
    assert (result.rows[1].done, result.rows[1].epochs, result.chosen) == (1, 2, 0)


def test_a_probe_is_searched_by_what_its_features_see(pictures: Path, tmp_path: Path) -> None:
    settings = {
        "model": SMALL, "size": 64, "probe": True, "epochs": 0, "threads": 1,
        "split": "0.5/0.25/0.25",
    }  # fmt: skip
    result = tune(str(pictures), settings=settings, minutes=5, most=2, out=tmp_path / "t")
    assert [name for name, _ in result.space] == ["size", "resize"]
    assert (result.rows[0].settings["size"], result.rows[1].state) == (64, "complete")


# --- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"over": {"lrr": "1..2"}}, "did you mean 'lr'"),
        ({"over": {"weight_decay": "0..0.1"}}, "by its logarithm"),
        ({"over": {"weight_decay": "0.1..0.01"}}, "first must be the less"),
        ({"over": {"weight_decay": "a..b"}}, "two numbers LOW..HIGH"),
        ({"over": {"ema": "0..2"}}, "ema is 2.0"),
        ({"over": {"warmup_epochs": [1.0]}}, "at least two"),
        ({"over": {"optimizer": ["adam", "adma"]}}, "no optimizer 'adma'"),
        ({"over": {"optimizer": "adam|sgd"}}, "one after another"),
        ({"over": {"resize": ["crop", "crush"]}}, "no resize 'crush'"),
        ({"over": {"lr": "0.1..1"}}, "also given as 0.002"),
        ({"over": {"split_seed": [0, 1]}}, "same pictures"),
        ({"over": {"seed": [0, 1]}}, "its luck would be taken"),
        ({"over": {"threads": [1, 2]}}, "how fast training is"),
        ({"over": {"views": ["none", "flip"]}}, "judged by one view"),
        ({"over": {"monitor": ["val_loss", "val_accuracy"]}}, "judges by"),
        ({"over": {"l2": "1e-5..1e-3"}, "settings": {"monitor": "val_loss"}}, "would always win"),
        ({"settings": {"monitor": "train_loss"}}, "judged on validation"),
        ({"minutes": 0}, "minutes is 0"),
        ({"minutes": math.nan}, "minutes is nan"),
        ({"most": -1}, "trials is -1"),
    ],
)
def test_requests_that_cannot_be_met(
    changes: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, **changes.pop("settings", {})}
    with pytest.raises(ConfigError, match=message):
        tune(str(pictures), out=tmp_path / "t", settings=settings, **changes)
    assert not (tmp_path / "t").exists()


def test_a_test_split_that_validates_cannot_choose(pictures: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "split": "0.7/0/0.3"}
    with pytest.raises(DataError, match="choosing by the test"):
        tune(str(pictures), out=tmp_path / "t", settings=settings)


def test_without_optuna_the_extra_is_named(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fieldmark\[tune\]'"):
        tune(str(pictures), out=tmp_path / "t", **KIND)


def test_ranges_and_values_on_the_command_line() -> None:
    def read(name: str, text: str) -> Any:
        return span(name, text) or text

    groups = [["lr=0.001..0.1"], ["augment", "flip_lr", "pad_crop(4)|flip_lr"], ["epochs", "5..9"]]
    found = grouped(groups, read, by="--over")
    assert found["lr"] == [Span("0.001", "0.1")]
    lr, augment, epochs = spaces(found, {}, monitor="val_accuracy")
    assert (lr.low, lr.high, lr.log, lr.whole) == (0.001, 0.1, True, False)
    assert augment.values == ("flip_lr", "pad_crop(4)|flip_lr")
    assert (epochs.low, epochs.log, epochs.whole) == (5, False, True)
    for words, message in (
        ([["lr"]], "has no values"),
        ([["lr", "1", "2"], ["lr", "3"]], "there twice"),
        ([["l r", "1"]], "no setting"),
    ):
        with pytest.raises(ConfigError, match=message):
            grouped(words, read, by="--over")


def test_words_are_read_as_the_flag_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["compare", "digits", "--vary", "lr", "0.1", "x"], 'unable to convert "x" into float'),
        (["compare", "digits", "--vary", "probe", "yes", "maybe"], '"maybe" into bool'),
        (["tune", "digits", "--over", "epochs", "1", "x"], 'unable to convert "x" into int'),
        (["compare", "digits", "--vary", "lr=0.1", "--vary", "l2", "-1", "0"], "at least two"),
        (["compare", "digits", "--vary", "l2", "-1", "0", "--vary", "ema", "0", "1"], "l2 is -1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert told in capsys.readouterr().err


# --- the space -----------------------------------------------------------------------------------


def test_the_space_by_default_holds_the_default() -> None:
    for config in (
        TrainConfig(size=288, probe=True, epochs=0),
        TrainConfig(size=32, lr=0.05, augment="pad_crop(4)|flip_lr", label_smoothing=0.05),
        TrainConfig(size=224, lr=1e-3, backbone_lr=0.1, l2=5e-4, weight_decay=0, epochs=1),
    ):
        space = default_space(config)
        names = [axis.setting for axis in space]
        for axis in space:
            assert axis.within(getattr(config, axis.setting))
            assert len(set(axis.values)) == len(axis.values) != 1
        assert ("lr" in names) == bool(config.epochs)
        assert ("backbone_lr" in names) == (config.backbone_lr != 1)
        assert ("l2" in names) == (config.l2 > 0)
        assert ("size" in names) == (not config.epochs)


def test_suggested_numbers_are_rounded_within_the_range() -> None:
    axis = Axis(setting="lr", low=0.00123456, high=0.1)
    assert rounded(axis, 0.0123456) == 0.0123
    assert rounded(axis, 0.00123456) == 0.00123456
    assert rounded(Axis(setting="epochs", low=1, high=900), 765) == 765


def trial(value: float, curve: list[float], *, state: str = "complete", **settings: Any) -> Trial:
    return Trial(
        settings=settings, state=state, value=value, loss=1.0, curve=tuple(curve), kept=1,
        epochs=4, seconds=1.0, at=1.0,
    )  # fmt: skip


def test_hopeless_is_behind_the_median_at_the_same_part() -> None:
    good = [trial(0.9, [0.5, 0.6, 0.7, 0.9], lr=0.1) for _ in range(4)]

    def hopeless(curve: list[float], epochs: int, before: list[Trial] = good) -> bool:
        return study.is_hopeless(before, curve, epochs, monitor="val_accuracy")

    assert hopeless([0.3, 0.4], 4)
    assert not hopeless([0.3, 0.65], 4)
    assert not hopeless([0.3, 0.4], 4, good[:3])  # too few to be held against anybody
    assert not hopeless([0.3], 8)  # 1 of 8 epochs: nobody is judged yet
    assert hopeless([0.1, 0.3, 0.4, 0.4], 8)  # half of them, where the others had 0.6
    assert not hopeless([0.1, 0.2, 0.3, 0.4], 4)  # it is finished
    losses = [trial(0.2, [0.9, 0.6, 0.4, 0.2]) for _ in range(4)]
    assert study.is_hopeless(losses, [1.0, 0.9], 4, monitor="val_loss")
    assert not study.is_hopeless(losses, [1.0, 0.5], 4, monitor="val_loss")


def test_suggestions_are_a_function_of_the_trials_and_never_repeat() -> None:
    space = [
        Axis(setting="augment", values=("none", "flip_lr")),
        Axis(setting="size", values=(8, 9)),
    ]
    default = {"augment": "none", "size": 8}
    kind: dict[str, Any] = {"default": default, "monitor": "val_accuracy", "seed": 3}
    trials = [trial(0.5, [0.5])]
    while (found := study.suggest(space, trials, **kind)) is not None:
        assert found == study.suggest(space, trials, **kind)
        assert found not in [default, *(t.settings for t in trials)]
        trials.append(trial(0.5, [0.5], **found))
    assert len(trials) == 4


def test_the_search_finds_what_is_better_and_says_what_mattered() -> None:
    """A made-up score that rises with lr near 0.1 and does not care for weight_decay."""
    space = [
        Axis(setting="lr", low=1e-4, high=1.0),
        Axis(setting="weight_decay", low=1e-5, high=1e-1),
    ]
    default = {"lr": 1e-3, "weight_decay": 1e-3}
    kind: dict[str, Any] = {"default": default, "monitor": "val_accuracy"}

    def score(lr: float) -> float:
        return 1 - abs(math.log10(lr) + 1) / 4

    trials = [trial(score(1e-3), [score(1e-3)])]
    for _ in range(13):
        found = study.suggest(space, trials, seed=0, **kind)
        assert found is not None
        trials.append(trial(score(found["lr"]), [score(found["lr"])], **found))
    assert max(t.value for t in trials) > 0.95
    shares = study.importances(space, trials, **kind)
    assert shares["lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert study.importances(space, trials[:1], **kind) == {}


# --- what is told --------------------------------------------------------------------------------


def test_the_luck_of_a_seed_is_told(whole: Whole) -> None:
    finalists = (
        Finalist(trial=0, first=0.80, fresh=(0.81, 0.79), mean=0.80, loss=1.0),
        Finalist(trial=2, first=0.88, fresh=(0.81, 0.83), mean=0.84, loss=1.0),
    )
    told = " ".join(dataclasses.replace(whole.result, finalists=finalists, chosen=2)._luck())
    assert "gain of 0.0800 that made trial 2 the best, 0.0200 was left with 2 other seeds" in told
    assert "0.0600 was selection" in told


def test_p_is_corrected_for_the_trials_that_were_looked_at(whole: Whole, tmp_path: Path) -> None:
    journal = trials_file.read(RunDirectory(whole.path))
    right = ["1" * 20 + "0" * 7, "1" * 27]
    rows = [dataclasses.replace(journal.trials[0], state="complete", right=r) for r in right]
    search = object.__new__(searching._Search)
    search.journal = dataclasses.replace(journal, trials=(*rows, rows[0], rows[0]), again=())
    found = search._difference(1)
    assert found is not None
    assert found[0].p == mcnemar(7, 0)
    assert found[1] == pytest.approx(3 * mcnemar(7, 0))
    assert search._difference(0) is None
    kept = dataclasses.replace(whole.result, chosen=1, difference=found, finalists=())
    assert "It is better than the default" in " ".join(kept.verdict())
    chance = dataclasses.replace(kept, difference=(found[0], 0.2))
    assert "not shown to be better" in " ".join(chance.verdict())


@pytest.mark.drawn
def test_the_figure_is_drawn() -> None:
    from fieldmark.pages import figures

    points = [(1.0, 0.8, "complete"), (2.0, math.nan, "failed"), (3.0, 0.9, "complete")]
    png = figures.tuning(points, metric="val_accuracy", chosen=2)
    assert png.startswith(b"\x89PNG")


# --- what the default is -------------------------------------------------------------------------


def test_the_default_is_what_train_measures(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured once; the search of a setting that decides what is learnt has the recipe."""
    asked: list[Any] = []
    small = {"model": "small_cnn(width=2)", "size": 8, "epochs": 1}

    def chosen(request: Any, opened: Any, progress: Any) -> Any:
        asked.append(request)
        found = dataclasses.replace(request, settings={**small, **request.settings}, recipe="tiny")
        return SimpleNamespace(request=found)

    monkeypatch.setattr(choice, "choose", chosen)
    out = tmp_path / "t"
    for minutes in (5, 6):
        result = tune(str(pictures), minutes=minutes, most=1, out=out)
    assert len(asked) == 1
    assert result.rows[0].epochs == 1
    kept = json.loads((out / "tune.json").read_text("utf-8"))["default"]
    assert kept == {"recipe": "tiny", "settings": {**small, "seed": 0}}
    with pytest.raises(ConfigError):  # the rule's recipe, not the measured one
        tune(str(pictures), over={"epochs": "1..3"}, most=1, settings={"batch_size": -1})
    assert len(asked) == 1
