"""Tutorial 003's training against its Keras script on TensorFlow.

ResNet-20 for CIFAR-10 with shifts and mirroring, at the tutorial's batch of 32 and at 128: training
pictures a second after the first epoch. Fieldmark runs the recipe `cifar10-resnet20`, in f32 as the
recipe has it and in bf16, from the command line; Keras runs the tutorial's script (its network,
`ImageDataGenerator`, Adam, four workers), in f32 as written and in mixed bf16. The pictures are the
same, and decoding is in neither figure.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from benchmarks import command, pictures
from benchmarks.machine import Need
from benchmarks.measure import Benchmark, Contender, Measured, Options, at_least, ratio
from benchmarks.processes import program

REPEATS = 5
GOALS = {32: 2.0, 128: 3.0}
NEEDS: dict[str, tuple[Need, ...]] = {"f32": ("processor",), "bf16": ("processor", "bf16")}
RATE = "images/s"


def prepare(options: Options, scratch: Path) -> Benchmark:
    """Ours and Keras, each in two number types and two batch sizes."""
    train, epochs = (256, 2) if options.quick else (6_400, 3)
    data = pictures.some(
        pictures.real(options, "cifar10-jpeg"), scratch / "cifar", train=train, test=100
    )

    def ours(batch: int, precision: str) -> Contender:
        flags = ("--recipe", "cifar10-resnet20", "--epochs", epochs, "--batch-size", batch)

        def measure(number: int) -> Measured:
            ran = command.train(data, scratch, *flags, "--precision", precision, "--seed", number)
            return Measured({RATE: ran.steady("images_per_second")})

        return Contender(_ours(precision, batch), measure, NEEDS[precision])

    def keras(batch: int, precision: str) -> Contender:
        def measure(number: int) -> Measured:
            del number
            answer = program("keras_tutorial", data, batch, epochs, precision)
            return Measured({RATE: answer.value})

        return Contender(_keras(precision, batch), measure, NEEDS[precision])

    kinds = list(itertools.product(GOALS, ("f32", "bf16")))
    return Benchmark(
        [made(batch, precision) for batch, precision in kinds for made in (ours, keras)],
        [
            *(
                ratio(
                    _ours("bf16", n),
                    _keras("f32", n),
                    RATE,
                    goal=at_least(goal),
                    needs=NEEDS["bf16"],
                )
                for n, goal in GOALS.items()
            ),
            *(ratio(_ours(p, n), _keras(p, n), RATE, needs=NEEDS[p]) for n, p in kinds),
        ],
    )


def _ours(precision: str, batch: int) -> str:
    return f"fieldmark {precision}, batch {batch}"


def _keras(precision: str, batch: int) -> str:
    return f"Keras {precision}, batch {batch}"
