"""CIFAR-10 from the folder of files: `fast-cifar10` against a hand port of airbench94.

`fieldmark train cifar10-jpeg --recipe fast-cifar10` against `peers/airbench94.py`, which is the
published recipe written anew from its description, in bf16 on the processor, with torch's defaults.
Both start at the command, read 50,000 training and 10,000 test JPEG files, and end with the
accuracy on the test split; a round's number is the seed of both. Seconds are wall time; the port's
evaluations that serve the curve alone are subtracted. The curve shows validation accuracy for
Fieldmark and plain test accuracy for the port, and as its last point the test accuracy. Work is
FLOP of the training (multiply-add = 2) as torch's `FlopCounterMode` counts them, evaluations left
out.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import command, pictures
from benchmarks.machine import Need
from benchmarks.measure import (
    Benchmark,
    Contender,
    Measured,
    Options,
    Skipped,
    at_least,
    at_most,
    figure,
    ratio,
)
from benchmarks.processes import program
from fieldmark.settings.recipes import RECIPES

REPEATS = 3
RECIPE = "fast-cifar10"
NEEDS: tuple[Need, ...] = ("bf16",)
"""The port computes in bf16 everywhere."""
OURS, PORT = "fieldmark", "airbench94, ported by hand"
ACCURACY, WORK = "test accuracy", "training work, TFLOP"


def prepare(options: Options, scratch: Path) -> Benchmark:
    """Ours and the port; in a round both have the same seed."""
    if RECIPE not in RECIPES:
        raise Skipped(f"there is no recipe {RECIPE} (known: {', '.join(RECIPES)})")
    data = pictures.real(options, "cifar10-jpeg")
    flags: tuple[object, ...] = ("--recipe", RECIPE)
    smaller: tuple[int, ...] = ()
    if options.quick:
        data = pictures.some(data, scratch / "cifar", train=600, test=100)
        smaller = (1, 100)
        flags += ("--epochs", smaller[0], "--batch-size", smaller[1])
    few = pictures.some(data, scratch / "few", train=100 if options.quick else 2_000, test=100)
    operations: dict[str, float] = {}

    def ours(number: int) -> Measured:
        if not operations:  # before the long training, which a failure would throw away
            operations.update(program("fieldmark_work", few, RECIPE, *smaller).value)
        ran = command.train(data, scratch, *flags, "--seed", number)
        test = ran.scores["test"]
        trained = operations["epochs"] * ran.pictures["train"]
        return Measured(
            {
                "seconds": ran.seconds,
                ACCURACY: test["accuracy"],
                WORK: operations["flop"] * trained / 1e12,
                "peak MB": ran.peak_mb,
            },
            [*ran.curve, (ran.seconds, test["accuracy"])],
        )

    def port(number: int) -> Measured:
        answer = program("airbench94", data, number, *smaller)
        found = answer.value
        # Its own clock starts after the interpreter and the imports.
        before = answer.ran.seconds - found["elapsed"]
        seconds = answer.ran.seconds - found["paused"]
        return Measured(
            {
                "seconds": seconds,
                ACCURACY: found["accuracy"],
                WORK: found["flop"] / 1e12,
                "peak MB": answer.ran.peak_mb,
            },
            [*((round(before + x, 2), y) for x, y in found["curve"]), (seconds, found["accuracy"])],
        )

    return Benchmark(
        [Contender(OURS, ours), Contender(PORT, port, NEEDS)],
        [
            ratio(OURS, PORT, "seconds", goal=at_most(0.60), needs=NEEDS),
            *(
                figure(
                    f"{ACCURACY}: {name}, mean", name, ACCURACY, goal=goal, by="mean", needs=needs
                )
                for name, goal, needs in ((OURS, at_least(0.910), ()), (PORT, None, NEEDS))
            ),
            ratio(OURS, PORT, WORK, needs=NEEDS),
        ],
    )
