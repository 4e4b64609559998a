"""A finished run says how to go on, and another one begins from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import fieldmark
from fieldmark.cli import main
from fieldmark.errors import ConfigError, DataError, RunError
from tests.faults import tiny_run

SETTINGS: dict[str, Any] = {
    "model": "small_cnn(width=4)",
    "size": 8,
    "epochs": 2,
    "batch_size": 24,
    "split": "0.6/0.2/0.2",
    "lr": 0.02,
    "threads": 1,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.make_pictures(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture(scope="module")
def first(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> fieldmark.Run:
    out = tmp_path_factory.mktemp("runs") / "first"
    return fieldmark.train(pictures, out=out, progress=False, **SETTINGS)


def test_resuming_a_finished_run_says_so(
    first: fieldmark.Run, pictures: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(first.path, tmp_path / "first")
    log = (run / "log.txt").read_text()
    fieldmark.resume(run, data=pictures, progress=False)
    added = (run / "log.txt").read_text().removeprefix(log)
    assert f"{run} is finished, after epoch 2" in added
    assert f"fieldmark train DATA --from {run} --epochs N" in added
    assert "after step" not in added


def test_settings_weights_and_order_of_classes_are_the_runs(
    pictures: Path, first: fieldmark.Run, tmp_path: Path
) -> None:
    """A new class comes behind the others, wherever its name sorts."""
    more = shutil.copytree(pictures, tmp_path / "stripes")
    rng = np.random.default_rng(1)
    (more / "aaa").mkdir()
    for i in range(12):
        noise = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
        Image.fromarray(noise).save(more / "aaa" / f"{i}.png")
    second = fieldmark.train(
        more, from_run=first.path, epochs=1, lr=1e-9, out=tmp_path / "second", progress=False
    )
    assert second.class_names == (*first.class_names, "aaa")
    kept = ("model", "size", "batch_size", "split", "optimizer", "augment", "schedule")
    assert all(getattr(second.config, k) == getattr(first.config, k) for k in kept)
    assert (second.config.epochs, second.config.lr) == (1, 1e-9)
    old, new = (load_file(run.path / "model.safetensors") for run in (first, second))
    for name, value in old.items():
        if "running" in name or "num_batches" in name:
            continue
        rows = new[name][: len(value)] if name.startswith("head") else new[name]
        np.testing.assert_allclose(rows, value, atol=1e-5, err_msg=name)
    # Its own order is kept by all that reads the pictures again.
    fieldmark.resume(second.path, progress=False)
    again = fieldmark.load(second.path).evaluate(more, progress=False)["test"]
    assert [row["name"] for row in again["per_class"]] == list(second.class_names)


def test_what_does_not_go_together_is_refused(
    pictures: Path, first: fieldmark.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="a recipe or a config file were both given"):
        fieldmark.train(pictures, from_run=first.path, recipe="tiny", progress=False)
    with pytest.raises(RunError, match="is not there"):
        fieldmark.train(pictures, from_run=tmp_path / "none", progress=False)
    fewer = shutil.copytree(pictures, tmp_path / "fewer")
    shutil.rmtree(fewer / "flat")
    with pytest.raises(DataError, match="has no class flat, which the run knows"):
        fieldmark.train(fewer, from_run=first.path, out=tmp_path / "x", progress=False)
    with pytest.raises(SystemExit) as end:
        main(["train", str(pictures), "--from", str(first.path), "--config", "config.json"])
    assert end.value.code == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--num-classes", "--size"])
def test_numbers_below_nothing(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["models", "cifar_resnet", flag, "-5"])
    assert end.value.code == 2
    assert f"{flag} is -5" in capsys.readouterr().err
