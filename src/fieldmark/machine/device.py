"""Device and number type that the network computes with: chosen, checked, described."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fieldmark.errors import ConfigError, ResourceError
from fieldmark.machine.device_names import check_device
from fieldmark.machine.small_maps import SmallMaps


@dataclass(frozen=True)
class Device:
    """A device, and the number type that training uses on it."""

    name: str
    """Name of the device: cpu, cuda:0, mps."""
    precision: str
    """Number type: f32 or bf16."""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Notes on why this number type was chosen, if it was measured."""

    @property
    def torch_device(self) -> torch.device:
        """As torch's own type."""
        return torch.device(self.name)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Context for the forward pass: bf16 if that was chosen, else without effect."""
        return autocast(self.torch_device.type, bf16=self.precision == "bf16")

    def prepare(self) -> None:
        """Make the device's libraries choose kernels that give the same bits every time."""
        if self.torch_device.type == "cuda":
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True

    @property
    def description(self) -> str:
        """The hardware's name, for the plan and the record."""
        if self.name.startswith("cuda"):
            return torch.cuda.get_device_name(self.torch_device)
        return self.name


def choose(device: str, precision: str) -> Device:
    """Resolve ``auto`` and check what was asked for.

    On the processor ``auto`` gives f32; ``tune`` may find later that bf16 is faster for a network.

    Raises:
        ConfigError: if there is no such device, or it cannot compute in the asked number type.
        ResourceError: if the device is not on this machine.
    """
    check_device(device)
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    warnings = []
    if device == "auto":
        name = "cuda:0" if has_cuda else "mps" if has_mps else "cpu"
    elif device == "cuda":
        name = "cuda:0"
    else:
        name = device
    require_no_fork(name)
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if has_cuda else 0
        if int(name.partition(":")[2]) >= count:
            raise ResourceError(
                f"device is {device}, but torch sees {count} CUDA devices; use --device cpu, "
                "or install a driver and a torch build that fit your GPU"
            )
    if name == "mps" and not has_mps:
        raise ResourceError("device is mps, but torch finds no Apple GPU; use --device cpu")
    if name == "cpu" and (has_cuda or has_mps):
        warnings.append("there is a GPU, but --device cpu leaves it unused")
    if precision == "auto":
        precision = "bf16" if cuda_bf16(name) else "f32"
    elif precision == "bf16" and name.startswith("cuda") and not cuda_bf16(name):
        raise ConfigError(f"{torch.cuda.get_device_name(name)} cannot compute in bf16; use f32")
    return Device(name, precision, tuple(warnings))


def require_no_fork(device: str) -> None:
    """Refuse to use a GPU in a process that was forked from one that uses it.

    Raises:
        ResourceError: as CUDA works in no such process.
    """
    if device.startswith("cuda") and getattr(torch.cuda, "_is_in_bad_fork", bool)():
        raise ResourceError(
            f"{device} cannot be used in a process that was forked after its parent used it; start "
            "processes with multiprocessing's 'spawn', load the run in each, or use device cpu"
        )


@contextlib.contextmanager
def autocast(device_type: str, *, bf16: bool) -> Iterator[None]:
    """Context in which a network computes in bf16, or else in the type of its weights."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, dtype=torch.bfloat16, enabled=bf16))
        if bf16 and device_type == "cpu":
            stack.enter_context(SmallMaps(amx=bool(capabilities().get("amx_bf16"))))
        yield


@functools.cache
def capabilities() -> Mapping[str, Any]:
    """The processor's capabilities as torch names them; empty where torch has no list (2.10)."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def cuda_bf16(name: str) -> bool:
    """Whether the device with this name is a GPU that computes in bf16."""
    return name.startswith("cuda") and torch.cuda.get_device_capability(name)[0] >= 8
