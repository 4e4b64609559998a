"""Where pictures come from. ``open_dataset`` is the only way in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fieldmark.data import readers
from fieldmark.data.cifar import is_cifar, read_cifar
from fieldmark.data.cifar_download import DOWNLOADS, fetch_cifar
from fieldmark.data.dataset import Dataset, Found
from fieldmark.data.digits import read_digits
from fieldmark.data.folder import read_folder
from fieldmark.data.scan import Opened, Progress, check_only, decoded_for, open_pictures
from fieldmark.machine.cores import threads_for
from fieldmark.pictures.picture import digest
from fieldmark.settings.config import TrainConfig

DATASETS: dict[str, Callable[[], Found]] = {
    "digits": read_digits,
    "cifar10": lambda: read_cifar(fetch_cifar("cifar10")),
    "cifar100": lambda: read_cifar(fetch_cifar("cifar100")),
}
"""Data sets known by name. Anything else is a folder: ``./digits`` where a folder has the name."""


def find(data: str, *, max_pixels: int) -> Found:
    """Read what there is, without opening the pictures: by name, by a plugin's reader, or a folder.

    Raises:
        DataError: if there is nothing to train on.
        ResourceError: if a data set cannot be downloaded.
    """
    if data in DATASETS:
        return DATASETS[data]()
    found = readers.read(data, max_pixels=max_pixels)
    if found is not None:
        return found
    path = Path(data).expanduser()
    if is_cifar(path):
        return read_cifar(path)
    return read_folder(path, max_pixels=max_pixels)


def open_dataset(data: str, config: TrainConfig, *, progress: Progress | None = None) -> Opened:
    """Read and check a data set; ``divide`` makes its parts.

    Raises:
        DataError: if it cannot be used.
        ResourceError: if it cannot be downloaded.
    """
    found = find(data, max_pixels=config.max_pixels)
    return open_pictures(found, config, threads=threads_for(config.threads), progress=progress)


__all__ = [
    "DATASETS",
    "DOWNLOADS",
    "Dataset",
    "Opened",
    "check_only",
    "decoded_for",
    "digest",
    "find",
    "open_dataset",
    "threads_for",
]
