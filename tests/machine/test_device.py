"""Which device and number type is chosen, and what is said."""

from __future__ import annotations

import pytest
import torch

from fieldmark.errors import ConfigError, ResourceError
from fieldmark.machine import device
from fieldmark.machine.device import Device, choose


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False, capability: int = 8
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name=None: (capability, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=None: "Some GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    for name in ("auto", "cpu"):
        assert choose(name, "auto") == Device("cpu", "f32")
    assert choose("cpu", "bf16") == Device("cpu", "bf16")
    for name in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(ResourceError, match=f"device is {name}, but torch sees 0 CUDA") as c:
            choose(name, "auto")
        assert c.value.exit_code == 6
    with pytest.raises(ResourceError, match="no Apple GPU"):
        choose("mps", "auto")


def test_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=2)
    assert choose("auto", "auto") == Device("cuda:0", "bf16")
    assert choose("cuda", "f32") == Device("cuda:0", "f32")
    assert choose("cuda:1", "auto").name == "cuda:1"
    assert choose("cuda:1", "auto").description == "Some GPU"
    with pytest.raises(ResourceError, match="torch sees 2 CUDA"):
        choose("cuda:2", "auto")
    unused = choose("cpu", "auto")
    assert (unused.name, unused.precision) == ("cpu", "f32")
    assert "unused" in unused.warnings[0]


def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=1, capability=7)
    assert choose("auto", "auto").precision == "f32"
    with pytest.raises(ConfigError, match="Some GPU cannot compute in bf16"):
        choose("auto", "bf16")


def test_an_apple(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mps=True)
    assert choose("auto", "auto") == Device("mps", "f32")
    assert choose("cpu", "auto").warnings


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_autocast_is_on_only_for_bf16(precision: str) -> None:
    layer = torch.nn.Linear(2, 2)
    with device.Device("cpu", precision).autocast():
        kind = layer(torch.zeros(1, 2)).dtype
    assert kind == (torch.bfloat16 if precision == "bf16" else torch.float32)
