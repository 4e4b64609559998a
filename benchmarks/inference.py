"""Predicting a folder, and one picture, with resnet18 and tf_efficientnet_lite0.

A folder (`flowers`): pictures a second of `Run.predict` after a first call, over the smaller of two
bounds of the same round: decoding and fitting alone, with all threads, and the best engine on ready
batches of 64. One picture: milliseconds of `Run.predict` of one decoded picture over the fastest
engine at batch 1. Engines are PyTorch as it is, `torch.compile` with freezing, ONNX Runtime and
OpenVINO, in f32 on all cores; building them is not counted. Weights are random.
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
    at_least,
    at_most,
)
from benchmarks.processes import program

REPEATS = 5
NEEDS: tuple[Need, ...] = ("processor",)
"""Engines run there."""
MODELS = ("resnet18", "tf_efficientnet_lite0")
ENGINES = ("eager", "compile", "onnxruntime", "openvino")
FOLDER, READY = "images/s, folder", "images/s, ready batches"
DECODING, ONE = "images/s, decoding alone", "ms, one picture"


def prepare(options: Options, scratch: Path) -> Benchmark:
    """Two runs to predict with, and every engine for both networks."""
    data = pictures.real(options, "flowers")
    if options.quick:
        data = pictures.some(data, scratch / "flowers", train=60, test=20)
    pictures.synthetic(scratch / "data", 40)
    contenders, findings = [], []
    for model in MODELS:
        run = command.keep_run(
            scratch / "data", scratch / model, f"timm/{model}", scratch / "cache"
        )
        contenders.append(_ours(model, run, data, scratch / "cache", quick=options.quick))
        contenders += [_engine(model, name, quick=options.quick) for name in ENGINES]
        findings += _findings(model)
    return Benchmark(contenders, findings)


def _ours(model: str, run: Path, data: Path, cache: Path, *, quick: bool) -> Contender:
    def measure(number: int) -> Measured:
        del number
        words = (run, data, 5 if quick else 100)
        folder, decoding, one = program("fieldmark_predict", *words, cache=cache).value
        return Measured({FOLDER: folder, DECODING: decoding, ONE: one})

    return Contender(f"fieldmark, {model}", measure, NEEDS)


def _engine(model: str, name: str, *, quick: bool) -> Contender:
    def measure(number: int) -> Measured:
        del number
        ready, one = program("engines", name, model, 5 if quick else 100).value
        return Measured({READY: ready, ONE: one})

    return Contender(f"{name}, {model}", measure, NEEDS)


def _findings(model: str) -> list[Finding]:
    ours, engines = f"fieldmark, {model}", [f"{name}, {model}" for name in ENGINES]
    return [
        Finding(
            f"{FOLDER}: {ours} over the smaller bound",
            lambda one: (
                one.of(ours, FOLDER) / min(one.of(ours, DECODING), max(one.all_of(engines, READY)))
            ),
            at_least(0.85),
            needs=NEEDS,
        ),
        Finding(
            f"{ONE}: {ours} over the fastest engine",
            lambda one: one.of(ours, ONE) / min(one.all_of(engines, ONE)),
            at_most(1.1),
            needs=NEEDS,
        ),
    ]
