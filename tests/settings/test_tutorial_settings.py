"""What the tutorials' recipes need of training: the epoch that is kept, the input's statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fieldmark
from fieldmark.errors import ConfigError, RunError
from fieldmark.files.typed import plain
from fieldmark.jobs import train as training
from fieldmark.jobs.evaluate import summary
from fieldmark.jobs.plan import describe, prepare
from fieldmark.pictures.inputs import channel_statistics
from fieldmark.runs import checkpoint, history, scores
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Selected
from tests.making import asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in train and test, tinted differently, 12 px."""
    root = tmp_path_factory.mktemp("data") / "tinted"
    rng = np.random.default_rng(0)
    for part, n in (("train", 24), ("test", 10)):
        for label, tint in enumerate(((90, 0, 0), (0, 0, 90))):
            place = root / part / f"c{label}"
            place.mkdir(parents=True)
            for i in range(n):
                noise = rng.integers(0, 160, (12, 12, 3)) + np.array(tint)
                Image.fromarray(noise.astype(np.uint8)).save(place / f"{i}.png")
    return root


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "model": "small_cnn(width=4)",
        "size": 12,
        "epochs": 3,
        "batch_size": 8,
        "augment": "none",
        "threads": 1,
        **changes,
    }


def weights(run: RunDirectory, name: str) -> dict[str, torch.Tensor]:
    return load_file(run.path / name)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_kept_epoch_and_the_other_one_are_files(
    folder: Path, tmp_path: Path, keep: str
) -> None:
    run = training.train(
        asked(
            folder,
            recipe="tiny",
            settings=settings(keep=keep, monitor="train_loss", lr=1e-6, schedule="constant"),
            out=tmp_path / keep,
        )
    )
    found = checkpoint.newest(run.path)
    assert found is not None
    last = found.state["module"]
    selected = run.model_info().selected
    if keep == "best":
        assert selected.metric == "train_loss"
        assert equal(weights(run, "final.safetensors"), last)
        assert not run.has("best.safetensors")
    else:
        assert selected == Selected(epoch=3, metric="last")
        assert equal(weights(run, "model.safetensors"), last)
        assert run.has("best.safetensors")
        assert not run.has("final.safetensors")
    assert "of epoch 3 (the last)" in run.read_text("report.html") or keep == "best"
    header = json.loads(run.read_text("model.json"))
    assert header["selected"] == selected.to_json()


def test_the_last_epoch_is_scored_when_it_is_kept(folder: Path, tmp_path: Path) -> None:
    """A rate that blows up after the first epoch leaves a best epoch that is not the last."""
    runs = {
        keep: training.train(
            asked(
                folder,
                recipe="tiny",
                settings=settings(
                    keep=keep, lr=0.05, monitor="val_loss", schedule="piecewise({0: 0.2, 2: 1.0})"
                ),
                out=tmp_path / keep,
            )
        )
        for keep in ("best", "last")
    }
    best, last = (runs[k] for k in ("best", "last"))
    # Training is the same; what is kept is not.
    assert equal(weights(best, "final.safetensors"), weights(last, "model.safetensors"))
    assert equal(weights(best, "model.safetensors"), weights(last, "best.safetensors"))
    record = history.read(last)[-1]
    got = last.read_json("evaluation.json")["parts"]["val"]
    assert got["accuracy"] == pytest.approx(record.val_accuracy)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_both_epochs_can_be_used(folder: Path, tmp_path: Path, keep: str) -> None:
    """For predictions, scores and exports; the run's own files stay those of what it kept."""
    out = tmp_path / "run"
    asked_for = settings(
        keep=keep, lr=0.05, monitor="val_loss", schedule="piecewise({0: 0.2, 1: 50.0})"
    )
    training.train(asked(folder, recipe="tiny", settings=asked_for, out=out))
    own = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    runs = {which: fieldmark.load(out, which=which) for which in ("auto", "best", "last")}
    epochs = {which: run.selected["epoch"] for which, run in runs.items()}
    assert epochs["last"] == 3 and epochs["auto"] == epochs[keep]
    assert epochs["best"] < 3, "the last epoch is the best, so this test tells nothing apart"
    picture = next((folder / "test").rglob("*.png"))
    answers = {which: run.predict(picture)[0].prob for which, run in runs.items()}
    assert answers["auto"] == answers[keep] != answers["last" if keep == "best" else "best"]
    for which, run in runs.items():
        found = run.evaluate(progress=False)["val"]
        record = history.read(RunDirectory(out))[epochs[which] - 1]
        assert found["accuracy"] == pytest.approx(record.val_accuracy)
    other = "last" if keep == "best" else "best"
    assert (out / f"evaluation-{other}.json").is_file()
    assert (out / f"predictions-{other}.csv").is_file()
    assert not (out / f"evaluation-{keep}.json").exists()
    changed = {n for n, data in own.items() if n != "log.txt" and (out / n).read_bytes() != data}
    assert not changed
    with pytest.raises(ConfigError, match="auto, best, last are accepted"):
        fieldmark.load(out, which="first")
    (out / "final.safetensors").unlink(missing_ok=True)
    (out / "best.safetensors").unlink(missing_ok=True)
    with pytest.raises(RunError, match="leave --which out"):
        fieldmark.load(out, which=other).predict(picture)


