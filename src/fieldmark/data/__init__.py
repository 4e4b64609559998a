"""Where pictures come from: readers, splits, stores and batches. ``open_dataset`` is the entry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fieldmark.data import readers
from fieldmark.data.cifar import is_cifar, read_cifar
from fieldmark.data.cifar_download import DOWNLOADS, fetch_cifar
from fieldmark.data.dataset import Dataset, Found
from fieldmark.data.digits import read_digits
from fieldmark.data.folder import read_folder
from fieldmark.data.scan import Opened, check_only, decoded_for, open_pictures
from fieldmark.data.table import is_table, read_table
from fieldmark.machine.cores import threads_for
from fieldmark.pictures.picture import digest
from fieldmark.progress import OnProgress
from fieldmark.settings.config import TrainConfig

DATASETS: dict[str, Callable[[], Found]] = {
    "digits": read_digits,
    "cifar10": lambda: read_cifar(fetch_cifar("cifar10")),
    "cifar100": lambda: read_cifar(fetch_cifar("cifar100")),
}
"""Data sets known by name. Any other name is a folder or a table; ``./digits`` is a folder."""


def find(data: str) -> Found:
    """List the pictures and labels of a data set, without opening the pictures.

    By name, by a plugin's reader, a table, or a folder.

    Raises:
        DataError: if there is nothing to train on.
        ResourceError: if a data set cannot be downloaded.
    """
    if data in DATASETS:
        return DATASETS[data]()
    found = readers.read(data)
    if found is not None:
        return found
    path = Path(data).expanduser()
    if is_cifar(path):
        return read_cifar(path)
    return read_table(path) if is_table(path) else read_folder(path)


def open_dataset(data: str, config: TrainConfig, *, progress: OnProgress | None = None) -> Opened:
    """Read and check a data set; ``divide`` then makes its splits.

    Raises:
        DataError: if it cannot be used.
        ResourceError: if it cannot be downloaded.
    """
    found = find(data)
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
