"""The choice between bf16 and f32: it changes nothing but the type, and stays as it was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fieldmark.jobs import plan
from fieldmark.machine import tune
from fieldmark.machine.tune import Speeds
from fieldmark.models.summary import flops
from fieldmark.networks.small_cnn import small_cnn
from tests.making import asked


def test_bf16_is_taken_only_where_it_is_clearly_faster() -> None:
    assert Speeds(100, 114).precision == "f32"
    assert Speeds(100, 115).precision == "bf16"
    assert Speeds(100, 0).precision == "f32"
    assert Speeds(100, 210).reason == (
        "bf16: 2.1x the speed of f32 on this processor (210 and 100 images/s)"
    )
    assert Speeds(2600, 2340.4).reason == (
        "f32: bf16 would be 0.9x as fast on this processor (2340 and 2600 images/s)"
    )


def test_measuring_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    module = nn.Sequential(small_cnn(8, 4), nn.Dropout(0.5), nn.Linear(8, 2))
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(7)
    generator = torch.get_rng_state()
    speeds = tune.measure(
        module, size=28, batch_size=4, flops=flops(module, 28), channels_last=True, threads=1
    )
    assert speeds.f32 > 0
    assert speeds.bf16 > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == 1
    assert module.training
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in module.parameters())
    assert all(p.is_contiguous() for p in module.parameters())  # not made channels-last


class Overflows(nn.Module):
    """Divides by zero wherever it computes in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(x.mean((2, 3)))
        return y / 0 if y.dtype == torch.bfloat16 else y


def test_gradients_that_are_not_finite_rule_bf16_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    speeds = tune.measure(
        Overflows(), size=4, batch_size=2, flops=10, channels_last=False, threads=1
    )
    assert speeds.bf16 == 0
    assert speeds.precision == "f32"


def test_a_choice_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "precision.json"
    calls: list[str] = []

    def measured(name: str, speeds: Speeds) -> Speeds:
        def measure() -> Speeds:
            calls.append(name)
            return speeds

        return tune.remembered(file, name, measure)

    assert measured("a", Speeds(1, 2)) == Speeds(1, 2)
    assert measured("b", Speeds(3, 4)) == Speeds(3, 4)
    assert measured("a", Speeds(9, 9)) == Speeds(1, 2)
    assert calls == ["a", "b"]
    assert [p.name for p in file.parent.iterdir()] == ["precision.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 3}', '{"a": {"f32": 1}}'])
def test_a_broken_file_is_begun_anew(tmp_path: Path, text: str) -> None:
    file = tmp_path / "precision.json"
    file.write_text(text, encoding="utf-8")
    assert tune.remembered(file, "a", lambda: Speeds(1, 2)) == Speeds(1, 2)
    assert json.loads(file.read_text(encoding="utf-8"))["a"] == {"f32": 1, "bf16": 2}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert tune.remembered(tmp_path / "file" / "p.json", "a", lambda: Speeds(1, 2)).bf16 == 2


def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **settings: object) -> plan.Job:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "has_bf16", lambda: True)
    settings = {"model": "small_cnn(width=2)", "epochs": 1, "threads": 1, **settings}
    return plan.prepare(asked("digits", settings=settings))


def test_a_small_job_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tune, "measure", lambda *args, **kwargs: pytest.fail("measured"))
    job = prepared(monkeypatch, tmp_path)
    assert job.config.precision == job.device.precision == "f32"
    assert not (tmp_path / "precision.json").exists()


def test_a_big_job_is_measured_once_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[int] = []

    def measure(module: nn.Module, *, batch_size: int, **kwargs: object) -> Speeds:
        measured.append(batch_size)
        return Speeds(100, 200)

    monkeypatch.setattr(tune, "WORTH_FLOP", 1.0)
    monkeypatch.setattr(tune, "measure", measure)
    for _ in range(2):
        job = prepared(monkeypatch, tmp_path, batch_size=32)
        assert job.config.precision == job.device.precision == "bf16"
        assert any("2x the speed of f32" in line for line in plan.describe(job))
    assert measured == [32]
    assert prepared(monkeypatch, tmp_path, batch_size=32, seed=1).config.precision == "bf16"
    assert prepared(monkeypatch, tmp_path, precision="f32").config.precision == "f32"
    assert measured == [32]
    monkeypatch.setattr(tune, "has_bf16", lambda: False)
    assert (
        plan.prepare(asked("digits", settings={"epochs": 1, "threads": 1})).device.precision
        == "f32"
    )
    assert measured == [32]
