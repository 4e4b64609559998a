"""Objects of a Python program in place of names: trained with, recorded, and asked for again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fieldmark
from fieldmark.augment.ops import Change
from fieldmark.errors import ConfigError, RunError
from fieldmark.fit.callbacks import Control
from fieldmark.jobs import handed
from fieldmark.jobs.handed import separate
from fieldmark.models import Family
from fieldmark.pictures.inputs import InputSpec


class Flat(nn.Module):
    """One layer on the pixels of a picture of 8 px."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.BatchNorm2d(3)
        self.classify = nn.Linear(3 * 8 * 8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.scale(images).flatten(1))


def flat(num_classes: int) -> nn.Module:
    return Flat(num_classes)


def darker(images: torch.Tensor, draws: Any) -> torch.Tensor:
    factors = torch.from_numpy(draws[:, 0].astype(np.float32))
    return images * (1 - 0.5 * factors.view(-1, 1, 1, 1))


def focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logs = logits.log_softmax(1)
    return -(targets * (1 - logs.exp()) ** 2 * logs).sum(1)


def sure(probs: Any, labels: Any) -> float:
    return float(probs.max(axis=1).mean())


def adagrad(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, lr=0.0)


class Watch:
    """A callback that stops after an epoch and remembers what it was told."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.seen: list[int] = []

    def __call__(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        self.seen.append(epoch)
        assert {"val_loss", "train_accuracy", "val_sure"} <= metrics.keys()
        if epoch == self.last:
            control.stop = "enough"


@pytest.fixture(scope="module")
def pictures(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doors") / "data"
    for i, file in enumerate(sorted(photos.glob("*.png"))):
        place = folder / "abc"[i % 3] / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    return folder


SHARED: dict[str, Any] = {"recipe": "tiny", "size": 8, "batch_size": 16, "threads": 1, "seed": 3}
OBJECTS: dict[str, Any] = {
    "model": flat,
    "augment": ["flip_lr", darker],
    "optimizer": adagrad,
    "loss": focal,
    "metrics": [sure, "top_k(2)"],
}


def trained(pictures: Path, out: Path, **changes: Any) -> fieldmark.Run:
    given = {**SHARED, **OBJECTS, **changes}
    return fieldmark.train(pictures, out=out, progress=False, **given)


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> fieldmark.Run:
    return trained(pictures, tmp_path_factory.mktemp("whole") / "run", epochs=2)


def test_what_is_handed_over_is_recorded_by_name(whole: fieldmark.Run, pictures: Path) -> None:
    config = json.loads((whole.path / "config.json").read_text())
    assert config["model"] == "python:flat"
    assert config["augment"] == "flip_lr|python:darker"
    assert config["optimizer"] == "python:adagrad"
    assert config["loss"] == "python:focal"
    assert config["metrics"] == "python:sure|top_k(2)"
    assert "plugins" not in config
    assert set(whole.scores["val"]["metrics"]) == {"sure", "top_k(2)"}
    assert whole.predict(next(pictures.glob("a/*")))[0].label in "abc"


def test_a_run_needs_them_again(whole: fieldmark.Run, pictures: Path) -> None:
    picture = next(pictures.glob("a/*"))
    with pytest.raises(RunError, match=r"model 'python:flat'.*resume or load \(model="):
        fieldmark.load(whole.path).predict(picture)
    again = fieldmark.load(whole.path, model=flat)
    assert again.predict(picture)[0].top == whole.predict(picture)[0].top
    with pytest.raises(RunError, match="metric 'python:sure'"):
        again.evaluate(progress=False)
    scores = fieldmark.load(whole.path, model=flat, metrics=sure).evaluate(progress=False)
    assert scores["val"] == whole.scores["val"]
    with pytest.raises(RunError, match="augmentation 'python:darker', an object"):
        fieldmark.resume(whole.path, model=flat, progress=False)
    with pytest.raises(ConfigError, match="takes objects only"):
        fieldmark.load(whole.path, epochs=3)
    with pytest.raises(ConfigError, match="goes on with its own settings"):
        fieldmark.resume(whole.path, model="small_cnn")


def test_a_killed_run_goes_on_with_them_to_the_same_result(
    whole: fieldmark.Run, pictures: Path, tmp_path: Path
) -> None:
    from tests.plugins.stopping import StopAfter

    with pytest.raises(fieldmark.Interrupted):
        fieldmark.train(
            pictures, out=tmp_path / "run", progress=StopAfter(1), epochs=2, **SHARED, **OBJECTS
        )
    run = fieldmark.resume(tmp_path / "run", progress=False, **OBJECTS)
    for name in ("model.safetensors", "predictions.csv"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_callback_after_each_epoch(pictures: Path, tmp_path: Path) -> None:
    watch, hidden = Watch(2), lambda epoch, metrics, control: None
    run = trained(
        pictures,
        tmp_path / "run",
        model="small_cnn(width=2)",
        epochs=4,
        callbacks=[watch, "early_stopping(patience=9)", hidden],
    )
    assert watch.seen == [1, 2] and len(run.history) == 2
    assert run.config.callbacks.startswith("python:Watch|early_stopping(patience=9)|python:")


def test_a_module_is_copied_and_its_values_are_the_first(pictures: Path, tmp_path: Path) -> None:
    module = Flat(3)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    run = trained(pictures, tmp_path / "run", model=module, epochs=1, optimizer="sgd", lr=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert run.config.model == "python:Flat"
    loaded = fieldmark.load(run.path, model=Flat)._model.module.state_dict()
    assert torch.allclose(loaded["classify.weight"], before["classify.weight"], atol=1e-6)
    assert loaded["classify.weight"].shape == (3, 192)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": Flat(4)}, r"gives \(1, 4\) for one picture; logits \(1, 3\)"),
        ({"model": flat, "size": 9}, "cannot take a float picture"),
        ({"model": lambda n: nn.Flatten()}, "no linear layer"),
        ({"model": 3}, "model is 3; a name is accepted, or a module"),
        ({"loss": [focal, focal]}, "one name or one object"),
        ({"loss": lambda logits, targets: focal(logits, targets).mean()}, "one number for each"),
        ({"augment": lambda images, draws: images[:1]}, "pictures of the same shape"),
        ({"metrics": lambda probs, labels: "good"}, "gives a str; a number is needed"),
        ({"monitor": "val_suer"}, "did you mean"),
    ],
)
def test_what_cannot_be_used(
    pictures: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        trained(pictures, tmp_path / "run", **{"epochs": 1, **changes})


def test_a_name_alone_brings_nothing_back(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hand it over again in Python"):
        trained(pictures, tmp_path / "run", augment="python:darker", epochs=1)


def test_names_of_objects() -> None:
    def inside() -> None:
        pass

    plain, objects = separate({"callbacks": [inside, inside, partial(inside)], "lr": 0.1})
    first, second, third = plain["callbacks"].split("|")
    assert first == "python:test_names_of_objects.inside"
    assert (second, third) == (first + "-2", first + "-3")
    assert plain["lr"] == 0.1 and len(objects) == 3
    family = Family(flat, InputSpec(size=8))
    assert separate({"model": family})[1][("networks", "python:flat")] is family
    op = Change(2, darker)
    assert separate({"augment": op})[1][("augmentations", "python:Change")]() is op
    assert handed.separate({"metrics": []})[0]["metrics"] == "none"


def test_a_metric_may_choose_the_epoch(pictures: Path, tmp_path: Path) -> None:
    run = trained(pictures, tmp_path / "run", epochs=2, metrics=[sure], monitor="val_sure")
    assert run.selected["metric"] == "val_sure"
    best = max(run.history, key=lambda record: np.float32(record["val_sure"]))
    assert run.selected["value"] == best["val_sure"]
