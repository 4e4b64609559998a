"""From a folder of JPEG files to pictures of 224 px in memory, and what later epochs pay.

Fieldmark opens `flowers` (reading, checking, hashing, dividing) and fits every picture to 224 px
through `open_dataset` and `Batches`: as the first thing that a process does, and a second time in
the same process, everything anew (all fit into memory, so nothing is in the cache folder). Beside
it: torchvision's `ImageFolder` with a `DataLoader` of 0 to 4 workers (its second pass, so that
starting workers is not counted against it), and single-threaded decoders that read each file, with
and without resizing (the best of three passes); so our second time is what is compared. All have
the files in the system's page cache. The second epoch's input is timed alone, with nothing beside
it, over the time of that epoch's training steps: `flowers` at 224 px with ResNet-18, and CIFAR-10
at 32 px.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import pictures
from benchmarks.machine import machine
from benchmarks.measure import (
    Benchmark,
    Contender,
    Finding,
    Measured,
    Options,
    at_least,
    at_most,
    figure,
)
from benchmarks.processes import program
from fieldmark.settings.recipes import RECIPES

REPEATS = 7
SIZE = 224
RATE, DECODING = "images/s", "images/s, decoding alone"
FIRST = "images/s, the process's first"
INPUT = "second epoch's input, % of the steps"
OURS = "fieldmark"
DECODERS = ("simplejpeg", "pillow", "opencv", "torchvision")
WORKERS = (0, 1, 2, 4)
DECODER_NAMES = [f"{name}, one thread" for name in DECODERS]
LOADER_NAMES = [f"ImageFolder + DataLoader, {workers} workers" for workers in WORKERS]


def prepare(options: Options, scratch: Path) -> Benchmark:
    """Ours, torchvision's loader, and single decoders."""
    flowers = pictures.real(options, "flowers")
    cifar = pictures.some(
        pictures.real(options, "cifar10-jpeg"),
        scratch / "cifar",
        train=200 if options.quick else 10_000,
        test=100,
    )
    if options.quick:
        flowers = pictures.some(flowers, scratch / "flowers", train=40, test=20)

    def ours(number: int) -> Measured:
        cache = scratch / f"cache{number}"
        first, second = program("fieldmark_loading", flowers, SIZE, cache=cache).value
        return Measured({RATE: second, FIRST: first})

    def later(data: Path, *words: object) -> Contender:
        def measure(number: int) -> Measured:
            del number
            return Measured({INPUT: program("fieldmark_input", data, *words).value})

        return Contender(_later(data), measure)

    def decoder(name: str, label: str) -> Contender:
        def measure(number: int) -> Measured:
            del number
            decoding, fitted = program("decoders", name, flowers, SIZE).value
            return Measured({RATE: fitted, DECODING: decoding})

        return Contender(label, measure)

    def loader(workers: int, label: str) -> Contender:
        def measure(number: int) -> Measured:
            del number
            return Measured({RATE: program("image_folder", flowers, SIZE, workers).value})

        return Contender(label, measure)

    small = "fast-cifar10" if "fast-cifar10" in RECIPES else "cifar10-resnet20_fast"
    return Benchmark(
        [
            Contender(OURS, ours),
            *(decoder(*pair) for pair in zip(DECODERS, DECODER_NAMES, strict=True)),
            *(loader(*pair) for pair in zip(WORKERS, LOADER_NAMES, strict=True)),
            later(flowers, "scratch", SIZE),
            later(cifar, small, 32),
        ],
        [
            *_against_decoders(),
            Finding(
                "fieldmark over the best ImageFolder + DataLoader",
                lambda one: one.of(OURS, RATE) / max(one.all_of(LOADER_NAMES, RATE)),
                at_least(2),
            ),
            *(
                figure(name, name, INPUT, goal=at_most(2), unit="%")
                for name in (_later(flowers), _later(cifar))
            ),
        ],
    )


def _later(data: Path) -> str:
    return f"fieldmark, second epoch of {data.name}"


def _against_decoders() -> list[Finding]:
    """The bound: as many of the fastest decoder as there are cores, with and without resizing."""
    cores = machine()["cores"]

    def against(what: str, rate: str) -> Finding:
        return Finding(
            f"fieldmark over {cores} x the best single-threaded decoder {what}",
            lambda one: one.of(OURS, RATE) / cores / max(one.all_of(DECODER_NAMES, rate)),
            at_least(0.9),
        )

    return [against("with its resizing", RATE), against("alone, without resizing", DECODING)]
