"""The published CIFAR archives, fetched and unpacked once."""

from __future__ import annotations

import shutil
from pathlib import Path

from fieldmark.errors import ConfigError, did_you_mean
from fieldmark.files.archives import extract
from fieldmark.files.cache import cache_dir
from fieldmark.files.download import Download, fetch
from fieldmark.files.lock import waited_for
from fieldmark.progress import OnProgress

DOWNLOADS = {
    "cifar10": Download(
        name="cifar-10-python.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        size_bytes=170_498_071,
    ),
    "cifar100": Download(
        name="cifar-100-python.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        size_bytes=169_001_437,
    ),
}


def fetch_cifar(
    name: str,
    *,
    cache: Path | None = None,
    timeout_seconds: float = 15,
    progress: OnProgress | None = None,
) -> Path:
    """Download and unpack a data set of ``DOWNLOADS`` unless it is there already; its folder.

    Raises:
        ConfigError: if there is no such data set.
        ResourceError: if it cannot be downloaded or stored.
    """
    if name not in DOWNLOADS:
        raise ConfigError(
            f"no data set {name!r} to download{did_you_mean(name, DOWNLOADS)} "
            f"(known: {', '.join(DOWNLOADS)})"
        )
    folder = (cache or cache_dir()) / name
    if folder.is_dir():
        return folder
    archive = fetch(
        DOWNLOADS[name], cache=cache, timeout_seconds=timeout_seconds, progress=progress
    )
    with waited_for(folder.with_name(f".{name}.lock")):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{name}.*.part"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            extract(archive, into=folder)
    return folder
