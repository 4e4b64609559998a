"""The sets of the league: where their pictures are, and each subset as a folder.

A subset is a function of its number and of the files' names: files are ranked by a hash of their
names, and each subset takes the next ones of that ranking, so that subsets have no picture in
common until all have been used.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure import Skipped
from fieldmark.errors import ConfigError

FOLDS = 4
"""A flat set is divided into so many parts; subset k is tested on part k."""
FASHION = Path("/usr/share/datasets/fashion-mnist")
QUICK_CLASSES, QUICK_TRAIN, QUICK_TEST = 3, 6, 4


@dataclass(frozen=True)
class Place:
    """Where the pictures are."""

    data: Path | None
    """Folder with cifar10-jpeg, flowers, hanzi, plates and birds in it."""
    fashion: Path = FASHION
    """Folder with the IDX files of Fashion-MNIST."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be drawn."""

    name: str
    """Name of its file."""
    write: Callable[[Path], object]
    """Writes it under a name."""


ByClass = dict[str, list[Picture]]


@dataclass(frozen=True)
class Pictures:
    """Pictures of each class, in the order in which they are drawn."""

    train: ByClass
    test: ByClass
    """Empty for a set that is not divided."""


@dataclass(frozen=True)
class PictureSet:
    """A set of the league."""

    source: Callable[[Place], Pictures]
    train: int | None = None
    """Training pictures a class; None for all."""
    test: int | None = None
    """Test pictures a class; None for all."""
    classes: int | None = None
    """Classes of a subset; None for all."""
    kind: Literal["photographs", "characters"] = "photographs"
    """Whether a mirrored picture is one of the same class."""


@dataclass(frozen=True)
class Subset:
    """A subset as a folder with train and test in it."""

    folder: Path
    train: int
    """Training pictures."""
    test: int
    """Test pictures."""
    pool: int
    """Different test pictures that all subsets together can have."""
    side: int
    """Median of the shorter side of the training pictures, in pixels."""


def divided(name: str) -> Callable[[Place], Pictures]:
    """A set below --data with train and test in it."""

    def source(place: Place) -> Pictures:
        folder = _below(place, name, f"{name}/train/CLASS and {name}/test/CLASS")
        return Pictures(*(_by_class(folder / part) for part in ("train", "test")))

    return source


def flat(name: str) -> Callable[[Place], Pictures]:
    """A set below --data with nothing but folders of classes in it."""

    def source(place: Place) -> Pictures:
        return Pictures(_by_class(_below(place, name, f"{name}/CLASS")), {})

    return source


def digits(place: Place) -> Pictures:
    """scikit-learn's digits as PNG files of 8 px."""
    del place
    from sklearn.datasets import load_digits

    found = load_digits()
    return Pictures(_drawn((found.images * (255 / 16)).round().astype("uint8"), found.target), {})


def fashion(place: Place) -> Pictures:
    """Fashion-MNIST from its IDX files, as PNG files of 28 px.

    Raises:
        Skipped: if the files are not there.
    """
    return Pictures(
        *(
            _drawn(
                _idx(place.fashion / f"{part}-images-idx3-ubyte"),
                _idx(place.fashion / f"{part}-labels-idx1-ubyte"),
            )
            for part in ("train", "t10k")
        )
    )


SETS: dict[str, PictureSet] = {
    "birds": PictureSet(flat("birds")),
    "digits": PictureSet(digits, kind="characters"),
    "flowers-10": PictureSet(divided("flowers"), train=10),
    "cifar-20": PictureSet(divided("cifar10-jpeg"), train=20, test=50),
    "hanzi-12": PictureSet(divided("hanzi"), classes=12, kind="characters"),
    "flowers-20": PictureSet(divided("flowers"), train=20),
    "cifar-50": PictureSet(divided("cifar10-jpeg"), train=50, test=50),
    "fashion-50": PictureSet(fashion, train=50, test=50),
    "flowers-80": PictureSet(divided("flowers")),
    "hanzi-40": PictureSet(divided("hanzi"), classes=40, kind="characters"),
    "cifar-200": PictureSet(divided("cifar10-jpeg"), train=200, test=100),
    "plates": PictureSet(flat("plates"), kind="characters"),
    "hanzi-95": PictureSet(divided("hanzi"), kind="characters"),
    "fashion-500": PictureSet(fashion, train=500, test=100),
    "cifar-1000": PictureSet(divided("cifar10-jpeg"), train=1000, test=100),
}
"""The cheap ones first. A number is that of training pictures a class; of hanzi, of classes."""


