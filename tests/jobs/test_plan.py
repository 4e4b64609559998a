"""The plan of a training: what is decided from what the weights say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fieldmark import models
from fieldmark.errors import ConfigError, RunError
from fieldmark.jobs.plan import Job, prepare
from fieldmark.jobs.request import TrainRequest
from fieldmark.runs.model import ModelInfo, Selected, encode_model
from tests.making import encode, scene

MODEL = "small_cnn(width=2)"


def pictures(root: Path, *names: str) -> Path:
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(12):
            (root / name / f"{i}.png").write_bytes(encode(scene(seed=100 * place + i), "PNG"))
    return root


def old_run(path: Path, *names: str) -> torch.Tensor:
    """Write a run's model for classes of these names; returns its head's rows."""
    torch.manual_seed(3)
    network = models.create(MODEL, num_classes=len(names), weights="none", size=12)
    info = ModelInfo(
        model=network.spec,
        input=network.input,
        class_names=names,
        temperature=1.0,
        selected=Selected(epoch=1, metric="val_loss", value=0.5),
        weights="none",
        num_params=network.num_params,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_model(network.module.state_dict(), info))
    return network.module.get_submodule("head").weight.detach().clone()


def plan(data: Path, weights: Path, **settings: object) -> Job:
    settings = {"weights": str(weights), "device": "cpu", "threads": 1, **settings}
    return prepare(TrainRequest(data=str(data), settings=settings))


@pytest.mark.parametrize("named", ["run", "run/model.safetensors", "elsewhere.safetensors"])
def test_weights_of_a_run_name_their_network_and_size(named: str, tmp_path: Path) -> None:
    rows = old_run(tmp_path / "run" / "model.safetensors", "ant", "bee")
    old_run(tmp_path / "elsewhere.safetensors", "ant", "bee")
    job = plan(pictures(tmp_path / "data", "ant", "bee"), tmp_path / named)
    assert (job.config.model, job.config.size) == (MODEL, 12)
    assert torch.equal(job.network.module.get_submodule("head").weight, rows)
    assert f"network and size are those of the weights: {MODEL}, 12 px" in job.notes


def test_the_old_heads_rows_go_to_classes_by_name(tmp_path: Path) -> None:
    rows = old_run(tmp_path / "run" / "model.safetensors", "ant", "bee", "cow")
    job = plan(pictures(tmp_path / "data", "bee", "cow", "dog"), tmp_path / "run", model=MODEL)
    head = job.network.module.get_submodule("head").weight
    assert torch.equal(head[:2], rows[1:])
    assert not head[2].any()
    assert any("dog start at zero" in note for note in job.network.notes)


def test_what_is_given_is_kept(tmp_path: Path) -> None:
    old_run(tmp_path / "run" / "model.safetensors", "ant", "bee")
    data = pictures(tmp_path / "data", "ant", "bee")
    assert plan(data, tmp_path / "run", size=16).config.size == 16
    with pytest.raises(ConfigError, match="name no network; name it with --model"):
        plan(data, _plain(tmp_path / "w.pth"))


def _plain(path: Path) -> Path:
    torch.save(models.create(MODEL, num_classes=2, weights="none").module.state_dict(), path)
    return path


def test_a_description_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    path = tmp_path / "run" / "model.safetensors"
    old_run(path, "ant", "bee")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    assert path.read_bytes() != whole
    with pytest.raises(RunError, match="newer fieldmark"):
        plan(pictures(tmp_path / "data", "ant", "bee"), path)


def test_weights_left_in_git_lfs_are_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(RunError, match="git lfs pull"):
        plan(pictures(tmp_path / "data", "ant", "bee"), tmp_path / "w.safetensors")