def test_the_loss_stands_with_and_without_the_l2_penalty(folder: Path, tmp_path: Path) -> None:
    """Keras's ``val_loss`` and ``evaluate`` have the penalty in them."""
    run = training.train(
        asked(folder, recipe="tiny", settings=settings(l2=0.01), out=tmp_path / "run")
    )
    found = scores.read(run).parts["val"]
    best = history.read(run)[run.model_info().selected.epoch - 1]
    assert found.l2_penalty is not None and found.l2_penalty > 0.01
    assert found.loss + found.l2_penalty == pytest.approx(best.val_loss, abs=1e-5)
    assert f"({found.loss + found.l2_penalty:.4f} with the L2 penalty)" in summary(plain(found))
    assert "with the L2 penalty" in run.read_text("report.html")


def test_pictures_of_each_class_are_counted(folder: Path, tmp_path: Path) -> None:
    run = training.train(
        asked(folder, recipe="tiny", settings=settings(epochs=1), out=tmp_path / "run")
    )
    assert "train/val/test of each class: c0 21/3/10, c1 21/3/10" in run.read_text("log.txt")
    page = run.read_text("report.html")
    row = '<th scope="row"><bdi>c1</bdi></th>' + "".join(
        f'<td class="num">{n}</td>' for n in (21, 3, 10)
    )
    assert row in page


def test_validating_on_the_test_part_is_said_in_the_report(folder: Path, tmp_path: Path) -> None:
    run = training.train(
        asked(
            folder,
            recipe="tiny",
            settings=settings(split="0.8/0/0.2"),
            out=tmp_path / "run",
        )
    )
    page = run.read_text("report.html")
    assert "its figures flatter" in page
    assert "The test split selected nothing" not in page
    assert "The same picture is in several splits" not in page, "val is test, on purpose"
    assert "No picture is in two splits" in page
    parts = run.read_json("evaluation.json")["parts"]
    assert parts["val"]["accuracy"] == parts["test"]["accuracy"]
    assert len(run.read_json("data.json")["parts"]["train"]) == 48