def build(name: str, number: int, place: Place, out: Path, *, quick: bool = False) -> Subset:
    """Write a subset's pictures into a folder with train and test in it.

    Args:
        name: A key of :data:`SETS`.
        number: The subset, from 0.
        place: Where the pictures are.
        out: The folder; made anew.
        quick: A few pictures of a few classes only.

    Raises:
        ConfigError: if the pictures are not below --data.
        Skipped: if a set that comes from elsewhere is not there.
    """
    asked = SETS[name]
    found = asked.source(place)
    classes = _next(_ranked(found.train, name), asked.classes, number)
    train, test = asked.train, asked.test
    if quick:
        classes, train, test = classes[:QUICK_CLASSES], QUICK_TRAIN, QUICK_TEST
    chosen: dict[str, ByClass] = {"train": {}, "test": {}}
    for label in classes:
        here = found.train[label]
        if found.test:
            chosen["train"][label] = _next(here, train, number)
            chosen["test"][label] = _next(found.test[label], test, number)
        else:
            fold = number % FOLDS
            chosen["test"][label] = here[fold::FOLDS][:test]
            rest = [each for place, each in enumerate(here) if place % FOLDS != fold]
            chosen["train"][label] = rest[:train]
    for split, by_class in chosen.items():
        for label, each in by_class.items():
            target = out / split / label
            target.mkdir(parents=True)
            for picture in each:
                picture.write(target / picture.name)
    everything = found.test or found.train
    return Subset(
        out,
        sum(map(len, chosen["train"].values())),
        sum(map(len, chosen["test"].values())),
        sum(map(len, everything.values())),
        _median_side(out / "train"),
    )


def old_default(subset: Subset) -> str:
    """The recipe that the rule of before takes, with pretrained weights on the machine."""
    if subset.side <= 96:
        return "tiny"
    return "probe" if subset.train < 2_000 else "finetune"


def _next(ranked: Sequence[Any], count: int | None, number: int) -> list[Any]:
    """The ``number``-th part of so many; from the beginning again where there are no more."""
    if count is None or count >= len(ranked):
        return list(ranked)
    return [ranked[(number * count + place) % len(ranked)] for place in range(count)]


def _ranked(names: Iterable[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())


def _in_order(by_class: ByClass) -> ByClass:
    """Classes by name; the pictures of each by a hash of their names."""
    found = {}
    for label in sorted(by_class):
        named = {picture.name: picture for picture in by_class[label]}
        found[label] = [named[name] for name in _ranked(named, label)]
    return found


def _by_class(folder: Path) -> ByClass:
    """The files of each class, to be copied."""
    return _in_order(
        {
            path.name: [
                Picture(file.name, partial(shutil.copyfile, file))
                for file in path.iterdir()
                if file.is_file()
            ]
            for path in folder.iterdir()
            if path.is_dir()
        }
    )


def _drawn(images: Any, labels: Any) -> ByClass:
    """Pictures of each class from arrays, to be written as PNG."""
    from PIL import Image

    found: ByClass = defaultdict(list)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        found[str(int(label))].append(Picture(f"{number:05}.png", Image.fromarray(pixels).save))
    return _in_order(found)


def _below(place: Place, name: str, wanted: str) -> Path:
    if place.data is None:
        raise ConfigError(f"this set needs real pictures; give --data DIR, a folder with {wanted}")
    folder = place.data / name
    if not folder.is_dir():
        raise ConfigError(f"--data is {place.data.name}, but must be a folder with {wanted}")
    return folder


def _median_side(folder: Path) -> int:
    from PIL import Image

    sides = []
    for file in folder.glob("*/*"):
        with Image.open(file) as image:
            sides.append(min(image.size))
    return round(statistics.median(sides))


def _idx(file: Path) -> Any:
    """Bytes of an IDX file, compressed or not, in its shape."""
    import numpy as np

    packed = file.with_name(file.name + ".gz")
    if packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    elif file.is_file():
        content = file.read_bytes()
    else:
        raise Skipped(
            f"no {file.name}.gz; Debian's package dataset-fashion-mnist has it: "
            "give the folder with --fashion DIR"
        )
    axes = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
