"""Labelled pictures that a Python program hands over: the same weights as from a folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

import fieldmark
from fieldmark.errors import ConfigError, DataError, RunError
from fieldmark.jobs import running
from tests.making import bright_halves

FIXED: dict[str, Any] = {
    "model": "small_cnn(width=2)",
    "size": 8,
    "batch_size": 8,
    "epochs": 2,
    "threads": 1,
    "progress": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes, in train and test."""
    return bright_halves(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def weights(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, bytes]:
    """Those of the whole folder, and of its training part divided anew."""
    found = {}
    for whole, data in {True: folder, False: folder / "train"}.items():
        out = tmp_path_factory.mktemp("runs") / "folder"
        fieldmark.train(data, out=out, **FIXED)
        found[whole] = (out / "model.safetensors").read_bytes()
    return found


def files(folder: Path, part: str) -> list[tuple[Path, str]]:
    return [(file, file.parent.name) for file in sorted((folder / part).rglob("*.png"))]


def arrays(folder: Path, part: str = "train") -> tuple[Any, Any]:
    pairs = files(folder, part)
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file, _ in pairs]
    return np.stack(pixels), np.array([label for _, label in pairs])


class Pairs(torch.utils.data.Dataset[Any]):
    """A data set as people write them: a picture and the number of its class."""

    classes = ("down", "up")

    def __init__(self, folder: Path) -> None:
        self.files = files(folder, "train")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.files[index]
        return Image.open(file).convert("RGB"), self.classes.index(label)


def tensors(folder: Path) -> Any:
    pixels, labels = arrays(folder)
    names = sorted(set(labels))
    numbers = torch.tensor([names.index(label) for label in labels])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, numbers


def one_hot(folder: Path) -> Any:
    pixels, labels = arrays(folder)
    return list(pixels), (labels[:, None] == np.array(sorted(set(labels)))).astype(float)


def in_memory(folder: Path) -> Any:
    return [(file.read_bytes(), label) for file, label in files(folder, "train")]


