"""Seconds until the command line answers.

`fieldmark --help`, `import torch` alone, and `fieldmark predict RUN one.jpg` with
`tf_efficientnet_lite0`. The network's own time is what building it with timm, loading its weights
and one forward pass take once everything is imported. The parts `import torch` and the network's
time are subtracted from the prediction; what is left is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import pictures
from benchmarks.command import keep_run
from benchmarks.machine import Need
from benchmarks.measure import Benchmark, Contender, Finding, Measured, Options, at_most, figure
from benchmarks.processes import environment, program, run

REPEATS = 9
MODEL = "timm/tf_efficientnet_lite0"
NEEDS: tuple[Need, ...] = ("processor",)
"""Starting a GPU is another thing than starting a command."""
SECONDS = "seconds"
HELP, TORCH, PREDICT, NETWORK = (
    "fieldmark --help",
    "import torch",
    "fieldmark predict, one picture",
    "the network's own time",
)


def prepare(options: Options, scratch: Path) -> Benchmark:
    """A run with random weights, and one picture."""
    del options
    pictures.synthetic(scratch / "data", 40)
    trained = keep_run(scratch / "data", scratch / "run", MODEL, scratch / "cache")
    picture = next((scratch / "data").rglob("*.jpg"))
    ours = (sys.executable, "-m", "fieldmark")

    def timed(argv: Sequence[str]) -> Measured:
        return Measured({SECONDS: run(argv, environment=environment(scratch / "cache")).seconds})

    def network(number: int) -> Measured:
        del number
        return Measured({SECONDS: program("network_once", trained, MODEL).value})

    return Benchmark(
        [
            Contender(HELP, lambda number: timed([*ours, "--help"])),
            Contender(TORCH, lambda number: timed([sys.executable, "-c", "import torch"])),
            Contender(
                PREDICT,
                lambda number: timed([*ours, "predict", str(trained), str(picture)]),
                NEEDS,
            ),
            Contender(NETWORK, network, NEEDS),
        ],
        [
            figure(HELP, HELP, SECONDS, goal=at_most(0.5), unit="s"),
            Finding(
                "predict, less `import torch` and the network's own time",
                lambda one: (
                    one.of(PREDICT, SECONDS) - one.of(TORCH, SECONDS) - one.of(NETWORK, SECONDS)
                ),
                at_most(1.5),
                "s",
                needs=NEEDS,
            ),
        ],
    )
