"""The pictures that are measured with: real ones from ``--data``, parts of them, synthetic ones."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import Options
from fieldmark.errors import ConfigError

PER_FOLDER = 5_000
"""Files in one folder of a synthetic set."""


def real(options: Options, name: str) -> Path:
    """A data set below ``--data``, divided into train and test.

    Raises:
        ConfigError: if it is not there.
    """
    wanted = f"a folder with {name}/train/CLASS/*.jpg and {name}/test/CLASS/*.jpg in it"
    if options.data is None:
        raise ConfigError(f"this benchmark needs real pictures; give --data DIR, {wanted}")
    folder = options.data / name
    if not all((folder / part).is_dir() for part in ("train", "test")):
        raise ConfigError(f"--data is {options.data.name}, but must be {wanted}")
    return folder


def some(folder: Path, out: Path, *, train: int, test: int) -> Path:
    """Copy a part of a data set, equally many of each class; the same pictures every time.

    Raises:
        ConfigError: if it has fewer.
    """
    for part, count in (("train", train), ("test", test)):
        classes = sorted(path for path in (folder / part).iterdir() if path.is_dir())
        for place, source in enumerate(classes):
            here = count // len(classes) + (place < count % len(classes))
            files = sorted(path for path in source.rglob("*") if path.is_file())
            if len(files) < here:
                raise ConfigError(
                    f"{folder.name}/{part}/{source.name} has {len(files)} pictures; "
                    f"this benchmark takes {here}; use --quick, or other pictures"
                )
            target = out / part / source.name
            target.mkdir(parents=True)
            for file in files[:here]:
                shutil.copyfile(file, target / file.name)
    return out


def synthetic(out: Path, count: int, *, classes: int = 2, threads: int = 4) -> int:
    """Write JPEG pictures of 32 to 64 px that differ in every pixel; their size when decoded.

    Each is a function of its number: smooth colours with some noise, so that a file has about as
    many bytes as a photograph of that size.
    """
    with ThreadPoolExecutor(threads) as pool:
        sizes = pool.map(lambda number: _write_one(out, number, count, classes), range(count))
        return sum(sizes)


def _write_one(out: Path, number: int, count: int, classes: int) -> int:
    import numpy as np
    from PIL import Image

    rng = np.random.Generator(np.random.Philox(key=number))
    height, width = (int(side) for side in rng.integers(32, 65, size=2))
    coarse = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(0, 24, size=(height, width, 3), dtype=np.uint8)
    pixels = np.asarray(image) // 2 + noise
    part = "test" if number < max(classes, count // 50) else "train"
    folder = out / part / f"class{number % classes}" / str(number // PER_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{number:06}.jpg", quality=90)
    return height * width * 3