def torchvision_folder(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder

    return ImageFolder(str(folder / "train"))


FORMS: dict[str, Callable[[Path], Any]] = {
    "arrays": arrays,
    "tensors": tensors,
    "one-hot labels": one_hot,
    "lists": lambda folder: tuple(map(list, arrays(folder))),
    "pairs of paths": lambda folder: files(folder, "train"),
    "pairs of bytes": in_memory,
    "a data set of torch": Pairs,
    "a folder of torchvision": torchvision_folder,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_those_of_the_folder(
    folder: Path, tmp_path: Path, weights: dict[bool, bytes], form: str
) -> None:
    run = fieldmark.train(FORMS[form](folder), out=tmp_path / "run", **FIXED)
    mine, theirs = load((run.path / "model.safetensors").read_bytes()), load(weights[False])
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    names = ("0", "1") if form in ("tensors", "one-hot labels") else ("down", "up")
    assert run.class_names == names
    assert "handed over" in (run.path / "log.txt").read_text()


def test_splits_are_the_keys_of_a_dict(
    folder: Path, tmp_path: Path, weights: dict[bool, bytes]
) -> None:
    data = {"train": arrays(folder), "Test": files(folder, "test")}
    run = fieldmark.train(data, out=tmp_path / "run", **FIXED)
    assert (run.path / "model.safetensors").read_bytes() == weights[True]
    assert run.scores["test"]["n"] == len(data["Test"])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_is_read_as_a_table(
    folder: Path,
    tmp_path: Path,
    weights: dict[bool, bytes],
    library: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = pytest.importorskip(library)
    monkeypatch.chdir(folder)
    pairs = files(folder, "train") + files(folder, "test")
    rows = [(f.relative_to(folder).as_posix(), label) for f, label in pairs]
    frame = frames.DataFrame(
        {
            "path": [path for path, _ in rows],
            "label": [label for _, label in rows],
            "split": [path.partition("/")[0] for path, _ in rows],
        }
    )
    run = fieldmark.train(frame, out=tmp_path / "run", **FIXED)
    assert (run.path / "model.safetensors").read_bytes() == weights[True]


def test_a_data_set_of_hugging_face(
    folder: Path, tmp_path: Path, weights: dict[bool, bytes]
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["down", "up"])}
    )

    def split(part: str) -> Any:
        pairs = files(folder, part)
        columns = {"image": [str(f) for f, _ in pairs], "label": [label for _, label in pairs]}
        return datasets.Dataset.from_dict(columns, features=features)

    run = fieldmark.train(split("train"), out=tmp_path / "run", **FIXED)
    assert (run.path / "model.safetensors").read_bytes() == weights[False]
    both = datasets.DatasetDict({"train": split("train"), "test": split("test")})
    run = fieldmark.train(both, out=tmp_path / "both", **FIXED)
    assert (run.path / "model.safetensors").read_bytes() == weights[True]


def test_it_goes_on_with_the_same_pictures_only(
    folder: Path, tmp_path: Path, weights: dict[bool, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(*args: Any) -> None:
        raise Killed

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(running, "_conclude", dying)
        with pytest.raises(Killed):
            fieldmark.train(arrays(folder), out=out, **FIXED)
    with pytest.raises(RunError, match="hand them over again"):
        fieldmark.resume(out, progress=False)
    pixels, labels = arrays(folder)
    with pytest.raises(RunError, match="pictures changed"):
        fieldmark.resume(out, data=(255 - pixels, labels), progress=False)
    run = fieldmark.resume(out, data=(pixels, labels), progress=False)
    assert (run.path / "model.safetensors").read_bytes() == weights[False]
    scores = run.evaluate(progress=False)
    assert scores["val"]["n"] == run.scores["val"]["n"]
    other = run.evaluate(arrays(folder, "test"), progress=False)
    assert sum(each["n"] for each in other.values()) == 16
    again = fieldmark.load(out)
    with pytest.raises(RunError, match="hand them over again"):
        again.evaluate(progress=False)


def test_what_is_chosen_among_candidates_goes_on_too(folder: Path, tmp_path: Path) -> None:
    """Without a recipe: the pictures are handed to every candidate."""
    run = fieldmark.train(
        arrays(folder), out=tmp_path / "run", minutes=0.001, threads=1, progress=False
    )
    assert run.scores["val"]["n"] > 0


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (3, ConfigError, "accepted are a path"),
        (None, ConfigError, "accepted are a path"),
        (np.zeros((4, 8, 8, 3), np.uint8), ConfigError, "accepted are a path"),
        ((np.zeros((4, 8, 8, 3), np.uint8), ["a", "b"]), DataError, "4 pictures and 2 labels"),
        ((np.zeros((2, 64)), [0, 1]), DataError, "reshape rows of numbers"),
        ((np.zeros((2, 8, 8), np.uint8), [1, 1]), DataError, "one class, 1"),
        ((np.zeros((2, 8, 8), np.uint8), ["a", None]), DataError, "no label at 1"),
        ((np.zeros((2, 8, 8), np.uint8), np.ones((2, 3))), DataError, "not one 1 in each row"),
        ((np.full((2, 8, 8), 200.0), [0, 1]), DataError, "floats must be finite and in 0..1"),
        ([1, 2], ConfigError, "not a picture and its label"),
        ([(3, "a"), (4, "b")], DataError, "which is none"),
        ({"first": [], "second": []}, ConfigError, "names of splits"),
        ({}, ConfigError, "names of splits"),
        ([], DataError, "no pictures"),
        ("", ConfigError, "the path of a file or folder"),
    ],
)
def test_what_is_no_labelled_pictures(
    tmp_path: Path, data: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fieldmark.train(data, out=tmp_path / "run", **FIXED)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there_is_one_bad_picture(folder: Path, tmp_path: Path) -> None:
    pairs = [*files(folder, "train"), (folder / "lost.png", "up"), (b"no picture", "up")]
    run = fieldmark.train(pairs, out=tmp_path / "run", **FIXED)
    assert "left out because they cannot be used: 2" in (run.path / "log.txt").read_text()


def test_streams_of_bytes_are_told_apart_from_text(folder: Path, tmp_path: Path) -> None:
    pairs = [(io.BytesIO(file.read_bytes()), label) for file, label in files(folder, "train")]
    with pytest.raises(DataError, match="a picture is a BytesIO"):
        fieldmark.train(pairs, out=tmp_path / "run", **FIXED)


def test_a_folder_of_the_same_name_is_another_thing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python:data`` is what was handed over, and has nothing to do with ``data``."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    run = fieldmark.train(arrays(folder), out="data/run", **FIXED)
    assert '"python:data"' in (run.path / "data.json").read_text()
    assert fieldmark.resume(run.path, data=arrays(folder), progress=False).path == run.path
