"""The training step of `fast-cifar10` against the best convolutions of the same process.

Floating-point operations a second of whole training steps (input, augmentation, forward, backward,
optimizer, averaging, records), over the best rate that 3x3 convolutions of the same number type
reach in the same process (forward, gradient of the input, gradient of the kernel; several shapes).
Operations are counted by torch's `FlopCounterMode` in every fourth step, which is then not timed.
The network's part of a step is from the beginning of its forward to the end of its backward pass;
everything else is outside.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import pictures
from benchmarks.machine import Need
from benchmarks.measure import (
    Benchmark,
    Contender,
    Finding,
    Goal,
    Measured,
    Options,
    Skipped,
    at_least,
    at_most,
    figure,
)
from benchmarks.processes import program
from fieldmark.settings.recipes import RECIPES

REPEATS = 5
RECIPE = "fast-cifar10"
KINDS = {"fieldmark bf16": "bf16", "fieldmark f32": "f32"}
BF16, F32 = KINDS
NEEDS: dict[str, tuple[Need, ...]] = {BF16: ("processor", "bf16"), F32: ("processor",)}
RATE, BEST, OUTSIDE = "GFLOP/s", "best convolution, GFLOP/s", "outside the network, %"


def prepare(options: Options, scratch: Path) -> Benchmark:
    """The step in both number types."""
    if RECIPE not in RECIPES:
        raise Skipped(f"there is no recipe {RECIPE} (known: {', '.join(RECIPES)})")
    train, epochs, batch = (600, 2, 50) if options.quick else (12_000, 3, 0)
    data = pictures.some(
        pictures.real(options, "cifar10-jpeg"), scratch / "cifar", train=train, test=100
    )

    def ours(name: str, precision: str) -> Contender:
        def measure(number: int) -> Measured:
            del number
            cache = scratch / "cache"
            return Measured(
                program("fieldmark_step", data, RECIPE, precision, epochs, batch, cache=cache).value
            )

        return Contender(name, measure, NEEDS[name])

    return Benchmark(
        [ours(name, precision) for name, precision in KINDS.items()],
        [
            _of_the_best(BF16, at_least(0.60)),
            _of_the_best(F32, None),
            figure(
                "step outside the network, bf16",
                BF16,
                OUTSIDE,
                goal=at_most(5),
                unit="%",
                needs=NEEDS[BF16],
            ),
        ],
    )


def _of_the_best(name: str, goal: Goal | None) -> Finding:
    return Finding(
        f"{RATE}: step of {name} over the best convolution",
        lambda one: one.of(name, RATE) / one.of(name, BEST),
        goal,
        needs=NEEDS[name],
    )