def test_a_recipe_divides_the_pictures(folder: Path) -> None:
    """Its split is known only after the pictures were looked at."""
    job = prepare(asked(folder, recipe="sneakers", settings={"size": 32}))
    assert job.config.split == "0.8/0/0.2"
    assert job.dataset.parts["val"] is job.dataset.parts["test"]
    assert len(job.dataset.parts["train"]) == 48
    job = prepare(asked(folder, recipe="sneakers", settings={"size": 32, "split": "0.5/0.5/0"}))
    assert len(job.dataset.parts["train"]) == 24
    small = {"model": "small_cnn", "size": 12, "batch_size": 4}
    cut = prepare(asked(folder, recipe="handwriting", settings=small))
    assert {name: len(part) for name, part in cut.dataset.parts.items()} == {
        "train": 42,
        "val": 4,  # of 6
        "test": 20,
    }
    assert any("left out: 2 of val, 0 of test" in note for note in cut.dataset.notes)
    assert any("50 epochs of 10 steps of 4" in line for line in describe(cut))  # 2 are dropped


def test_dataset_statistics_become_the_input(folder: Path) -> None:
    job = prepare(asked(folder, recipe="tiny", settings=settings(normalize="dataset")))
    part = job.dataset.parts["train"]
    pixels = np.stack([job.dataset.read(k) for k in part.keys]).astype(np.float64) / 255
    assert job.network.input.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert job.network.input.std == pytest.approx(pixels.std(axis=(0, 1, 2)))


def test_a_channel_that_never_varies_is_not_divided_by_zero() -> None:
    flat = torch.full((4, 3, 5, 5), 51, dtype=torch.uint8)
    mean, std = channel_statistics([flat[:1], flat[1:]])
    assert mean == pytest.approx((0.2, 0.2, 0.2))
    assert std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "white"),
    [
        ("scale", (1.0, 1.0, 1.0)),
        ("tf", (1.0, 1.0, 1.0)),
        ("none", (255.0, 255.0, 255.0)),
        ("caffe", (255 - 123.68, 255 - 116.779, 255 - 103.939)),
        ("torch", ((1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225)),
    ],
)
def test_named_scalings(folder: Path, name: str, white: tuple[float, float, float]) -> None:
    job = prepare(asked(folder, recipe="tiny", settings=settings(normalize=name)))
    values = job.network.input.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert values.flatten().tolist() == pytest.approx(white, rel=1e-5)


def test_the_mean_picture_is_taken_from_the_training_pictures(folder: Path) -> None:
    changes = {"model": "cifar_resnet(depth=8, centre=12)", "normalize": "scale"}
    job = prepare(asked(folder, recipe="tiny", settings=settings(**changes)))
    part = job.dataset.parts["train"]
    pixels = np.stack([job.dataset.read(k) for k in part.keys]).astype(np.float64) / 255
    mean = job.network.module.centre.mean
    assert mean.permute(1, 2, 0).numpy() == pytest.approx(pixels.mean(axis=0), abs=1e-6)
    with pytest.raises(ConfigError, match="centres 12 px, but the size is 16"):
        prepare(
            asked(
                folder,
                recipe="tiny",
                settings=settings(**changes, size=16) | {"size": 16},
            )
        )


def test_the_mean_picture_survives_resuming_and_predicting(folder: Path, tmp_path: Path) -> None:
    changes = {"model": "cifar_resnet(depth=8, centre=12)", "epochs": 1}
    run = training.train(
        asked(folder, recipe="tiny", settings=settings(**changes), out=tmp_path / "run")
    )
    stored = weights(run, "model.safetensors")["centre.mean"]
    assert float(stored.abs().max()) > 0
    assert torch.equal(run.load_model().module.centre.mean, stored)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_interpolation_is_the_users(folder: Path, interpolation: str) -> None:
    job = prepare(asked(folder, recipe="tiny", settings=settings(interpolation=interpolation)))
    assert job.network.input.interpolation == interpolation
    assert job.config.interpolation == interpolation


def test_sized_networks_are_built_for_the_size(folder: Path) -> None:
    job = prepare(asked(folder, recipe="tiny", settings=settings(model="cifar_vgg16", size=64)))
    assert job.config.model == "cifar_vgg16(size=64)"
    assert job.network.input.size == 64
    with pytest.raises(ConfigError, match="built for 32 px, but size is 64"):
        prepare(asked(folder, settings=settings(model="cifar_vgg16(size=32)", size=64)))
