"""``--minutes``: the best within a time, on disk as it is found, exact under kills and repeats."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from fieldmark.errors import ConfigError, RunError
from fieldmark.fit.loop import Plan
from fieldmark.fit.state import TrainState
from fieldmark.jobs import best, choice, running
from fieldmark.jobs.clock import Clock, Pace
from fieldmark.jobs.request import TrainRequest
from fieldmark.runs import budget
from fieldmark.runs import choice as tried
from fieldmark.runs.directory import RunDirectory
from fieldmark.settings.recipes.candidates import Candidate
from fieldmark.settings.resolved import Landing
from tests.making import bright_halves

SMALL: dict[str, str | int | float | bool] = {
    "model": "small_cnn(width=2)",
    "size": 8,
    "batch_size": 8,
}
PROBES = [
    Candidate(f"probe, {size} px", "probe", {"model": SMALL["model"], "size": size}, "small")
    for size in (8, 12)
]
GOOD = Candidate("good", "tiny", {**SMALL, "epochs": 8})
FIXED = {**SMALL, "epochs": 6, "recipe": "tiny", "threads": 1}


class Killed(BaseException):
    """As SIGKILL: nothing is done after it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 24 pictures, bright at the top or at the bottom, and a test split."""
    return bright_halves(tmp_path_factory.mktemp("within"))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that take no time: two probes and a network from scratch, which is the best."""
    set_up(monkeypatch)


def set_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(choice, "candidates", lambda facts, networks, **rest: (*PROBES, GOOD))
    tuned = Candidate("tuned", "tiny", {**SMALL, "epochs": 2}, "small")
    patch.setattr(choice, "fine_tuned", lambda probe, facts: tuned)

    def worth(self: Any, trial: Any) -> tuple[float, float]:
        return trial.candidate.recipe == "probe", trial.judged.loss

    patch.setattr(choice.Trials, "_worth", worth)


def model(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def killed(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, number: int) -> None:
    """Have a call die before it does anything: the ``number``-th one."""
    real, count = getattr(target, name), iter(range(1, 10**6))

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(count) == number:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, dying)


# --- a recipe with a time --------------------------------------------------------------------


def test_enough_time_changes_nothing(folder: Path, tmp_path: Path) -> None:
    plain = fieldmark.train(folder, out=tmp_path / "plain", progress=False, **FIXED)
    timed = fieldmark.train(folder, out=tmp_path / "timed", minutes=10, progress=False, **FIXED)
    assert model(plain.path) == model(timed.path)
    assert timed.config == plain.config
    found = budget.read(RunDirectory(timed.path))
    assert found is not None and found.minutes == 10 and 0 < found.seconds < 600
    assert budget.read(RunDirectory(plain.path)) is None


