"""Logits of many pictures, in f32 and in the order they come: one way for every score."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from fieldmark.inputs import InputSpec


def logits(
    module: nn.Module,
    batches: Iterable[torch.Tensor],
    *,
    spec: InputSpec,
    device: str = "cpu",
    channels_last: bool = True,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Run a network over batches of fitted pictures.

    Shape:
        batches of uint8 [B, 3, S, S] to float32 [N, K] on the processor.
    """
    module.eval()
    if channels_last:
        module.to(memory_format=torch.channels_last)
    results, done = [], 0
    # Only the computation: weights that .to() makes in inference mode could never be trained again.
    with torch.inference_mode():
        for images in batches:
            floats = spec.normalize(images.to(device, non_blocking=True))
            if channels_last:
                floats = floats.contiguous(memory_format=torch.channels_last)
            results.append(module(floats).float().cpu())
            done += len(images)
            if progress is not None:
                progress(done)
        return torch.cat(results) if results else torch.zeros((0, 0))
