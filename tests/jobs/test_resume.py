"""A run that is killed and resumed ends as the run that was not: the same bits and records."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fieldmark
from fieldmark.cli import main
from fieldmark.data.batches import Batches
from fieldmark.errors import DivergedError, Interrupted, ResourceError
from fieldmark.fit import loop
from fieldmark.jobs import running
from fieldmark.pages import report
from fieldmark.progress import Silent
from fieldmark.runs import checkpoint
from fieldmark.runs.directory import RunDirectory
from fieldmark.scoring.scorer import Scorer
from fieldmark.settings.config import TrainConfig
from tests.faults import tiny_run

TIMES = ("seconds", "images_per_second", "data_wait", "waited")

SETTINGS = {
    "model": "small_cnn(width=4)",
    "size": 8,
    "epochs": 6,
    "batch_size": 8,
    "accumulate": 2,
    "ema": 0.9,
    "mix": "mixup(0.2)|cutmix(1.0)",
    "augment": "pad_crop(1)|rotate(10)|brightness(0.2)|erase(0.5)",
    "balance": True,
    "callbacks": "reduce_on_plateau(patience=1, factor=0.5)|early_stopping(patience=5)",
    "lr": 0.02,
    "optimizer": "adamw",
    "schedule": "one_cycle",
    "clip_norm": 5.0,
    "save_every": "3 steps",
    "threads": 1,
    "split": "0.6/0.2/0.2",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.make_pictures(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run that nobody disturbs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    fieldmark.train(pictures, out=out, progress=False, **SETTINGS)
    return RunDirectory(out)


def records(run: RunDirectory) -> list[dict[str, object]]:
    return [
        {k: v for k, v in record.items() if k not in TIMES}
        for record in fieldmark.load(run.path).history
    ]


def newest_state(run: RunDirectory) -> dict[str, Any]:
    found = checkpoint.newest(run.path)
    assert found is not None
    return found.state


def assert_same(run: RunDirectory, whole: RunDirectory) -> None:
    assert records(run) == records(whole)
    for name in (
        "model.safetensors",
        "evaluation.json",
        "predictions.csv",
        "gallery.json",
        "doctor.json",
    ):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    mine, other = newest_state(run), newest_state(whole)
    assert mine.keys() == other.keys()
    for key in other:
        assert same(mine[key], other[key]), key


def same(one: Any, other: Any) -> bool:
    """Bitwise, but for times."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(value, other[key]) for key, value in one.items() if key not in TIMES
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_same_settings_give_the_same_run(
    pictures: Path, whole: RunDirectory, tmp_path: Path
) -> None:
    again = fieldmark.train(pictures, out=tmp_path / "again", progress=False, **SETTINGS)
    assert_same(RunDirectory(again.path), whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 8, 41])
def test_stopped_at_a_step(
    pictures: Path,
    whole: RunDirectory,
    tmp_path: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception at any step, also between two checkpoints, loses nothing."""
    with dying_at(step, monkeypatch):
        fieldmark.train(pictures, out=tmp_path / "run", progress=False, **SETTINGS)
    resumed = fieldmark.resume(tmp_path / "run", progress=False)
    assert_same(RunDirectory(resumed.path), whole)


@contextlib.contextmanager
def dying_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever trains in the block dies when it is about to take the step after so many."""
    real = loop._step

    def failing(state: Any, batch: Any, plan: Any) -> None:
        if state.step == step:
            raise Killed
        real(state, batch, plan)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "_step", failing)
        yield