def test_a_training_that_is_too_long_ends_in_time(folder: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    settings = FIXED | {"epochs": 50_000, "schedule": "linear", "monitor": "val_loss"}
    run = fieldmark.train(folder, out=tmp_path / "run", minutes=0.2, progress=False, **settings)
    assert time.monotonic() - start < 60  # without a landing it takes hours
    assert run.config.epochs == 50_000
    landing = run.config.landing
    assert landing != "none"
    assert run.history[-1]["step"] == int(landing.rpartition(":")[2])
    assert run.history[-1]["lr"] < 0.05 * run.config.lr
    assert "the schedule is gone through faster" in (run.path / "log.txt").read_text()
    assert (run.path / "report.html").is_file()


@pytest.fixture
def lands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that has a training of 60 steps land twice, and the second time within an epoch."""
    due = {5: Landing(5, 30), 12: Landing(12, 20)}

    def landing(self: Pace, state: TrainState, plan: Plan) -> Landing | None:
        found = due.get(state.step)
        last = plan.last_step or plan.total_steps
        return found if found is not None and found.end < last else None

    monkeypatch.setattr(Pace, "landing", landing)


@pytest.mark.usefixtures("lands")
def test_what_the_clock_decided_repeats_without_it(folder: Path, tmp_path: Path) -> None:
    settings = FIXED | {"progressive": "6@0.5", "epochs": 12}
    run = fieldmark.train(folder, out=tmp_path / "run", minutes=5, progress=False, **settings)
    assert run.config.landing == "5:30|12:20"
    assert run.history[-1]["step"] == 20
    again = fieldmark.train(
        folder, config=run.path / "config.json", out=tmp_path / "again", progress=False
    )
    assert model(again.path) == model(run.path)
    assert again.config == run.config


@pytest.mark.usefixtures("lands")
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_killed_around_a_landing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = fieldmark.train(folder, out=tmp_path / "whole", minutes=5, progress=False, **FIXED)
    with monkeypatch.context() as patch:
        killed(patch, RunDirectory, "save_checkpoint", number)
        with contextlib.suppress(Killed):
            fieldmark.train(folder, out=tmp_path / "run", minutes=5, progress=False, **FIXED)
    if not (tmp_path / "run" / "config.json").is_file():
        return  # it was killed before it could be resumed
    run = fieldmark.resume(tmp_path / "run", progress=False)
    assert run.config.landing == whole.config.landing != "none"
    assert model(run.path) == model(whole.path)


def test_time_used_before_counts(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        killed(patch, running, "_keep", 2)
        with pytest.raises(Killed):
            fieldmark.train(folder, out=tmp_path / "run", minutes=5, progress=False, **FIXED)
    run = RunDirectory(tmp_path / "run")
    budget.write(run, budget.Budget(minutes=5, seconds=299.9))
    resumed = fieldmark.resume(run.path, progress=False)
    step, end = map(int, resumed.config.landing.split("|")[-1].split(":"))
    assert end < 36 and end - step <= 2
    found = budget.read(run)
    assert found is not None and found.seconds >= 299.9


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), True, "3"])
def test_minutes_that_do_not_go(minutes: Any) -> None:
    with pytest.raises(ConfigError, match="minutes"):
        TrainRequest(data="d", minutes=minutes)


# --- the clock ---------------------------------------------------------------------------------


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Time:
    found = Time()
    monkeypatch.setattr("fieldmark.jobs.clock.time", found)
    return found


def a_plan(total: int, last: int | None = None) -> Any:
    return type("Plan", (), {"total_steps": total, "last_step": last, "epochs": total // 10})()


def steps(pace: Pace, hands: Time, count: int, seconds: float) -> None:
    for _ in range(count):
        hands.now += seconds
        pace.step()


def test_a_pace_that_suffices_does_not_land(hands: Time) -> None:
    clock = Clock(2)
    pace = Pace(clock, validation=10, scored=20, batch_size=10)
    steps(pace, hands, 21, 0.5)
    state = type("State", (), {"step": 21})()
    assert pace.landing(state, a_plan(200)) is None
    assert clock.left == pytest.approx(120 - 10.5)


def test_a_pace_that_does_not_suffice_lands_in_time(hands: Time) -> None:
    pace = Pace(Clock(2), validation=10, scored=20, batch_size=10)
    steps(pace, hands, 21, 1.0)
    state = type("State", (), {"step": 21})()
    found = pace.landing(state, a_plan(200))
    assert found is not None and found.step == 21
    left = 120 - 21 - 7 - 20 / 30  # less report and scores
    per_step = 1 + 1 / 30  # with its share of a validation each ten steps
    assert 0.9 * left < (found.end - found.step) * per_step <= left
    assert pace.landing(state, a_plan(200, found.end)) is None
    steps(pace, hands, 40, 3.0)  # another program wants the processor
    state.step = 61
    second = pace.landing(state, a_plan(200, found.end))
    assert second is not None and second.end < found.end


def test_no_verdict_before_the_speed_is_known(hands: Time) -> None:
    pace = Pace(Clock(2), validation=10, scored=20, batch_size=10)
    state = type("State", (), {"step": 3})()
    steps(pace, hands, 3, 1.0)
    assert pace.landing(state, a_plan(10_000)) is None


@pytest.mark.parametrize(("step", "lands"), [(28, True), (29, False), (30, False)])
def test_the_last_step_is_not_shortened(hands: Time, step: int, lands: bool) -> None:
    """A landing at step 29 that ends at 29 would be none: with no time left at all."""
    pace = Pace(Clock(1), validation=10, scored=20, batch_size=10)
    steps(pace, hands, 28, 10.0)
    state = type("State", (), {"step": step})()
    found = pace.landing(state, a_plan(200, last=30))
    assert found == (Landing(28, 29) if lands else None)


# --- the best within a time ------------------------------------------------------------------


@pytest.mark.usefixtures("listed")
def test_the_best_is_an_ordinary_run(folder: Path, tmp_path: Path) -> None:
    run = fieldmark.train(folder, out=tmp_path / "run", minutes=5, progress=False, threads=1)
    found = tried.read(RunDirectory(run.path))
    assert found is not None and found.chosen is not None
    names = [each.name for each in found.tried]
    assert names[:3] == [PROBES[0].name, "good", PROBES[1].name]
    assert not (run.path / "next").exists()
    assert {"report.html", "evaluation.json", "last.ckpt"} <= {f.name for f in run.path.iterdir()}
    again = fieldmark.train(
        folder, config=run.path / "config.json", out=tmp_path / "again", progress=False
    )
    assert model(again.path) == model(run.path)
    assert again.config == run.config
    resumed = fieldmark.resume(run.path, progress=False)  # it is finished
    assert model(resumed.path) == model(again.path)


@pytest.mark.usefixtures("listed")
def test_a_probe_is_usable_while_others_are_tried(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, choice.Trials, "_train", 1)
    with pytest.raises(Killed):
        fieldmark.train(folder, out=tmp_path / "run", minutes=5, progress=False)
    run = fieldmark.load(tmp_path / "run")
    answers = run.predict(folder / "test")
    assert len(answers) == 16
    assert {file.name for file in run.path.iterdir()} >= {"config.json", "metrics.jsonl"}


STAGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "at the first trial": lambda patch: killed(patch, choice.Trials, "_probe", 1),
    "at the second trial": lambda patch: killed(patch, choice.Trials, "_probe", 2),
    "as the first probe becomes the run": lambda patch: killed(patch, running, "begin", 1),
    "before it is moved": lambda patch: killed(patch, best._Search, "_move", 1),
    "while it is moved": lambda patch: killed(patch, Path, "replace", 3),
    "when it is moved": lambda patch: killed(patch, best, "_remove", 2),
    "in a training that is tried": lambda patch: killed(patch, choice, "Validation", 1),
    "in the last training": lambda patch: killed(patch, running, "_keep", 4),
    "before the scores": lambda patch: killed(patch, running, "_conclude", 1),
}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch)
        out = tmp_path_factory.mktemp("runs") / "whole"
        fieldmark.train(folder, out=out, minutes=5, progress=False, threads=1)
        yield out


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed(
    folder: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        STAGES[stage](patch)
        with pytest.raises(Killed):
            fieldmark.train(folder, out=out, minutes=5, progress=False, threads=1)
    assert (out / "budget.json").is_file()
    run = fieldmark.resume(out, progress=False)
    assert not (out / "next").exists()
    assert model(out) == model(whole)
    mine, theirs = (tried.read(RunDirectory(path)) for path in (out, whole))
    assert mine is not None and theirs is not None
    pairs = zip(mine.tried, theirs.tried, strict=True)
    assert all(
        dataclasses.replace(a, seconds=0) == dataclasses.replace(b, seconds=0) for a, b in pairs
    )
    assert run.config == fieldmark.load(whole).config
    for name in ("evaluation.json", "predictions.csv", "config.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert {f.name for f in out.iterdir()} == {f.name for f in whole.iterdir()}


@pytest.mark.usefixtures("listed")
def test_no_time_at_all_still_gives_a_model(folder: Path, tmp_path: Path) -> None:
    run = fieldmark.train(folder, out=tmp_path / "run", minutes=0.001, progress=False)
    found = tried.read(RunDirectory(run.path))
    assert found is not None and found.chosen is not None
    assert found.chosen.name == PROBES[0].name
    assert [each.outcome for each in found.tried].count(tried.LATE) >= 1
    assert all(each.why for each in found.tried)


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("kill", [False, True])
def test_a_training_without_time_is_tried_with_fewer_epochs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    real = choice.Trials._has_time

    def has_time(self: Any, seconds: float, **rest: Any) -> bool:
        return real(self, seconds, **rest) and not (self._trials and seconds > 1e6)

    monkeypatch.setattr(choice.Trials, "_has_time", has_time)
    real_time, count = time.perf_counter, iter(range(10**9))

    def epochs(self: Any, epochs: int, seconds: float) -> int:
        return 5

    def clock() -> float:
        return real_time() + 1e8 * next(count)

    trained = choice.Trials._trained

    def first_too_long(self: Any, *args: Any, **rest: Any) -> Any:
        with monkeypatch.context() as patch:
            if len(self._trials) == 1:  # the first probe
                patch.setattr(time, "perf_counter", clock)
            return trained(self, *args, **rest)

    monkeypatch.setattr(choice.Trials, "_trained", first_too_long)
    monkeypatch.setattr(choice.Trials, "_epochs_in_time", epochs)
    if kill:
        with monkeypatch.context() as patch:
            killed(patch, running, "_keep", 4)
            with pytest.raises(Killed):
                fieldmark.train(folder, out=tmp_path / "run", minutes=5, progress=False)
        run = fieldmark.resume(tmp_path / "run", progress=False)
    else:
        run = fieldmark.train(folder, out=tmp_path / "run", minutes=5, progress=False)
    found = tried.read(RunDirectory(run.path))
    assert found is not None and found.chosen is not None
    outcomes = {each.name: each.outcome for each in found.tried}
    assert outcomes["good"] == tried.LATE
    assert found.chosen.name == "good, epochs 5" and run.config.epochs == 5


@pytest.mark.usefixtures("listed")
def test_other_pictures_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, out = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(folder, copy)
    with monkeypatch.context() as patch:
        killed(patch, choice.Trials, "_train", 1)
        with pytest.raises(Killed):
            fieldmark.train(copy, out=out, minutes=5, progress=False)
    next((copy / "train" / "up").iterdir()).unlink()
    with pytest.raises(RunError, match="pictures changed"):
        fieldmark.resume(out, progress=False)
    with pytest.raises(RunError, match="still choosing"):
        fieldmark.resume(out, allow_data_change=True, progress=False)
    moved = fieldmark.resume(out, data=folder, progress=False)
    assert moved.path == out


@pytest.mark.usefixtures("listed")
def test_a_candidate_that_cannot_be_trained_is_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = running.begin

    def begin(job: Any, request: Any, **rest: Any) -> Any:
        if job.config.epochs == 8:
            raise fieldmark.errors.DivergedError("the loss is not a number")
        return real(job, request, **rest)

    monkeypatch.setattr(running, "begin", begin)
    run = fieldmark.train(folder, out=tmp_path / "run", minutes=5, progress=False)
    found = tried.read(RunDirectory(run.path))
    assert found is not None and found.chosen is not None and found.chosen.name != "good"
    by_name = {each.name: each for each in found.tried}
    assert by_name["good"].outcome in (tried.FAILED, tried.WORSE)


# --- what there was no time to try -----------------------------------------------------------

DIRECT = Candidate("direct", "tiny_objects", {**SMALL, "epochs": 12})
USELESS = Candidate("useless", "tiny_objects", {**SMALL, "epochs": 1, "lr": 1e-9})


def no_time_to_try(patch: pytest.MonkeyPatch, candidate: Candidate) -> None:
    """A probe that knows nothing, and one that trains, which there is no time to try."""
    weak = Candidate("probe", "probe", {"model": SMALL["model"], "size": 1}, "small")
    patch.setattr(choice, "candidates", lambda facts, networks, **rest: (weak, candidate))
    patch.setattr(choice.Trials, "_fine_tune", lambda self: None)
    late = "no time left for it"
    patch.setattr(choice.Trials, "_no_time", lambda self, c, pool: "" if c.is_probe else late)
    patch.setattr(choice.Trials, "_can_be_trained", lambda self, c, epoch: True)


DIRECT_STAGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "nowhere": lambda patch: None,
    "in its training": lambda patch: killed(patch, running, "_keep", 4),
    "as its only epoch is kept": lambda patch: killed(patch, running, "_keep", 2),
    "before it is recorded": lambda patch: killed(patch, choice.Trials, "settle", 1),
    "before it is taken": lambda patch: killed(patch, best._Search, "_take", 2),
    "while it is moved": lambda patch: killed(patch, Path, "replace", 16),
}


def killed_and_resumed(
    candidate: Candidate, folder: Path, out: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[fieldmark.Run, tuple[tried.Tried, ...]]:
    """The run, and what was tried for it, where the candidate was trained without a trial."""
    no_time_to_try(monkeypatch, candidate)
    with monkeypatch.context() as patch:
        DIRECT_STAGES[stage](patch)
        with contextlib.suppress(Killed):
            fieldmark.train(folder, out=out, minutes=5, progress=False, threads=1)
            assert stage == "nowhere"
    run = fieldmark.resume(out, progress=False)
    found = tried.read(RunDirectory(out))
    assert found is not None
    assert not (out / "next").exists()
    return run, found.tried


@pytest.mark.parametrize("stage", DIRECT_STAGES)
def test_what_there_was_no_time_to_try_is_trained_in_the_time_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    out = tmp_path / "run"
    run, (probe, direct) = killed_and_resumed(DIRECT, folder, out, stage, monkeypatch)
    assert run.config.epochs == 12
    assert (probe.outcome, direct.outcome) == (tried.WORSE, tried.CHOSEN)
    assert direct.name == "direct" and direct.accuracy > 0.8
    assert "without a trial" in direct.why
    again = fieldmark.train(folder, config=out / "config.json", out=tmp_path / "b", progress=False)
    assert model(again.path) == model(out)
    assert "direct" in (out / "report.html").read_text()


@pytest.mark.parametrize("stage", ["nowhere", "as its only epoch is kept", "before it is recorded"])
def test_it_has_to_be_better_on_validation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    run, found = killed_and_resumed(USELESS, folder, tmp_path / "run", stage, monkeypatch)
    assert (run.config.probe, found[0].name) == (True, "probe")
    assert [each.outcome for each in found] == [tried.CHOSEN, tried.WORSE]


def test_without_a_limit_everything_is_tried_and_a_kill_costs_nothing(
    folder: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch)
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed(patch, running, "_keep", 4)
        with pytest.raises(Killed):
            fieldmark.train(folder, out=out, progress=False, threads=1)
    found = budget.read(RunDirectory(out))
    assert found is not None and found.minutes is None and found.seconds
    fieldmark.resume(out, progress=False)
    plain = fieldmark.train(folder, out=tmp_path / "plain", progress=False, threads=1)
    assert model(plain.path) == model(out)
    names = [each.name for each in tried.read(RunDirectory(plain.path)).tried]
    assert names == ["probe, 8 px", "good", "probe, 12 px"]


def test_the_record_is_read_strictly(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert budget.read(run) is None
    value = budget.Budget(
        minutes=3,
        seconds=1.5,
        wanted=budget.Wanted(path="../data", fingerprint="f", settings={"seed": 3}, held="a"),
    )
    budget.write(run, value)
    assert budget.read(run) == value
    content = json.loads((tmp_path / budget.FILE).read_text())
    content["minutes"] = "3"
    (tmp_path / budget.FILE).write_text(json.dumps(content))
    with pytest.raises(RunError, match="minutes"):
        budget.read(run)
