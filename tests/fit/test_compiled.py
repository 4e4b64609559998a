"""A compiled network trains the same weights; one that cannot be compiled trains as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import fieldmark
from fieldmark.fit.compiled import compiled
from fieldmark.machine.device import Device
from fieldmark.networks.small_cnn import small_cnn

CPU = Device("cpu", "f32")


def test_a_failure_leaves_the_network_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no C++ compiler\nand many lines")

    monkeypatch.setattr(torch, "compile", fails)
    module = small_cnn(3, 2)
    forward, why = compiled(module, device=CPU, batch_size=2, size=28, channels_last=True)
    assert forward is module
    assert why == "RuntimeError: no C++ compiler"


def test_the_trial_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    module = nn.Sequential(small_cnn(3, 2), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    forward, why = compiled(module, device=CPU, batch_size=2, size=28, channels_last=True)
    assert (forward, why) == (module, "")
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


class Compiled:
    """What torch.compile returns: it can be called, and asking for its length is an error."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.calls = module, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        output: torch.Tensor = self.module(images)
        return output

    def __len__(self) -> int:
        raise TypeError("SmallCNN does not support len()")


def test_a_compiled_network_is_never_asked_for_its_truth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Compiled] = []

    def compiling(module: nn.Module, dynamic: bool) -> Compiled:
        made.append(Compiled(module))
        return made[-1]

    monkeypatch.setattr(torch, "compile", compiling)
    for label, light in (("dark", 0), ("light", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (light, i, 0)).save(tmp_path / "data" / label / f"{i}.png")
    fieldmark.train(
        tmp_path / "data",
        out=tmp_path / "run",
        model="small_cnn(width=2)",
        size=8,
        epochs=1,
        compile=True,
        progress=False,
    )
    assert made[-1].calls > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_step_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    module = small_cnn(3, 2, dropout=0.0)
    forward, why = compiled(module, device=CPU, batch_size=4, size=28, channels_last=True)
    assert why == ""
    assert forward is not module
    images = torch.rand(4, 3, 28, 28).contiguous(memory_format=torch.channels_last)
    gradients = []
    for call in (module, forward):
        module.zero_grad()
        call(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(module.parameters()))
    for plain, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, fast, rtol=1e-3, atol=1e-3)
