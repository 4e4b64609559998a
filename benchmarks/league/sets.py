"""The sets of the league: where their pictures are, and each subset as a folder.

A subset is a function of its number and of the files' names: files are ranked by a hash of their
names, and each subset takes the next ones of that ranking, so that subsets have no picture in
common until all have been used.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    scratch: Path = Path()
    """Folder for sets that are written as pictures first."""


@dataclass(frozen=True)
class Pictures:
    """Files of each class, in the order in which they are drawn."""

    train: dict[str, list[Path]]
    test: dict[str, list[Path]]
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
        return Pictures(*(_by_class(folder / part, name) for part in ("train", "test")))

    return source


def flat(name: str) -> Callable[[Place], Pictures]:
    """A set below --data with nothing but folders of classes in it."""

    def source(place: Place) -> Pictures:
        return Pictures(_by_class(_below(place, name, f"{name}/CLASS"), name), {})

    return source


def digits(place: Place) -> Pictures:
    """scikit-learn's digits as PNG files of 8 px."""
    folder = place.scratch / "digits"
    if not folder.is_dir():
        from sklearn.datasets import load_digits

        found = load_digits()
        _write(folder, (found.images * (255 / 16)).round().astype("uint8"), found.target)
    return Pictures(_by_class(folder, "digits"), {})


def fashion(place: Place) -> Pictures:
    """Fashion-MNIST from its IDX files, as PNG files of 28 px.

    Raises:
        Skipped: if the files are not there.
    """
    folder = place.scratch / "fashion"
    if not folder.is_dir():
        files = [
            [place.fashion / f"{part}-{what}-ubyte" for what in ("images-idx3", "labels-idx1")]
            for part in ("train", "t10k")
        ]
        (images, labels), test = [[_idx(file) for file in pair] for pair in files]
        _write(folder / "train", images, labels)
        _write(folder / "test", *test)
    return Pictures(*(_by_class(folder / part, "fashion") for part in ("train", "test")))


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
    """Copy a subset's pictures into a folder with train and test in it.

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
    chosen: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for label in classes:
        files = found.train[label]
        if found.test:
            chosen["train"][label] = _next(files, train, number)
            chosen["test"][label] = _next(found.test[label], test, number)
        else:
            part = files[number % FOLDS :: FOLDS]
            chosen["test"][label] = part[:test]
            chosen["train"][label] = [file for file in files if file not in part][:train]
    for split, by_class in chosen.items():
        for label, files in by_class.items():
            target = out / split / label
            target.mkdir(parents=True)
            for file in files:
                shutil.copyfile(file, target / file.name)
    everything = found.test or found.train
    return Subset(
        out,
        sum(map(len, chosen["train"].values())),
        sum(map(len, chosen["test"].values())),
        sum(map(len, everything.values())),
        _median_side(chosen["train"]),
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


def _ranked(names: Any, salt: str) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())


def _by_class(folder: Path, salt: str) -> dict[str, list[Path]]:
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = {file.name: file for file in path.iterdir() if file.is_file()}
        found[path.name] = [files[name] for name in _ranked(files, f"{salt}/{path.name}")]
    return found


def _below(place: Place, name: str, wanted: str) -> Path:
    if place.data is None:
        raise ConfigError(f"this set needs real pictures; give --data DIR, a folder with {wanted}")
    folder = place.data / name
    if not folder.is_dir():
        raise ConfigError(f"--data is {place.data.name}, but must be a folder with {wanted}")
    return folder


def _median_side(by_class: dict[str, list[Path]]) -> int:
    import statistics

    from PIL import Image

    sides = []
    for files in by_class.values():
        for file in files:
            with Image.open(file) as image:
                sides.append(min(image.size))
    return round(statistics.median(sides))


def _write(folder: Path, images: Any, labels: Any) -> None:
    """One PNG file a picture, in a folder a class."""
    from PIL import Image

    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / str(int(label)) / f"{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


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
