"""Time and memory as the number of pictures grows, and beyond the memory that pictures may take.

Synthetic JPEG files of 32 to 64 px, `small_cnn` at 32 px: seconds of an epoch after the first and
the largest resident memory of `fieldmark train` for 1,000, 10,000 and 50,000 pictures. Then the two
larger sets again with a budget for decoded pictures (`--memory-gb`) of a tenth of what the largest
set takes, so that it is ten times the budget.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from benchmarks import command, pictures
from benchmarks.measure import Benchmark, Contender, Finding, Measured, Options, at_most, ratio
from fieldmark.settings.config import TrainConfig

REPEATS = 3
SETTING = "memory_gb"
FLAGS = ("--model", "small_cnn", "--size", 32, "--batch-size", 128, "--precision", "f32")
EPOCH, EACH, PEAK = "later epoch, s", "later epoch, ms a picture", "peak MB"


def prepare(options: Options, scratch: Path) -> Benchmark:
    """Three sizes without and two with a budget."""
    counts = (100, 200, 400) if options.quick else (1_000, 10_000, 50_000)
    epochs = 2 if options.quick else 3
    decoded = {n: pictures.synthetic(scratch / str(n), n, classes=10) for n in counts}
    budget = decoded[counts[-1]] / 10 / 2**30
    has_budget = SETTING in {field.name for field in fields(TrainConfig)}

    def ours(name: str, count: int, *flags: object) -> Contender:
        def measure(number: int) -> Measured:
            every = (*FLAGS, "--epochs", epochs, "--seed", number, *flags)
            ran = command.train(scratch / str(count), scratch, *every)
            seconds = ran.steady("seconds")
            return Measured(
                {
                    "seconds": ran.seconds,
                    EPOCH: seconds,
                    EACH: 1000 * seconds / sum(ran.pictures.values()),
                    PEAK: ran.peak_mb,
                }
            )

        return Contender(name, measure)

    free = {n: f"{n:,} pictures" for n in counts}
    tight = {n: f"{n:,} pictures, budget {budget * 1000:.3g} MB" for n in counts[1:]}
    flag = "--" + SETTING.replace("_", "-")
    contenders = [ours(name, n) for n, name in free.items()]
    if has_budget:
        contenders += [ours(name, n, flag, budget) for n, name in tight.items()]
    _, middle, large = counts
    return Benchmark(
        contenders,
        [
            _over(EACH, free[large], free[middle]),
            _over(EACH, tight[large], tight[middle]),
            _over(EACH, tight[large], free[large]),
            _over(PEAK, tight[large], tight[middle]),
        ],
        () if has_budget else (f"There is no setting {SETTING}, so no budget was set.",),
    )


def _over(quantity: str, top: str, bottom: str) -> Finding:
    """Near 1 where cost grows in proportion, and memory not at all."""
    return ratio(top, bottom, quantity, goal=at_most(1.2))
