"""Real pictures, where they are at hand (``../shared/data``)."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from fieldmark.data import open_dataset
from fieldmark.settings.config import TrainConfig

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

pytestmark = pytest.mark.shared

SETS = {"birds": (238, 4), "flowers": (600, 5), "hanzi": (3040, 95), "plates": (3232, 31)}


def unpacked(name: str, into: Path) -> Path:
    with tarfile.open(SHARED / f"{name}.tar.gz") as archive:
        archive.extractall(into, filter="data")
    return into / name


CONFIG = TrainConfig(threads=2)


@pytest.mark.parametrize("name", SETS)
def test_every_picture_opens_and_has_one_part(name: str, tmp_path: Path) -> None:
    data = open_dataset(str(unpacked(name, tmp_path)), CONFIG).divide(CONFIG)
    keys = [key for part in data.parts.values() for key in part.keys]
    pictures, classes = SETS[name]
    assert (len(keys), len(set(keys)), len(data.class_names)) == (pictures, pictures, classes)
    assert data.bad == ()
    digests = [set(part.digests) for part in data.parts.values()]
    if name == "birds":  # divided by us: no picture on two sides, each class by its share
        assert not set.intersection(*digests)
        again = open_dataset(str(tmp_path / name), CONFIG).divide(CONFIG)
        assert again.fingerprint == data.fingerprint
        for part, share in (("train", 0.75), ("val", 0.1), ("test", 0.15)):
            counts = data.parts[part].counts(classes)
            assert np.abs(counts - share * 238 / 4).max() < 3


def test_transparent_paper_is_white(tmp_path: Path) -> None:
    """hanzi's training pictures are mostly strokes on transparent ground."""
    data = open_dataset(str(unpacked("hanzi", tmp_path)), CONFIG).divide(CONFIG)
    for part in ("train", "test"):
        corners = [data.read(key)[0, 0] for key in data.parts[part].keys[::20]]
        assert np.median(corners) > 200
