"""The best rate at which this machine convolves, in FLOP/s: the bound of a training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

SHAPES = ((64, 64, 32), (64, 256, 16), (128, 128, 16), (256, 256, 16), (256, 256, 8), (512, 512, 8))
"""Channels in and out, and height and width, of the 3x3 convolutions that are tried."""
WARM_UPS, REPEATS = 2, 5


def best_rate(kind: torch.dtype, *, batch: int) -> float:
    """The best median rate over shapes and passes."""
    return max(rates(kind, batch=batch).values())


def rates(kind: torch.dtype, *, batch: int) -> dict[str, float]:
    """FLOP/s by pass and shape; a multiplication and an addition count as two."""
    found = {}
    for channels_in, channels_out, side in SHAPES:
        flop = 2 * batch * side * side * channels_in * channels_out * 9
        for name, run in _passes(kind, batch, channels_in, channels_out, side):
            seconds = [_timed(run) for _ in range(WARM_UPS + REPEATS)][WARM_UPS:]
            shape = f"{channels_in}x{channels_out}x{side}"
            found[f"{name} {shape}"] = flop / statistics.median(seconds)
    return found


def _passes(
    kind: torch.dtype, batch: int, channels_in: int, channels_out: int, side: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Forward, gradient of the input, and gradient of the kernel."""
    last = torch.channels_last
    x = torch.randn(batch, channels_in, side, side).to(kind, memory_format=last)
    w = torch.randn(channels_out, channels_in, 3, 3).to(kind, memory_format=last)
    y = torch.randn(batch, channels_out, side, side).to(kind, memory_format=last)

    def backward(mask: list[bool]) -> object:
        return torch.ops.aten.convolution_backward(
            y, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )

    yield "forward", lambda: torch.nn.functional.conv2d(x, w, padding=1)
    yield "input gradient", lambda: backward([True, False, False])
    yield "kernel gradient", lambda: backward([False, True, False])


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        run()
    return time.perf_counter() - start
