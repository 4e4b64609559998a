"""torch.compile for the training step, where it works."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from fieldmark.machine.device import Device

Forward = Callable[[torch.Tensor], torch.Tensor]


def compiled(
    module: nn.Module, *, device: Device, batch_size: int, size: int, channels_last: bool
) -> tuple[Forward, str]:
    """Compile the network's forward and backward pass, or return the network if that fails.

    A copy is compiled and run first, because torch.compile may fail only then and in many ways (no
    C++ compiler, a network it does not support, a bug). The network itself then uses the compiled
    code from torch's cache. It still owns its weights; nothing is renamed.

    Returns:
        The module to call in training; and the reason why it is not compiled, empty if it is.
    """
    images = torch.zeros(batch_size, 3, size, size, device=device.torch_device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    try:
        with torch.random.fork_rng(devices=[]):  # dropout draws
            trial = copy.deepcopy(module).train()
            if channels_last:
                trial.to(memory_format=torch.channels_last)
            with device.autocast():
                output = torch.compile(trial, dynamic=False)(images)
            output.float().sum().backward()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return module, f"{type(error).__name__}: {first[:160]}"
    forward: Forward = torch.compile(module, dynamic=False)
    return forward, ""
