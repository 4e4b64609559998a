"""A run that is killed and resumed ends as the run that was not: the same bits and records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fieldmark
from fieldmark.config import TrainConfig
from fieldmark.run import RunDirectory

TIMES = ("seconds", "images_per_second", "data_wait")

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
    "save_every_steps": 3,
    "threads": 1,
    "split": "0.6/0.2/0.2",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ by their stripes, under noise; unequal in number."""
    root = tmp_path_factory.mktemp("data") / "stripes"
    rng = np.random.default_rng(0)
    for label, count in (("flat", 40), ("rows", 30), ("columns", 20)):
        (root / label).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 140, (10, 10, 3))
            if label == "rows":
                image[::2] += 80
            if label == "columns":
                image[:, ::2] += 80
            Image.fromarray(image.astype(np.uint8)).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run that nobody disturbs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    fieldmark.train(pictures, out=out, progress=False, **SETTINGS)
    return RunDirectory(out)


def records(run: RunDirectory) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in TIMES} for record in run.records()]


def assert_same(run: RunDirectory, whole: RunDirectory) -> None:
    assert records(run) == records(whole)
    for name in ("model.safetensors", "evaluation.json", "predictions.csv", "gallery.json"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    mine, other = run.load_checkpoint(), whole.load_checkpoint()
    assert mine is not None
    assert other is not None
    for name, tensor in other["module"].items():
        assert (mine["module"][name] == tensor).all(), name
    for name, tensor in other["ema"].items():
        assert (mine["ema"][name] == tensor).all(), name


def test_the_same_settings_give_the_same_run(
    pictures: Path, whole: RunDirectory, tmp_path: Path
) -> None:
    again = fieldmark.train(pictures, out=tmp_path / "again", progress=False, **SETTINGS)
    assert_same(RunDirectory(again.path), whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 4, 8, 15, 29, 41])
def test_stopped_at_a_step(
    pictures: Path,
    whole: RunDirectory,
    tmp_path: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception at any step, also between two checkpoints, loses nothing."""
    from fieldmark.fit import loop

    real = loop._step

    def failing(state, batch, plan):  # type: ignore[no-untyped-def]
        if state.step == step:
            raise Killed
        real(state, batch, plan)

    monkeypatch.setattr(loop, "_step", failing)
    with pytest.raises(Killed):
        fieldmark.train(pictures, out=tmp_path / "run", progress=False, **SETTINGS)
    monkeypatch.setattr(loop, "_step", real)
    resumed = fieldmark.resume(tmp_path / "run", progress=False)
    assert_same(RunDirectory(resumed.path), whole)


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


def test_sigkill_at_five_moments(pictures: Path, whole: RunDirectory, tmp_path: Path) -> None:
    """One run, killed five times: before its first epoch, between checkpoints, while writing."""
    run = RunDirectory(tmp_path / "killed")
    checkpoint = run.path / "last.ckpt"

    def saved(times: int) -> Callable[[], bool]:
        seen: set[int] = set()

        def happened() -> bool:
            try:
                seen.add(checkpoint.stat().st_mtime_ns)
            except FileNotFoundError:
                return False
            return len(seen) > times

        return happened

    moments = [
        lambda: (run.path / "config.json").exists(),
        saved(2),
        lambda: any(run.path.glob(".last.ckpt.part")),
        saved(4),
        lambda: any(run.path.glob(".m*.part")),
    ]
    words = ["train", str(pictures), "--out", str(run.path), *flags()]
    kills = 0
    for moment in moments:
        process = command(*words)
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
        words = ["resume", str(run.path)]
    final = command(*words)
    out, err = final.communicate(timeout=200)
    assert final.returncode == 0, err.decode()
    assert kills >= 4, "the run was over before it could be killed"
    assert not list(run.path.glob(".*.part"))
    assert_same(run, whole)
    assert b"test: accuracy" in out


def test_ctrl_c_saves_and_says_how_to_go_on(
    pictures: Path, whole: RunDirectory, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "stopped")
    process = command("train", str(pictures), "--out", str(run.path), *flags(), "--json")
    wait_for(lambda: run.has("metrics.jsonl"), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert f"fieldmark resume {run.path}" in err.decode()
    assert out == b""
    resumed = command("resume", str(run.path), "--json")
    out, err = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, err.decode()
    assert json.loads(out)["epochs"] == len(whole.records())
    assert_same(run, whole)


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
