"""bf16 or f32 on this processor: measured on the network itself, once, and remembered.

bf16 halves training time on processors that multiply it, but not for every network, and some builds
of torch are slower with it. So a few steps are timed, and the result is kept in the cache folder:
the same command makes the same choice again, however busy the machine is then.
"""

from __future__ import annotations

import contextlib
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fieldmark.files.writing import write_again
from fieldmark.machine.device import autocast, capabilities

WORTH_FLOP = 2e13
"""Operations of a whole training below which f32 is used without measuring: it takes a minute or
two at most, and so gives the same result on every machine. The job decides this and not the clock,
so the choice never wavers."""
CLEARLY = 1.15
"""Ratio of speeds from which on bf16 is chosen; less is within the noise of measuring."""
STEP_FLOP = 4e10
"""Operations of a timed step, if a batch has more: a tenth to half a second."""
SECONDS = 1.5
"""Seconds after which no further step is timed, once each type has had two."""


@dataclass(frozen=True)
class Speeds:
    """Measured speeds, in training pictures per second."""

    f32: float
    bf16: float
    """Speed in bf16; 0 where a gradient was not finite."""

    @property
    def precision(self) -> str:
        """The number type to train in."""
        return "bf16" if self.bf16 >= CLEARLY * self.f32 else "f32"

    @property
    def reason(self) -> str:
        """The choice, with both speeds."""
        ratio = f"{self.bf16 / self.f32:.2g}x"
        figures = f"on this processor ({self.bf16:.4g} and {self.f32:.4g} images/s)"
        if self.precision == "bf16":
            return f"bf16: {ratio} the speed of f32 {figures}"
        return f"f32: bf16 would be {ratio} as fast {figures}"


def has_bf16() -> bool:
    """Whether the processor multiplies bf16."""
    return any(capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def key(spec: str, *, size: int, batch_size: int, channels_last: bool, threads: int) -> str:
    """Describe everything that the speeds depend on."""
    processor = capabilities().get("cpu_name", "")
    order = "channels last" if channels_last else "channels first"
    return (
        f"{processor}, torch {torch.__version__}, {spec}, {batch_size} pictures of {size} px, "
        f"{order}, {threads} threads"
    )


def remembered(file: Path, key: str, measure: Callable[[], Speeds]) -> Speeds:
    """Return the speeds stored under the key; measure and store them if there are none.

    A file that cannot be read is replaced; if it cannot be written, nothing is remembered.
    """
    known = _read(file)
    try:
        return Speeds(**known[key])
    except (KeyError, TypeError):
        speeds = measure()
    with contextlib.suppress(OSError):
        known = {**_read(file), key: asdict(speeds)}
        write_again(file, json.dumps(known, indent=2).encode())
    return speeds


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def measure(
    module: nn.Module,
    *,
    size: int,
    batch_size: int,
    flops: int,
    channels_last: bool,
    threads: int,
) -> Speeds:
    """Time forward and backward passes in both types, in turn, on a copy of the network.

    The network, its statistics and torch's generator are as before afterwards.

    Args:
        module: The network, on the processor.
        size: Height and width of its input.
        batch_size: Pictures of a step; fewer where that many would take too long.
        flops: Operations of a picture's forward pass.
        channels_last: Memory order.
        threads: Threads to compute with.
    """
    count = min(batch_size, max(2, round(STEP_FLOP / (3 * flops))))
    copied = copy.deepcopy(module).train()
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    if channels_last:
        copied.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):  # dropout draws
            return _timed(copied, images)
    finally:
        torch.set_num_threads(before)


def _timed(module: nn.Module, images: torch.Tensor) -> Speeds:
    finite = True
    for bf16 in (True, False):  # the first step of each type also chooses its kernels
        _step(module, images, bf16=bf16)
        finite = finite and (not bf16 or _finite_gradients(module))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    start = time.perf_counter()
    while len(seconds[True]) < 2 or time.perf_counter() - start < SECONDS:
        for bf16, found in seconds.items():
            begin = time.perf_counter()
            _step(module, images, bf16=bf16)
            found.append(time.perf_counter() - begin)
    f32, half = (len(images) / statistics.median(seconds[bf16]) for bf16 in (False, True))
    return Speeds(round(f32, 1), round(half, 1) if finite else 0.0)


def _step(module: nn.Module, images: torch.Tensor, *, bf16: bool) -> None:
    """Run a training step without the optimizer, which computes in f32 either way."""
    module.zero_grad(set_to_none=True)
    with autocast("cpu", bf16=bf16):
        logits = module(images)
    targets = torch.zeros(len(images), dtype=torch.int64)
    F.cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]


def _finite_gradients(module: nn.Module) -> bool:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return bool(torch.isfinite(nn.utils.get_total_norm(gradients)))
