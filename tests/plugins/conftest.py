"""The example plugin, installed into a folder of its own as pip would, and forgotten afterwards."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark import plugins
from fieldmark.jobs import train as training
from tests.making import asked

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "plugin" / "src" / "fieldmark_example"


def put(site: Path, *, package: str, version: str, point: str) -> None:
    """What pip writes of a package beside its code: its name, version and entry point."""
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    about = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    (info / "METADATA").write_text(about, encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[fieldmark.plugins]\n{point}\n", encoding="utf-8")


def put_example(site: Path, version: str = "0.1.0") -> Path:
    """Install the example plugin into a folder."""
    put(
        site,
        package="fieldmark-example",
        version=version,
        point="example = fieldmark_example:plugin",
    )
    shutil.copytree(EXAMPLE, site / EXAMPLE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return site


class Sites:
    """Which folder of packages this process sees, beside its own."""

    def __init__(self) -> None:
        self.folder = ""
        plugins.forget()

    def __call__(self, site: Path | None) -> None:
        """See the packages of one folder, or of none, as if the process had just begun."""
        if self.folder:
            sys.path.remove(self.folder)
        for name in list(sys.modules):
            if name.startswith(("fieldmark_example", "plugin_")):
                del sys.modules[name]
        plugins.forget()
        self.folder = "" if site is None else os.fspath(site)
        if self.folder:
            sys.path.insert(0, self.folder)


@pytest.fixture(scope="session")
def _sites() -> Sites:
    return Sites()


@pytest.fixture
def use(_sites: Sites) -> Iterator[Sites]:
    """See no folder of packages, but those that the test asks for."""
    _sites(None)
    yield _sites
    _sites(None)


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example plugin in two versions, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("versions")
    return {v: put_example(folder / v, v) for v in ("0.1.0", "0.2.0")}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 small pictures of three shades in a folder, with their labels in a table."""
    folder = tmp_path_factory.mktemp("plugins") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["file,label"]
    for i in range(48):
        noise = rng.integers(0, 40, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(70 * (i % 3))).save(folder / f"{i}.png")
        rows.append(f"{i}.png,grade{i % 3}")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def plain(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ours."""
    folder = tmp_path_factory.mktemp("plain")
    for part in ("a", "b"):
        (folder / "data" / part).mkdir(parents=True)
    for i, file in enumerate(sorted(photos.glob("*.png"))[:24]):
        (folder / "data" / "ab"[i % 2] / file.name).write_bytes(file.read_bytes())
    settings = {"model": "small_cnn(width=2)", "size": 8, "epochs": 1, "threads": 1}
    run = training.train(
        asked(folder / "data", recipe="tiny", settings=settings, out=folder / "run")
    )
    return run.path
