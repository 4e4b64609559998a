"""A classifier of 400 flowers from pretrained weights: the `probe` recipe against fine-tuning.

`fieldmark train flowers --recipe probe`, from the command to the saved and evaluated model, against
the parts that cannot be avoided (importing torch, decoding every picture once, one pass of the
network over them, each measured in the same round), and against ten epochs of fine-tuning the same
network (`tf_efficientnet_lite0`, the same ImageNet weights) with fastai and with a plain loop over
timm's network, data and augmentation. Ultralytics' weights are downloads, so its own network starts
from random values. Accuracies are of the test split, with n and 95 % interval (Wilson).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import command, pictures
from benchmarks.machine import Need
from benchmarks.measure import (
    Benchmark,
    Contender,
    Finding,
    Measured,
    Options,
    Skipped,
    at_least,
    at_most,
    figure,
)
from benchmarks.processes import program
from fieldmark.scoring.metrics import wilson
from fieldmark.settings.recipes import RECIPES

REPEATS = 3
RECIPE = "probe"
EPOCHS = 10
SECONDS, ACCURACY = "seconds", "test accuracy"
OURS, PARTS = "fieldmark --recipe probe", "import + decoding + one pass"
FINE_TUNED = {"fastai fine_tune": "fastai_finetune", "timm, plain loop": "timm_finetune"}
ULTRALYTICS = "ultralytics, from random values"


def prepare(options: Options, scratch: Path) -> Benchmark:
    """Ours, what it cannot do without, and the peers; a round's number is the seed."""
    if RECIPE not in RECIPES:
        raise Skipped(f"there is no recipe {RECIPE} (known: {', '.join(RECIPES)})")
    data, epochs = pictures.real(options, "flowers"), EPOCHS
    if options.quick:
        data = pictures.some(data, scratch / "flowers", train=60, test=20)
        epochs = 1

    def ours(number: int) -> Measured:
        ran = command.train(data, scratch, "--recipe", RECIPE, "--seed", number)
        test = ran.scores["test"]
        return _scored(ran.seconds, round(test["accuracy"] * test["n"]), test["n"], ran.peak_mb)

    def parts(number: int) -> Measured:
        del number
        found = program("unavoidable", data).value
        return Measured({SECONDS: sum(found.values()), **found})

    def peer(label: str, name: str, needs: tuple[Need, ...] = ()) -> Contender:
        def measure(number: int) -> Measured:
            answer = program(name, data, epochs, number, cache=scratch / "cache")
            right, n = answer.value
            return _scored(answer.ran.seconds, right, n, answer.ran.peak_mb)

        return Contender(label, measure, needs)

    return Benchmark(
        [
            Contender(OURS, ours),
            Contender(PARTS, parts, ("processor",)),
            *(peer(label, name) for label, name in FINE_TUNED.items()),
            peer(ULTRALYTICS, "ultralytics_classify", ("processor",)),
        ],
        [
            Finding(
                f"seconds: {OURS} over {PARTS}",
                lambda one: one.of(OURS, SECONDS) / one.of(PARTS, SECONDS),
                at_most(1.5),
                needs=("processor",),
            ),
            *(_times_faster(label) for label in FINE_TUNED),
            Finding(
                "test accuracy: ours less the best fine-tuned",
                lambda one: one.of(OURS, ACCURACY) - max(one.all_of(FINE_TUNED, ACCURACY)),
                at_least(-0.01),
                unit="",
                by="mean",
            ),
            figure(OURS, OURS, SECONDS, goal=at_most(12), unit="s"),
        ],
    )


def _times_faster(label: str) -> Finding:
    return Finding(
        f"seconds: {label}, {EPOCHS} epochs, over {OURS}",
        lambda one: one.of(label, SECONDS) / one.of(OURS, SECONDS),
        at_least(10),
    )


def _scored(seconds: float, right: int, n: int, peak_mb: float) -> Measured:
    low, high = wilson(right, n)
    return Measured(
        {
            SECONDS: seconds,
            ACCURACY: right / n,
            "n": n,
            "low": low,
            "high": high,
            "peak MB": peak_mb,
        }
    )
