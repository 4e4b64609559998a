"""The recipe fast-cifar10 from a folder to predictions, with a small network of its kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fieldmark.errors import ConfigError, Interrupted
from fieldmark.jobs import running
from fieldmark.jobs import train as training
from fieldmark.jobs.plan import prepare
from fieldmark.jobs.predict import predict
from fieldmark.runs.directory import RunDirectory
from fieldmark.settings.config import TrainConfig
from tests.making import asked

CHANGES: dict[str, Any] = {
    "model": "whitened_cnn(widths=(8, 8, 8))",
    "epochs": 4,
    "batch_size": 16,
    "split": "0.7/0.15/0.15",
    "progressive": "9@0.3|12@0.6",
    "size": 16,
    "precision": "f32",
    "threads": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in train and test: bright at the top or at the bottom, 16 px."""
    root = tmp_path_factory.mktemp("data") / "halves"
    rng = np.random.default_rng(0)
    for part, n in (("train", 40), ("test", 12)):
        for label in range(2):
            place = root / part / f"c{label}"
            place.mkdir(parents=True)
            for i in range(n):
                picture = rng.integers(0, 150, (16, 16, 3))
                picture[8 * label : 8 * label + 8] += 100
                Image.fromarray(picture.astype(np.uint8)).save(place / f"{i}.png")
    return root


def train(folder: Path, out: Path, **changes: Any) -> RunDirectory:
    return training.train(asked(folder, recipe="fast-cifar10", settings=CHANGES | changes, out=out))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    torch.set_num_threads(1)
    return train(folder, tmp_path_factory.mktemp("runs") / "run")


def test_it_learns_and_says_what_it_did(run: RunDirectory) -> None:
    info, config = run.model_info(), run.config()
    assert isinstance(config, TrainConfig)
    assert (config.views, info.input.views) == ("flip_shift", "flip_shift")
    assert config.progressive == "9@0.3|12@0.6"
    assert info.selected.to_json() == {"epoch": 4, "metric": "last", "value": None}
    scores = run.read_json("evaluation.json")["parts"]["test"]
    assert scores["n"] == 24
    assert scores["accuracy"] > 0.9


def test_the_first_layer_is_whitened_by_the_training_pictures(
    run: RunDirectory, folder: Path
) -> None:
    stored = load_file(run.path / "model.safetensors")["whiten.weight"]
    job = prepare(asked(folder, recipe="fast-cifar10", settings=CHANGES))
    assert torch.equal(stored, job.network.module.whiten.weight)
    part = job.dataset.parts["train"]
    images = [torch.from_numpy(job.network.input.pixels(job.dataset.read(k))) for k in part.keys]
    patches = torch.nn.functional.unfold(job.network.input.normalize(torch.stack(images)), 2)
    values = stored[:12].flatten(1) @ patches.transpose(0, 1).flatten(1)
    second = (values @ values.T / values.shape[1]).double()
    assert torch.allclose(second, torch.eye(12, dtype=torch.float64), atol=0.05)


def test_its_last_epochs_are_of_the_hardest_pictures_and_the_rate_falls_to_nothing(
    run: RunDirectory, folder: Path
) -> None:
    lines = [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    job = prepare(asked(folder, recipe="fast-cifar10", settings=CHANGES))
    pictures = len(job.dataset.parts["train"])
    each = [math.ceil(pictures / 16)] * 3 + [math.ceil(math.ceil(0.75 * pictures) / 16)]
    assert each[3] < each[2]
    assert steps == np.cumsum(each).tolist()
    assert lines[-1]["lr"] == pytest.approx(0.75 / sum(each))
    assert "after epoch 3 only on the 75 % of the pictures" in (run.path / "log.txt").read_text()


def test_its_first_layers_bias_stands_still_after_three_epochs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    biases: list[torch.Tensor] = []
    keep = running._keep

    def watch(job: Any, run: RunDirectory, state: Any, record: Any) -> None:
        biases.append(state.module.whiten.bias.detach().clone())
        keep(job, run, state, record)

    monkeypatch.setattr(running, "_keep", watch)
    train(folder, tmp_path / "run")
    assert not torch.equal(biases[1], biases[2])
    assert torch.equal(biases[2], biases[3])


def test_predictions_are_the_evaluations(run: RunDirectory, folder: Path) -> None:
    import csv
    import io

    rows = csv.DictReader(io.StringIO((run.path / "predictions.csv").read_text("utf-8-sig")))
    wanted = {row["file"]: row for row in rows if row["part"] == "test"}
    files = sorted((folder / "test").rglob("*.png"))
    found = predict(run.load_model(), files, limits=run.limits())
    assert len(found) == len(wanted) == 24
    for file, answer in zip(files, found, strict=True):
        row = wanted[file.relative_to(folder).as_posix()]
        assert answer.label == row["predicted"]
        assert answer.prob == pytest.approx(float(row["prob"]), abs=1e-5)


def test_a_run_that_was_stopped_ends_alike(
    run: RunDirectory, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the second stage of sizes, while the first layer's bias still trains."""
    save = RunDirectory.save_checkpoint

    def stop(self: RunDirectory, state: Any) -> None:
        save(self, state)
        if state["step"] == 7:
            raise Interrupted("stopped", signal_number=2)

    monkeypatch.setattr(RunDirectory, "save_checkpoint", stop)
    with pytest.raises(Interrupted):
        train(folder, tmp_path / "run", save_every="1 step")
    monkeypatch.undo()
    again = training.resume(tmp_path / "run")
    one, other = (load_file(r.path / "model.safetensors") for r in (run, again))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert run.model_info().temperature == again.model_info().temperature


def test_other_networks_can_use_its_parts(folder: Path, tmp_path: Path) -> None:
    made = train(
        folder,
        tmp_path / "run",
        model="cifar_resnet(depth=8)",
        freeze_after="stem@2",
        views="flip",
        optimizer="sgd(momentum=0.9, nesterov=True)",
        bias_lr=2.0,
        lr=0.05,
    )
    assert made.model_info().input.views == "flip"
    lines = (made.path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["epoch"] == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"progressive": "8@0.5"}, "cannot take pictures of 8 px"),
        ({"progressive": "16@0.5"}, "16 px is not below the input's 16 px"),
        ({"progressive": "half"}, "not of the form SIZE@SHARE"),
        ({"freeze_after": "whiter@3"}, "did you mean 'whiten'"),
        ({"hardest": "most@3"}, "not of the form SHARE@EPOCHS"),
        ({"hardest": "1.0@3"}, "with a share between 0 and 1"),
        ({"hardest": "0.5@0"}, "at least 1 epoch"),
        ({"hardest": "0.5@1", "mix": "mixup"}, "does not go with mix 'mixup'"),
        ({"hardest": "0.5@1", "balance": True}, "does not go with balance True"),
        ({"hardest": "0.5@1", "schedule": "step(2)"}, "does not go with schedule 'step(2)'"),
        ({"views": "many"}, "no views 'many'"),
        ({"bias_lr": -1.0}, "bias_lr is -1.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(
    folder: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        prepare(asked(folder, recipe="fast-cifar10", settings=CHANGES | changes))
    assert says in str(error.value)
