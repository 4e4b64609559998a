"""The bridge as a user has it: commands, the Python face, and ImageNet weights under a recipe."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fieldmark
from fieldmark import models
from fieldmark.cli import _run, app
from fieldmark.errors import ConfigError, RunError, WeightsError
from fieldmark.jobs.plan import prepare
from fieldmark.keras import files as keras_files
from fieldmark.keras import graph as keras_graph
from fieldmark.keras import state as keras_state
from fieldmark.models import imagenet
from tests.making import asked

h5py = pytest.importorskip("h5py")
pytest.importorskip("keras.layers")
import keras  # noqa: E402
from tests.keras import tutorials  # noqa: E402


def command(*words: object) -> int:
    return _run(
        lambda: app([str(w) for w in words], exit_on_error=False, result_action="return_value")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 40 px, in parts."""
    root = tmp_path_factory.mktemp("data") / "shoes"
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, tint in (("adidas", (80, 0, 0)), ("nike", (0, 0, 80))):
            place = root / part / label
            place.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 170, (40, 36, 3)) + np.array(tint)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tutorial 002 saves: ``ModelCheckpoint('best_model.h5')``."""
    path = tmp_path_factory.mktemp("keras") / "best_model.h5"
    keras.utils.set_random_seed(1)
    tutorials.sneaker(2, size=40).save(path)
    return path


def test_import_predict_evaluate_export(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ("import-keras", file, "--model", "sneaker_cnn(size=40)", "--out", run)
    assert command(*words, "--classes", "adidas", "nike", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["classes"] == ["adidas", "nike"]
    picture = folder / "test" / "nike" / "0.png"
    assert command("predict", run, picture, "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    loaded = keras.utils.load_img(picture, target_size=(40, 40))
    logits = keras.models.load_model(file).predict(
        keras.utils.img_to_array(loaded)[None], verbose=0
    )
    probs = keras.ops.convert_to_numpy(keras.ops.softmax(logits))[0]
    assert answer["label"] == ["adidas", "nike"][int(probs.argmax())]
    assert answer["prob"] == pytest.approx(float(probs.max()), abs=1e-3)

    assert command("evaluate", run, "--data", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["n"] == 12
    assert command("export", run, "--to", "keras") == 0
    exported = run / "model.keras"
    assert str(exported) in capsys.readouterr().out
    again = keras.models.load_model(exported).predict(
        keras.utils.img_to_array(loaded)[None], verbose=0
    )
    assert keras.ops.convert_to_numpy(again)[0] == pytest.approx(probs, abs=1e-4)


def test_what_an_imported_run_cannot_do_is_said(file: Path, tmp_path: Path) -> None:
    run = fieldmark.import_keras(
        file, model="sneaker_cnn(size=40)", classes=["a", "b"], out=tmp_path / "run"
    )
    with pytest.raises(RunError, match="no pictures of its own; score it on some with --data"):
        run.evaluate()
    with pytest.raises(RunError, match="was imported, so there is no training to resume"):
        fieldmark.resume(run.path)
    with pytest.raises(ConfigError, match="no export format 'onx'"):
        run.export(to="onx")
    assert run.export(tmp_path / "there.h5", to="keras").is_file()


def test_refusals_have_exit_codes(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "garbage.h5").write_bytes(b"garbage" * 100)
    assert command("import-keras", tmp_path / "garbage.h5", "--model", "cifar_vgg16") == 4
    assert command("import-keras", tmp_path / "none.h5", "--model", "cifar_vgg16") == 4
    words = ("import-keras", file, "--out", tmp_path / "out")
    assert command(*words) == 2
    assert command(*words, "--model", "cifar_vgg16", "--classes", "a", "b") == 4
    assert command("export", tmp_path, "--to", "keras") == 4
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_keras_file_is_a_start_for_training(folder: Path, file: Path, tmp_path: Path) -> None:
    run = fieldmark.train(
        folder,
        recipe="sneakers",
        weights=str(file),
        size=40,
        epochs=1,
        lr=1e-9,
        threads=1,
        out=tmp_path / "run",
        progress=False,
    )
    with h5py.File(file) as opened:
        kernel = next(
            value
            for value in iter_datasets(opened["model_weights"])
            if value.shape == (3, 3, 3, 16)
        )
    state = run._load("cpu").module.state_dict()
    assert state["features.0.weight"].numpy() == pytest.approx(
        kernel.transpose(3, 2, 0, 1), abs=1e-6
    )


def iter_datasets(group: object) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    group.visititems(  # type: ignore[attr-defined]
        lambda _, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None
    )
    return found


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """ImageNet weights of VGG16 without its top, in the cache, with the checksum they have."""
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    module = models.create("keras_vgg(top='mean')", num_classes=1000, weights="none").module
    graph = keras_graph.without_head(keras_graph.trace(module, 224))
    layers = keras_state.stored_layers(graph, module.state_dict(), by_class=False)
    buffer = io.BytesIO(keras_files.write_legacy(layers, config={}, version="2.0", note=""))
    with h5py.File(buffer, "r+") as opened:  # weights alone, as published
        del opened.attrs["model_config"]
    body = buffer.getvalue()
    address, top, _ = imagenet.FILES["vgg16"]
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(imagenet.FILES, "vgg16", (address, top, digest))
    place = tmp_path / "cache" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    place.parent.mkdir()
    place.write_bytes(body)
    return module.state_dict()


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
def test_imagenet_weights_under_a_recipe(
    weights: str, folder: Path, published: dict[str, torch.Tensor]
) -> None:
    """Those in the cache are used by themselves; Caffe's channels are turned for Caffe's pixels."""
    settings = {"model": "keras_vgg(top='mean')", "size": 40, "weights": weights, "threads": 1}
    job = prepare(asked(folder, recipe="birds_fixed", settings=settings))
    assert job.network.weights == "imagenet: vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    state, first = job.network.module.state_dict(), "features.0.weight"
    assert torch.equal(state[first], published[first].flip(1))
    assert torch.equal(state["features.2.weight"], published["features.2.weight"])
    # The tutorial feeds red first to weights that want blue first: then nothing is turned.
    job = prepare(asked(folder, recipe="birds", settings=settings))
    assert torch.equal(job.network.module.state_dict()[first], published[first])


def test_missing_imagenet_weights_are_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    settings = {"model": "keras_vgg(top='mean')", "size": 40, "threads": 1}
    job = prepare(asked(folder, recipe="birds_fixed", settings=settings))
    assert job.network.weights == "none"
    assert any("--weights imagenet downloads them" in note for note in job.network.warnings)
    with pytest.raises(WeightsError, match="no ImageNet weights of small_cnn are published"):
        prepare(
            asked(
                folder,
                settings={"model": "small_cnn", "weights": "imagenet", "threads": 1},
            )
        )