def command(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fieldmark", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def flags() -> list[str]:
    words = []
    for key, value in SETTINGS.items():
        name = "--" + key.replace("_", "-")
        words += [name] if value is True else [name, str(value)]
    return words


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not happened() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def test_ctrl_c_saves_and_says_how_to_go_on(
    pictures: Path, whole: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "stopped")
    process = command("train", str(pictures), "--out", str(run.path), *flags(), "--json")
    wait_for(lambda: run.has("metrics.jsonl"), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert f"fieldmark resume {run.path}" in err.decode()
    assert out == b""
    with pytest.raises(SystemExit, match="0"):
        main(["resume", str(run.path), "--json"])
    assert json.loads(capsys.readouterr().out)["epochs"] == len(records(whole))
    assert_same(run, whole)


# --- every setting ------------------------------------------------------------------------------

SMALL = {
    "model": "small_cnn(width=2, dropout=0.2)",
    "size": 8,
    "epochs": 3,
    "batch_size": 12,
    "lr": 0.02,
    "optimizer": "sgd",
    "schedule": "constant",
    "weight_decay": 0.01,
    "threads": 1,
    "split": "0.6/0.2/0.2",
    "seed": 3,
    "save_every": "1 step",
}
SETTINGS_WITH_STATE: dict[str, dict[str, Any]] = {
    "velocity and a schedule": {
        "optimizer": "sgd(momentum=0.9, nesterov=True)",
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "backbone_lr": 0.3,
        "bias_lr": 2.0,
        "last_batch": "drop",
    },
    "averages and mixed labels": {
        "optimizer": "adam",
        "ema": 0.8,
        "mix": "mixup(0.3)|cutmix",
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "clip_norm": 0.5,
        "accumulate": 3,
        "keep": "last",
    },
    "counters": {
        "optimizer": "keras_sgd(momentum=0.9)",
        "l2": 0.01,
        "monitor": "val_loss",
        "keep": "first_best",
        "epochs": 8,
        "callbacks": "early_stopping(2, min_delta=0.3)|reduce_on_plateau(0.5, 1, min_delta=9.0)",
    },
    "picks that span epochs": {
        "optimizer": "keras_adam",
        "balance": True,
        "augment": "pad_crop(1)|flip_lr|rotate(10)|brightness(0.2)|erase(0.5)",
        "last_batch": "keep",
        "split_seed": 4,
    },
    "stages": {
        "optimizer": "muon",
        "schedule": "one_cycle",
        "progressive": "5@0.3|6@0.7",
        "freeze_after": "blocks.0@1",
        "hardest": "0.6@1",
        "augment": "alternating_flip",
        "views": "flip",
        "whole_batches": True,
    },
    "a probe, then the head, then all": {
        "optimizer": "adamw",
        "probe": True,
        "freeze": True,
        "unfreeze_at_epoch": 1,
        "normalize": "dataset",
    },
    "a part, in another number type and order": {
        "train_from": "blocks.1",
        "unfreeze_at_epoch": 2,
        "precision": "bf16",
        "channels_last": False,
        "resize": "pad",
        "interpolation": "bicubic",
        "decode_side": 16,
    },
    "further figures": {"metrics": "top_k(2)|brier_loss"},
    "moving statistics": {"norm_statistics": "running"},
    "statistics that stay": {"norm_statistics": "frozen"},
    "shortened": {"landing": "3:13|8:11"},
    "more threads than there are cores": {"threads": 3, "augment": "random_resized_crop(0.5)"},
}
WITHOUT_STATE = {
    "weights",  # where training starts: in the checkpoint of the beginning
    "device",  # a resumed run computes where it began
    "compile",  # wraps the network; the network is what is stored
    "disk_gb",  # where decoded pictures are kept, not what they are
    "memory_gb",
    "max_pixels",  # which pictures there are, which is checked against the run's
    "range",  # part of the network's input
    "on_bad",
    "fail_on_leak",
    "loss",  # a function of logits and targets
}


def test_every_setting_is_in_the_table() -> None:
    """A new setting is resumed in a row of the table, or said to have no state."""
    covered = set(SMALL).union(*SETTINGS_WITH_STATE.values())
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert covered | WITHOUT_STATE == names
    assert not covered & WITHOUT_STATE


@pytest.mark.parametrize("row", list(SETTINGS_WITH_STATE))
def test_every_setting_is_resumed_exactly(
    pictures: Path, tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first epoch, and again in a later one."""
    settings = {**SMALL, **SETTINGS_WITH_STATE[row]}
    monkeypatch.setattr(running, "threads_for", lambda setting: setting or 2)
    whole = fieldmark.train(pictures, out=tmp_path / "whole", progress=False, **settings)
    with dying_at(2, monkeypatch):
        fieldmark.train(pictures, out=tmp_path / "run", progress=False, **settings)
    with dying_at(8, monkeypatch):
        fieldmark.resume(tmp_path / "run", progress=False)
    again = fieldmark.resume(tmp_path / "run", progress=False)
    assert torch.get_num_threads() == settings["threads"]
    told = "threads on 2 cores" in RunDirectory(again.path).read_text("log.txt")
    assert told == (settings["threads"] > 2)
    assert_same(RunDirectory(again.path), RunDirectory(whole.path))
    if row == "counters":
        assert 3 <= len(again.history) < 8, "it was not stopped early"
        assert again.history[-1]["lr"] < again.history[0]["lr"], "there was no plateau"


# --- requests to stop ---------------------------------------------------------------------------

STOPPED = {**SMALL, "probe": True, "ema": 0.9, "save_every": "epoch"}
STEPS = 5  # an epoch of 54 pictures in batches of 12


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    fieldmark.train(pictures, out=out, progress=False, **STOPPED)
    return RunDirectory(out)


@dataclasses.dataclass
class Asking(Silent):
    """Somebody who watches, and asks the process to stop when a count has begun."""

    what: str = ""
    number: int = 0

    def count(self, what: str, done: int, total: int) -> None:
        if what == self.what:
            os.kill(os.getpid(), self.number)


def asking_in(place: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """Have a function ask the process to stop, once, the second time it is called or later."""
    module, name, at = {
        "preview": (running, "preview", 1),
        "a step": (loop, "_update", STEPS + 2),
        "waiting for a picture": (Batches, "_make", 3),
        "validation": (Scorer, "over", 4),  # the probe has two passes
        "saving": (running, "_keep", 2),
        "the report": (report, "report", 1),
    }[place]
    real, calls = getattr(module, name), []

    def asking(*given: Any, **options: Any) -> Any:
        if name == "_make" and given[-1] != 1:  # the second epoch's batches alone
            return real(*given, **options)
        calls.append(name)
        if len(calls) == at:
            os.kill(os.getpid(), number)
            if name == "_make":
                time.sleep(0.3)  # so that it is waited for, in another thread
        return real(*given, **options)

    patch.setattr(module, name, asking)


@pytest.fixture
def stopping() -> Iterator[None]:
    """The handlers that a program in the foreground has; and nothing left behind."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    try:
        yield
        assert {number: signal.getsignal(number) for number in usual} == usual
        assert not [t for t in threading.enumerate() if t.name.startswith(("batches", "scan"))]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.usefixtures("stopping")
@pytest.mark.parametrize(
    ("place", "number", "steps"),
    [
        ("probe", signal.SIGTERM, 0),
        ("epoch 2/3", signal.SIGINT, STEPS + 1),
        ("a step", signal.SIGTERM, STEPS + 2),
        ("waiting for a picture", signal.SIGTERM, None),
        ("validation", signal.SIGHUP, 2 * STEPS),
        ("saving", signal.SIGHUP, STEPS),
        ("scoring val", signal.SIGTERM, 3 * STEPS),
        ("scoring test", signal.SIGINT, 3 * STEPS),
        ("the report", signal.SIGTERM, 3 * STEPS),
    ],
)
def test_a_request_to_stop_is_answered_wherever_the_run_is(
    pictures: Path,
    undisturbed: RunDirectory,
    tmp_path: Path,
    place: str,
    number: int,
    steps: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watching = Asking(place, number)
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        if place not in ("probe", "epoch 2/3", "scoring val", "scoring test"):
            asking_in(place, number, patch)
        fieldmark.train(pictures, out=tmp_path / "run", progress=watching, **STOPPED)
    assert caught.value.exit_code == 128 + number
    assert f"fieldmark resume {tmp_path / 'run'}" in str(caught.value)
    stopped = newest_state(RunDirectory(tmp_path / "run"))
    assert stopped is not None
    assert steps is None or stopped["step"] == steps
    assert_same(RunDirectory(fieldmark.resume(tmp_path / "run", progress=False).path), undisturbed)


@pytest.mark.usefixtures("stopping")
@pytest.mark.parametrize("place", ["reading pictures", "preview"])
def test_a_request_before_training_leaves_nothing(
    pictures: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "preview":
        asking_in(place, signal.SIGTERM, monkeypatch)
    watching = Asking(place, signal.SIGTERM)
    with pytest.raises(Interrupted, match="the same command begins anew") as caught:
        fieldmark.train(pictures, out=tmp_path / "run", progress=watching, **STOPPED)
    assert caught.value.exit_code == 143
    assert not (tmp_path / "run").exists()


# --- divergence and memory ----------------------------------------------------------------------


def diverging(monkeypatch: pytest.MonkeyPatch, *, healing: bool) -> None:
    """Let the gradient of step 8, in the second epoch, be none; for good, or until going back."""
    real = loop.check_finite

    def check(state: Any, plan: Any) -> None:
        if state.step == STEPS + 2 and not (healing and state.rolled_back):
            state.tally.norm.fill_(float("nan"))
        real(state, plan)

    monkeypatch.setattr(loop, "check_finite", check)


def test_going_back_survives_any_interruption(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL, "optimizer": "adamw", "ema": 0.9}
    diverging(monkeypatch, healing=True)
    whole = fieldmark.train(pictures, out=tmp_path / "whole", progress=False, **settings)
    directory = RunDirectory(whole.path)
    (incident,) = directory.read_json("incidents.json")["incidents"]
    assert "the gradient is not a finite number at step 8 (epoch 2" in incident
    assert "back to the beginning of epoch 2, with half the learning rate" in incident
    assert f"warning: {incident}" in directory.read_text("log.txt")
    assert [record["lr"] for record in whole.history] == [0.02, 0.01, 0.01]
    for step in (STEPS, STEPS + 1, STEPS + 3):
        out = tmp_path / f"run {step}"
        with dying_at(step, monkeypatch):
            fieldmark.train(pictures, out=out, progress=False, **settings)
        fieldmark.resume(out, progress=False)
        assert_same(RunDirectory(out), directory)
        assert RunDirectory(out).read_json("incidents.json")["incidents"] == [incident]


def test_what_diverges_twice_stops_with_the_best_epoch_kept(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging(monkeypatch, healing=False)
    for attempt in range(2):
        with pytest.raises(DivergedError, match="the best epoch so far, 1, is kept") as caught:
            if attempt:
                fieldmark.resume(tmp_path / "run", progress=False)
            else:
                fieldmark.train(pictures, out=tmp_path / "run", progress=False, **SMALL)
        assert caught.value.exit_code == 5
        assert "also with half the learning rate; try a lower --lr" in str(caught.value)
    assert fieldmark.load(tmp_path / "run").selected["epoch"] == 1


def with_memory_for(pictures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop._forward

    def forward(module: Any, images: torch.Tensor, plan: Any) -> torch.Tensor:
        if len(images) > pictures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(module, images, plan)

    monkeypatch.setattr(loop, "_forward", forward)


def test_out_of_memory_is_the_run_with_smaller_micro_batches(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL, "epochs": 2}
    wanted = fieldmark.train(
        pictures, out=tmp_path / "wanted", progress=False, **{**settings, "accumulate": 4}
    )
    with_memory_for(3, monkeypatch)
    with dying_at(7, monkeypatch):
        fieldmark.train(pictures, out=tmp_path / "run", progress=False, **settings)
    run = fieldmark.resume(tmp_path / "run", progress=False)
    assert [r["train_loss"] for r in run.history] == [r["train_loss"] for r in wanted.history]
    incidents = RunDirectory(run.path).read_json("incidents.json")["incidents"]
    assert [text.partition(": ")[2].partition(";")[0] for text in incidents] == [
        "micro-batches of 6 pictures from now on, in place of 11",
        "micro-batches of 3 pictures from now on, in place of 6",
    ]


def test_no_memory_for_one_picture_is_said(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory_for(0, monkeypatch)
    with pytest.raises(ResourceError, match="smaller --size or --model") as caught:
        fieldmark.train(pictures, out=tmp_path / "run", progress=False, **SMALL)
    assert caught.value.exit_code == 6


# --- what is not gone on with -------------------------------------------------------------------


def test_a_finished_run_is_not_trained_on(whole: RunDirectory) -> None:
    before = (whole.path / "model.safetensors").read_bytes()
    fieldmark.resume(whole.path, progress=False)
    assert (whole.path / "model.safetensors").read_bytes() == before


def test_changed_pictures_are_refused(pictures: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    run = fieldmark.train(copy, out=tmp_path / "run", progress=False, **{**SETTINGS, "epochs": 1})
    victim = copy / "flat" / "3.png"
    Image.fromarray(255 - np.asarray(Image.open(victim))).save(victim)
    with pytest.raises(fieldmark.RunError, match="1 changed"):
        fieldmark.resume(run.path, progress=False)
    victim.unlink()
    with pytest.raises(fieldmark.RunError, match="1 gone"):
        fieldmark.resume(run.path, progress=False)


def test_pictures_that_moved_can_be_named(pictures: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    run = fieldmark.train(copy, out=tmp_path / "run", progress=False, **{**SETTINGS, "epochs": 1})
    copy.rename(tmp_path / "moved")
    with pytest.raises(fieldmark.RunError, match="--data DIR"):
        fieldmark.resume(run.path, progress=False)
    fieldmark.resume(run.path, data=tmp_path / "moved", progress=False)


def test_the_config_alone_makes_the_run_again(
    pictures: Path, whole: RunDirectory, tmp_path: Path
) -> None:
    config = TrainConfig.from_json(whole.read_text("config.json"), where="config.json")
    again = fieldmark.train(pictures, config=config, out=tmp_path / "again", progress=False)
    assert_same(RunDirectory(again.path), whole)
