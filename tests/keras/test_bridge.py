"""Runs from Keras files and Keras files from runs: both sides predict the same."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fieldmark
from fieldmark import models
from fieldmark.errors import ConfigError, ResourceError, RunError, WeightsError
from fieldmark.export.keras_file import export_keras
from fieldmark.jobs.import_keras import import_keras
from fieldmark.keras import config as keras_config
from fieldmark.keras import files as keras_files
from fieldmark.keras import graph as keras_graph
from fieldmark.keras import state as keras_state
from fieldmark.models import imagenet
from fieldmark.models.weights import load_weights
from fieldmark.pictures.inputs import NORMALIZATIONS
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Model, ModelInfo, Selected
from fieldmark.scoring.metrics import softmax
from fieldmark.scoring.scorer import Scorer
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.spec import call, parse

h5py = pytest.importorskip("h5py")
# A submodule: without Keras, this folder itself would be found as an empty package called keras.
pytest.importorskip("keras.layers")
from keras.src.legacy.saving import legacy_h5_format  # noqa: E402

import keras  # noqa: E402
from keras import layers  # noqa: E402
from tests.keras import tutorials  # noqa: E402

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FORMS = ("model.h5", "model.keras", "model.weights.h5", "legacy-weights.h5")


def saved(model: Any, folder: Path, form: str) -> Path:
    """Have Keras write a model in one of its forms; the last as Keras 2 wrote weights alone."""
    path = folder / form
    if form == "legacy-weights.h5":
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    elif form == "model.weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    return path


def unsettled(model: Any, seed: int = 0) -> Any:
    """Give every weight a value that no fresh network has, so that none can be mistaken."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        old = keras.ops.convert_to_numpy(weight)
        if weight.name in ("gamma", "moving_variance", "beta", "moving_mean", "bias"):
            low, high = (0.7, 1.3) if weight.name in ("gamma", "moving_variance") else (-0.2, 0.2)
            weight.assign(random.uniform(low, high, old.shape).astype("float32"))
    return model


def pictures(folder: Path, count: int = 12) -> list[Path]:
    """Pictures of many sizes, in colour."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    paths = []
    for i in range(count):
        height, width = random.integers(20, 150, 2)
        small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        path = folder / f"{i:03}.{'png' if i % 2 else 'jpg'}"
        small.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Softmax, unless Keras has done it."""
    done = np.allclose(outputs.sum(axis=1), 1, atol=1e-4) and outputs.min() >= 0
    return outputs if done else softmax(outputs.astype(np.float64), 1.0)


def keras_answers(
    model: Any, paths: list[Path], size: int, prepare: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """What a script would do: load_img, img_to_array, predict."""
    images = [keras.utils.load_img(path, target_size=(size, size)) for path in paths]
    batch = np.stack([keras.utils.img_to_array(image) for image in images])
    return probabilities(model.predict(prepare(batch), verbose=0))


def our_answers(run: RunDirectory, paths: list[Path]) -> np.ndarray:
    """Probabilities in the order of the run's classes."""
    loaded = fieldmark.load(run.path)
    found = loaded.predict([str(path) for path in paths], top=len(loaded.class_names))
    assert all(not p.error for p in found)
    return np.array([[dict(p.top)[name] for name in loaded.class_names] for p in found])


def assert_same_answers(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-3) -> None:
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    assert np.abs(ours - theirs).max() < tolerance


def trained(model: Any, size: int, classes: int, prepare: Callable[[Any], Any]) -> Any:
    """Train a little: colours decide the class."""
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    labels = np.arange(24) % classes
    images = random.uniform(0, 255, (24, size, size, 3)).astype("float32")
    images[np.arange(24), ..., labels % 3] *= 0.3
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.5  # or the statistics would be those of no picture after few steps
    softened = model.layers[-1].get_config().get("activation") == "softmax"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softened)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    model.fit(prepare(images), labels, epochs=4, batch_size=8, verbose=0)
    return model


def scaled(images: np.ndarray) -> np.ndarray:
    return images / 255.0


def as_given(images: np.ndarray) -> np.ndarray:
    return images


# --- Import ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sneaker() -> Any:
    """The script of tutorial 002, on small pictures: Rescaling first, logits last."""
    return trained(tutorials.sneaker(3, size=48), 48, 3, as_given)


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The script of tutorial 003: pixels divided by 255 outside, softmax last."""
    return trained(tutorials.tiny_resnet_v1(20, 4), 32, 4, scaled)


@pytest.mark.parametrize("form", FORMS)
def test_a_script_like_002_imports_and_predicts_as_keras(
    sneaker: Any, form: str, tmp_path: Path
) -> None:
    path, files = saved(sneaker, tmp_path, form), pictures(tmp_path / "pictures")
    run = import_keras(
        path, model="sneaker_cnn", classes=["c", "a", "b"], out=tmp_path / "run", size=48
    )
    theirs = keras_answers(sneaker, files, 48, as_given)
    assert np.ptp(theirs, axis=0).max() > 0.01  # or any import would agree
    assert_same_answers(our_answers(run, files), theirs, 1e-5)
    assert fieldmark.load(run.path).class_names == ("c", "a", "b")


@pytest.mark.parametrize("form", FORMS)
def test_a_script_like_003_imports_and_predicts_as_keras(
    tiny: Any, form: str, tmp_path: Path
) -> None:
    path, files = saved(tiny, tmp_path, form), pictures(tmp_path / "pictures")
    run = import_keras(
        path, model="cifar_resnet", classes="abcd", out=tmp_path / "run", preprocess="scale"
    )
    theirs = keras_answers(tiny, files, 32, scaled)
    assert np.ptp(theirs, axis=0).max() > 0.01
    assert_same_answers(our_answers(run, files), theirs, 1e-5)


@pytest.mark.shared
def test_100_real_pictures_are_predicted_as_by_keras(
    sneaker: Any, tiny: Any, tmp_path: Path
) -> None:
    with tarfile.open(SHARED / "flowers.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    every = sorted((tmp_path / "flowers").rglob("*.jpg"))
    files = every[:: len(every) // 100][:100]
    assert len(files) == 100
    for model, spec, size, classes, scale, prepare in (
        (sneaker, "sneaker_cnn", 48, "abc", "auto", as_given),
        (tiny, "cifar_resnet", 32, "abcd", "scale", scaled),
    ):
        run = import_keras(
            saved(model, tmp_path, "model.h5"),
            model=spec,
            classes=classes,
            out=tmp_path / spec,
            size=size,
            preprocess=scale,
        )
        assert_same_answers(our_answers(run, files), keras_answers(model, files, size, prepare))


TUTORIALS: dict[str, tuple[Callable[[], Any], int]] = {
    "cifar_resnet(depth=20, version=2)": (lambda: tutorials.tiny_resnet_v2(20, 4), 32),
    "cifar_vgg16": (lambda: tutorials.vgg16(4), 32),
    "cifar_vgg16_big": (lambda: tutorials.vgg16_big(4), 32),
    "cifar_googlenet": (lambda: tutorials.googlenet(4), 32),
    "cifar_resnet18": (lambda: tutorials.resnet18(4), 32),
    "resnet50_unpadded": (lambda: tutorials.resnet50(4, size=64, pool=2), 64),
}
LARGE = ("cifar_vgg16", "cifar_vgg16_big", "cifar_resnet18", "resnet50_unpadded")
APPLICATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "keras_resnet": ("ResNet50", {}, "caffe"),
    "keras_resnet(version=2)": ("ResNet50V2", {}, "tf"),
    "keras_densenet": ("DenseNet121", {}, "torch"),
    "keras_vgg(top='mean')": ("VGG16", {"include_top": False, "pooling": "avg"}, "caffe"),
    "keras_resnet(depth=101)": ("ResNet101", {}, "caffe"),
    "keras_resnet(depth=152, version=2)": ("ResNet152V2", {}, "tf"),
    "keras_densenet(depth=201)": ("DenseNet201", {}, "torch"),
    "keras_vgg(depth=19, size=64)": ("VGG19", {}, "caffe"),
}


def assert_imports(
    model: Any,
    spec: str,
    size: int,
    prepare: Callable[..., Any],
    scale: str,
    folder: Path,
    forms: Sequence[str] = FORMS,
) -> None:
    """Import from every form; all predict as Keras, and weights alone give the whole's tensors."""
    images = np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.uint8)
    theirs = probabilities(model.predict(prepare(images.astype("float32")), verbose=0))
    first: dict[str, torch.Tensor] = {}
    for form in forms:
        run = import_keras(
            saved(model, folder, form),
            model=spec,
            classes="abcd",
            out=folder / f"run-{form}",
            preprocess=scale,
            size=size,
        )
        assert_same_answers(answers(run.load_model(), images), theirs, 1e-5)
        found = tensors(run)
        first = first or found
        assert all(torch.equal(first[key], found[key]) for key in first)


def answers(model: Model, images: np.ndarray) -> np.ndarray:
    """Probabilities for pictures that fit already: uint8 [N, S, S, 3]."""
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    found = Scorer(model.module, spec=model.info.input)(batch).numpy()
    return softmax(found.astype(np.float64), model.info.temperature)


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, marks=pytest.mark.slow if spec in LARGE else ()) for spec in TUTORIALS],
)
def test_every_tutorials_network_imports_from_every_form(spec: str, tmp_path: Path) -> None:
    build, size = TUTORIALS[spec]
    keras.utils.set_random_seed(0)
    # Each branch of a module takes its time to match; a whole and bare weights are matched apart.
    forms = FORMS[1:3] if spec == "cifar_googlenet" else FORMS
    assert_imports(unsettled(build()), spec, size, scaled, "scale", tmp_path, forms)


@pytest.mark.slow
@pytest.mark.parametrize("spec", APPLICATIONS)
def test_keras_applications_import_from_every_form(spec: str, tmp_path: Path) -> None:
    name, arguments, mode = APPLICATIONS[spec]
    keras.utils.set_random_seed(0)
    top = {} if arguments else {"classes": 4}
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), **arguments, **top
    )
    if arguments:
        model = keras.Model(model.input, layers.Dense(4, activation="softmax")(model.output))

    def prepare(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = keras.applications.imagenet_utils.preprocess_input(images, mode=mode)
        return found

    # Without --preprocess: it is what the network wants.
    assert_imports(unsettled(model), spec, 64, prepare, "auto", tmp_path)


def plain(*front: Any, last: Any = None) -> Any:
    """The plain CNN of 002 with other layers at its ends."""
    tail = tutorials.sneaker(4, size=32).layers[1:-1]
    return unsettled(
        keras.Sequential([layers.Input((32, 32, 3)), *front, *tail, last or layers.Dense(4)])
    )


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch", "scale", "none"])
def test_what_was_done_to_pixels_is_recorded(mode: str, tmp_path: Path) -> None:
    model = plain()
    preprocess = keras.applications.imagenet_utils.preprocess_input
    prepare = {"scale": scaled, "none": as_given}.get(
        mode, lambda images: preprocess(images.copy(), mode=mode)
    )
    run = import_keras(
        saved(model, tmp_path, "model.keras"),
        model="sneaker_cnn",
        classes="abcd",
        out=tmp_path / "run",
        preprocess=mode,
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    theirs = probabilities(model.predict(prepare(images.astype("float32")), verbose=0))
    assert_same_answers(answers(run.load_model(), images), theirs, 1e-4)


def test_scaling_in_the_file_is_read_from_it(tmp_path: Path) -> None:
    """Rescaling, then a Normalization that was adapted: both by channel, one after the other."""
    normalization = layers.Normalization(axis=-1)
    normalization.adapt(np.random.default_rng(2).uniform(0.1, 0.9, (8, 32, 32, 3)))
    flips = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
    model = plain(flips, layers.Rescaling(1 / 255), normalization)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    theirs = probabilities(model.predict(images.astype("float32"), verbose=0))
    for form in ("model.h5", "model.keras"):
        path = saved(model, tmp_path, form)
        run = import_keras(path, model="sneaker_cnn", classes="abcd", out=tmp_path / f"run-{form}")
        assert_same_answers(answers(run.load_model(), images), theirs, 1e-4)
        assert "layers at the front" in run.read_text("log.txt")
        with pytest.raises(ConfigError, match="scale pixels already"):
            import_keras(path, model="sneaker_cnn", classes="abcd", preprocess="caffe")


@pytest.mark.parametrize("form", FORMS)
def test_a_model_in_a_model(form: str, tiny: Any, tmp_path: Path) -> None:
    """Transfer learning as Keras's guides write it: a base, and a dense layer after it."""
    base = keras.Model(tiny.input, tiny.layers[-2].output)
    outer = keras.Sequential([layers.Input((32, 32, 3)), base, layers.Dense(4)])
    base.trainable = False
    run = import_keras(
        saved(unsettled(outer), tmp_path, form),
        model="cifar_resnet",
        classes="abcd",
        out=tmp_path / "run",
        preprocess="scale",
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    theirs = probabilities(outer.predict(scaled(images.astype("float32")), verbose=0))
    assert_same_answers(answers(run.load_model(), images), theirs, 1e-4)


def residual(order: int) -> Any:
    """Version 1 at depth 8 with the addition written either way round, layers made out of order."""
    inputs = layers.Input((32, 32, 3))
    norm = layers.BatchNormalization()
    x = layers.Activation("relu")(norm(layers.Conv2D(16, 3, padding="same")(inputs)))
    for stage, channels in enumerate((16, 32, 64)):
        stride = 2 if stage else 1
        last = layers.Conv2D(channels, 3, padding="same")
        y = layers.Conv2D(channels, 3, strides=stride, padding="same")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(last(y))
        if stage:
            x = layers.Conv2D(channels, 1, strides=stride, padding="same")(x)
        x = layers.Activation("relu")(layers.add([x, y] if order else [y, x]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return unsettled(keras.Model(inputs, layers.Dense(4, activation="softmax")(x)))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("form", ["model.h5", "model.keras"])
def test_a_whole_model_is_matched_by_how_it_is_connected(
    order: int, form: str, tmp_path: Path
) -> None:
    model = residual(order)
    run = import_keras(
        saved(model, tmp_path, form),
        model="cifar_resnet(depth=8)",
        classes="abcd",
        out=tmp_path / "run",
        preprocess="scale",
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    theirs = probabilities(model.predict(scaled(images.astype("float32")), verbose=0))
    assert_same_answers(answers(run.load_model(), images), theirs, 1e-4)


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(WeightsError) as error:
        import_keras(path, **{"model": "sneaker_cnn", "classes": "abcd", **settings})
    return str(error.value)


def test_another_network_gives_a_diff_and_the_one_that_fits(tiny: Any, tmp_path: Path) -> None:
    for form in ("model.keras", "legacy-weights.h5"):
        path = saved(tiny, tmp_path, form)
        text = refusal(path, model="cifar_resnet(depth=32)")
        assert "does not fit the network" in text
        assert "the network has" in text
        assert "nothing" in text
        assert "it fits cifar_resnet, cifar_resnet(depth=20)" in text


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "activation": (lambda c: c.update(activation="elu"), "activation function elu"),
    "stride": (lambda c: c.update(strides=[2, 2]), "stride 2x2"),
    "padding": (lambda c: c.update(padding="same"), "pads 1x1x1x1"),
    "dilation": (lambda c: c.update(dilation_rate=[2, 2]), "dilated"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_shapes_with_another_function_do_not_pass(
    change: str, sneaker: Any, tmp_path: Path
) -> None:
    """Weights would fit, and the predictions be others."""
    path = saved(sneaker, tmp_path, "model.h5")
    apply, words = CHANGES[change]
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        convolutions = [e for e in config["config"]["layers"] if e["class_name"] == "Conv2D"]
        apply(convolutions[1]["config"])
        file.attrs["model_config"] = json.dumps(config)
    assert words in refusal(path, classes="abc")


def test_batch_norm_with_another_epsilon_does_not_pass(tiny: Any, tmp_path: Path) -> None:
    path = saved(tiny, tmp_path, "model.h5")
    with h5py.File(path, "r+") as file:
        text = file.attrs["model_config"].replace('"epsilon": 0.001', '"epsilon": 0.01')
        file.attrs["model_config"] = text
    assert "norm epsilon 0.01" in refusal(path, model="cifar_resnet")


def test_ends_and_inputs_that_are_not_ours(tmp_path: Path) -> None:
    path = saved(plain(last=layers.Dense(4, activation="sigmoid")), tmp_path, "model.h5")
    assert "ends in sigmoid" in refusal(path)
    for shape, words in (((32, 32, 1), "(32, 32, 1)"), ((32, 40, 3), "32x40")):
        inputs = layers.Input(shape)
        outputs = layers.Dense(4)(layers.Flatten()(layers.Conv2D(4, 3)(inputs)))
        path = saved(keras.Model(inputs, outputs), tmp_path, "model.keras")
        assert words in refusal(path)
    path = saved(plain(), tmp_path, "model.keras")
    with pytest.raises(ConfigError, match="takes pictures of 32 px"):
        import_keras(path, model="sneaker_cnn", classes="abcd", size=64)


def test_one_layer_in_two_places_is_refused(tmp_path: Path) -> None:
    inputs = layers.Input((32, 32, 3))
    shared = layers.Conv2D(3, 3, padding="same")
    outputs = layers.Dense(4)(layers.Flatten()(shared(shared(inputs))))
    assert "used 2 times" in refusal(
        saved(keras.Model(inputs, outputs), tmp_path, "model.keras"), model="small_cnn"
    )


def test_the_mean_picture_must_be_in_the_file(tiny: Any, tmp_path: Path) -> None:
    path = saved(tiny, tmp_path, "model.h5")
    assert "--mean-picture" in refusal(path, model="cifar_resnet(centre=32)")


def test_a_mean_picture_is_for_networks_that_take_one(sneaker: Any, tmp_path: Path) -> None:
    path = saved(sneaker, tmp_path, "model.h5")
    with pytest.raises(ConfigError, match="sneaker_cnn subtracts no mean picture"):
        import_keras(path, model="sneaker_cnn", classes="abc", mean_picture=tmp_path / "mean.npy")


def test_a_mean_picture_is_subtracted_as_the_script_did(tiny: Any, tmp_path: Path) -> None:
    """Tutorial 003: ``x / 255 - np.mean(x_train, axis=0)``."""
    path, mean = saved(tiny, tmp_path, "model.h5"), tmp_path / "mean.npy"
    subtracted = np.random.default_rng(0).uniform(0.3, 0.6, (32, 32, 3))
    np.save(mean, subtracted)
    run = import_keras(
        path,
        model="cifar_resnet",
        classes=list("abcd"),
        preprocess="scale",
        mean_picture=mean,
        out=tmp_path / "run",
    )
    assert run.model_info().model == "cifar_resnet(centre=32)"
    paths = pictures(tmp_path / "pictures", 4)
    loaded = [keras.utils.load_img(p, target_size=(32, 32)) for p in paths]
    images = np.stack([keras.utils.img_to_array(p) for p in loaded]) / 255 - subtracted
    expected = keras.ops.convert_to_numpy(tiny(images.astype(np.float32), training=False))
    for answer, probs in zip(fieldmark.load(run.path).predict(paths), expected, strict=True):
        assert answer.label == "abcd"[int(probs.argmax())]
        assert answer.prob == pytest.approx(float(probs.max()), abs=1e-4)
    # It goes out with the network, and comes back.
    again = import_keras(export_keras(run.path, tmp_path / "out.keras"), out=tmp_path / "again")
    states = [r.load_model().module.state_dict()["centre.mean"] for r in (run, again)]
    assert torch.equal(*states)

    for content, says in (
        (np.zeros((32, 31, 3)), "has the shape"),
        (np.full((32, 32, 3), np.nan), "not finite"),
        (np.array(["a"]), "not an array of numbers"),
        (np.array([{}], dtype=object), "cannot be read"),
    ):
        np.save(mean, content, allow_pickle=True)
        assert says in refusal(path, model="cifar_resnet", mean_picture=mean)
    mean.write_bytes(b"")
    assert "cannot be read" in refusal(path, model="cifar_resnet", mean_picture=mean)


# --- Classes --------------------------------------------------------------------------------------


def test_classes_keep_the_order_given(sneaker: Any, tmp_path: Path) -> None:
    path = saved(sneaker, tmp_path, "model.h5")
    listed, folder = tmp_path / "classes.txt", tmp_path / "train"
    listed.write_bytes("zebra\r\n猫 cat\r\nape\r\n".encode("utf-8-sig"))
    for name in ("b10", "b9", "A"):
        (folder / name).mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "file.txt").write_text("")
    for given, names in (
        (["z", "y", "a"], ("z", "y", "a")),
        ([str(listed)], ("zebra", "猫 cat", "ape")),
        ([str(folder)], ("A", "b10", "b9")),
    ):
        out = tmp_path / f"run-{names[0]}"
        run = import_keras(path, model="sneaker_cnn", classes=given, out=out)
        assert run.model_info().class_names == names
    assert "has 3 outputs, but 4" in refusal(path)
    with pytest.raises(ConfigError, match="a twice"):
        import_keras(path, model="sneaker_cnn", classes=["a", "b", "a"])
    with pytest.raises(ConfigError, match="give --model and --classes"):
        import_keras(path, classes="abc")
    with pytest.raises(ConfigError, match="did you mean 'caffe'"):
        import_keras(path, model="sneaker_cnn", classes="abc", preprocess="cafe")


def test_an_imported_run_is_used_like_any_other(sneaker: Any, tmp_path: Path) -> None:
    """Scored on other pictures, not gone on with, and told where it comes from."""
    path = saved(sneaker, tmp_path, "model.keras")
    run = import_keras(path, model="sneaker_cnn", classes="cab", out=tmp_path / "run")
    for name in "abc":
        for i, file in enumerate(pictures(tmp_path / "p")):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            image = np.asarray(Image.open(file)).copy()
            image[..., "abc".index(name)] = 10 * i
            Image.fromarray(image).save(tmp_path / "data" / name / f"{i}.png")
    loaded = fieldmark.load(run.path)
    scores = loaded.evaluate(tmp_path / "data", progress=False)["test"]
    assert scores["n"] == 36
    theirs = keras_answers(sneaker, sorted((tmp_path / "data").rglob("*.png")), 48, as_given)
    labels = np.repeat([1, 2, 0], 12)  # folders a, b, c in the classes c, a, b
    assert scores["accuracy"] == np.mean(theirs.argmax(axis=1) == labels)
    for act in (lambda: loaded.evaluate(progress=False), lambda: fieldmark.resume(run.path)):
        with pytest.raises(RunError):
            act()
    origin = run.read_json("import.json")
    assert origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run.model_info().weights == "keras file: model.keras"
    assert run.model_info().selected.metric == "imported"
    assert str(tmp_path) not in "".join(
        run.read_text(name) for name in ("import.json", "config.json", "model.json", "log.txt")
    )


# --- Export ---------------------------------------------------------------------------------------

EXPORTED = {
    "small_cnn": 28,
    "small_cnn(width=8)": 13,
    "sneaker_cnn(size=32)": 32,
    "cifar_resnet(depth=20)": 32,
    "cifar_resnet(depth=8, centre=32)": 32,
    "cifar_resnet(depth=20, version=2)": 32,
    "cifar_googlenet": 32,
}


def run_of(spec: str, size: int, folder: Path, temperature: float = 1.7) -> RunDirectory:
    """A run whose network is like nothing fresh."""
    torch.manual_seed(0)
    network = models.create(spec, num_classes=4, weights="none", size=size)
    for layer in network.module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight, 0.7, 1.3),
                (layer.bias, -0.2, 0.2),
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.7, 1.3),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    for name, tensor in network.module.named_buffers():
        if name.endswith("centre.mean"):
            nn.init.uniform_(tensor, 0, 0.5)
    run = RunDirectory.create(folder, name="run")
    info = ModelInfo(
        model=network.spec,
        input=network.input,
        class_names=("b", "a", "ç 猫", "d/d"),
        temperature=temperature,
        selected=Selected(epoch=3, metric="val_accuracy", value=0.5),
        weights="none",
        num_params=network.num_params,
    )
    run.save_model(network.module.state_dict(), info)
    run.write("config.json", TrainConfig(model=network.spec).to_json().encode())
    return run


def tensors(run: RunDirectory) -> dict[str, torch.Tensor]:
    state = run.load_model().module.state_dict()
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("spec", "suffix"),
    [
        *itertools.product(("small_cnn", "cifar_resnet(depth=8, centre=32)"), (".keras", ".h5")),
        ("small_cnn(width=8)", ".h5"),
        ("sneaker_cnn(size=32)", ".keras"),
        ("cifar_resnet(depth=20)", ".h5"),
        ("cifar_resnet(depth=20, version=2)", ".keras"),
        pytest.param("cifar_googlenet", ".h5", marks=pytest.mark.slow),
    ],
)
def test_keras_loads_an_export_and_it_comes_back_exactly(
    spec: str, suffix: str, tmp_path: Path
) -> None:
    size = EXPORTED[spec]
    run = run_of(spec, size, tmp_path / "run")
    out = export_keras(run.path, tmp_path / f"model{suffix}")
    model = keras.models.load_model(out, compile=False)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    theirs = model.predict(images.astype("float32"), verbose=0)
    assert theirs.shape == (3, 4)
    assert_same_answers(answers(run.load_model(), images), theirs, 1e-4)

    back = import_keras(out, out=tmp_path / "back")
    ours, returned = tensors(run), tensors(back)
    assert ours.keys() == returned.keys()
    assert all(torch.equal(ours[key], returned[key]) for key in ours)
    was, now = run.model_info(), back.model_info()
    assert (was.model, was.input, was.class_names) == (now.model, now.input, now.class_names)
    assert was.temperature == now.temperature
    again = export_keras(back.path, tmp_path / f"again{suffix}")
    assert keras_files.read_keras(again).config == keras_files.read_keras(out).config


@pytest.mark.parametrize("form", ["model.h5", "model.keras"])
def test_an_export_that_keras_saved_again_still_says_what_it_needs(
    form: str, tmp_path: Path
) -> None:
    """Fieldmark's own note is gone then; scaling and temperature are in layers."""
    run = run_of("cifar_resnet(depth=8, centre=32)", 32, tmp_path / "run")
    out = export_keras(run.path, tmp_path / "model.keras")
    (tmp_path / "again").mkdir()
    path = saved(keras.models.load_model(out, compile=False), tmp_path / "again", form)
    names = run.model_info().class_names
    spec = "cifar_resnet(depth=8, centre=32)"
    back = import_keras(path, model=spec, classes=names, out=tmp_path / "back")
    ours, returned = tensors(run), tensors(back)
    assert all(torch.equal(ours[key], returned[key]) for key in ours)
    assert back.model_info().temperature == pytest.approx(1.7)
    assert back.model_info().input.mean == pytest.approx(run.model_info().input.mean)
    assert back.model_info().input.interpolation == "nearest"


@pytest.mark.parametrize(
    "spec",
    [
        *("cifar_resnet18", "cifar_vgg16", "resnet50_unpadded(outputs=10)"),
        *("keras_resnet", "keras_resnet(version=2)", "keras_densenet", "keras_vgg(size=64)"),
    ],
)
@pytest.mark.slow
def test_large_networks_export(spec: str, tmp_path: Path) -> None:
    run = run_of(spec, 64, tmp_path / "run")
    model = keras.models.load_model(export_keras(run.path, tmp_path / "model.keras"))
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    theirs = model.predict(images.astype("float32"), verbose=0)
    assert_same_answers(answers(run.load_model(), images), theirs, 1e-4)


def test_a_network_without_a_keras_twin_is_refused_by_its_layer() -> None:
    network = models.create("whitened_cnn", num_classes=4)
    with pytest.raises(WeightsError, match="WhitenedCNN"):
        keras_graph.trace(network.module, 32)


@pytest.mark.parametrize("name", sorted(set(models.MODELS) - {"whitened_cnn"}))
def test_every_network_of_ours_has_a_keras_twin(name: str) -> None:
    """Contract: what is described in either dialect reads back as the same graph."""
    family = models.MODELS[name]
    with torch.device("meta"):
        module = call(parse(name, what="model"), family.build, 4, what="model")
    graph = keras_graph.trace(module, family.input.size)
    parameters = {key for key, _ in module.named_parameters()}
    assert parameters <= {key for layer in graph for key in layer.keys}
    for legacy in (False, True):
        config = json.loads(json.dumps(keras_config.write_config(graph, model="x", legacy=legacy)))
        read = keras_config.read_config(
            config, lambda path: None, size=0, by_class=not legacy, name="x"
        )
        paths = {i: (slot,) for i, slot in keras_config.slots(graph).items()}
        for ours, theirs in keras_graph.match(graph, read.graph, name="x").items():
            wanted = (graph[ours].name,) if legacy else paths[ours]
            assert read.graph[theirs].keys == wanted


def test_an_export_that_does_not_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("sneaker_cnn(size=32)", 32, tmp_path / "run")
    out = tmp_path / "model.keras"
    out.write_bytes(b"as it was")
    stored = keras_state.stored_layers

    def damaged(*arguments: Any, **rest: Any) -> Any:
        found = stored(*arguments, **rest)
        for i, layer in enumerate(found):
            if layer.path[0].startswith("dense"):
                arrays = [(name, array + np.float32(1e-3)) for name, array in layer.tensors]
                found[i] = keras_files.StoredLayer(layer.path, tuple(arrays))
        return found

    monkeypatch.setattr("fieldmark.jobs.import_keras.keras_state.stored_layers", damaged)
    with pytest.raises(WeightsError, match="does not read back"):
        export_keras(run.path, out)
    assert out.read_bytes() == b"as it was"
    with pytest.raises(ConfigError, match=r"\.onnx"):
        export_keras(run.path, tmp_path / "model.onnx")


def test_a_network_without_a_twin_is_named(tmp_path: Path) -> None:
    for module, words in (
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), "0 has groups"),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU()), "1 (GELU)"),
    ):
        with pytest.raises(WeightsError, match=words.replace("(", r"\(").replace(")", r"\)")):
            keras_graph.trace(module, 16)
    graph = keras_graph.trace(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1)), 16)
    with pytest.raises(WeightsError, match="0 is padded by"):
        keras_config.write_config(graph, model="x", legacy=False)


def test_kerass_order_of_layers(tmp_path: Path) -> None:
    """Weights alone lean on it: it must be the order of model.layers, ties and all."""
    run = run_of("cifar_googlenet", 32, tmp_path / "run")
    out = export_keras(run.path, tmp_path / "model.keras")
    graph = keras_graph.trace(run.load_model().module, 32)
    names = [layer.name for layer in keras.models.load_model(out, compile=False).layers]
    ours = [graph[i].name for i in keras_graph.keras_order(graph)]
    assert [name for name in names if name in ours] == ours


# --- ImageNet -------------------------------------------------------------------------------------


class Asked(Exception):
    pass


@pytest.mark.parametrize(
    ("spec", "name"),
    [(f"keras_resnet(depth={d})", f"ResNet{d}") for d in (50, 101, 152)]
    + [(f"keras_resnet(depth={d}, version=2)", f"ResNet{d}V2") for d in (50, 101, 152)]
    + [(f"keras_vgg(depth={d})", f"VGG{d}") for d in (16, 19)]
    + [(f"keras_densenet(depth={d})", f"DenseNet{d}") for d in (121, 169, 201)],
)
@pytest.mark.parametrize("top", [True, False])
@pytest.mark.slow
def test_addresses_and_checksums_are_those_of_keras(
    spec: str, name: str, top: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def get_file(name: str, origin: str, *, file_hash: str, **rest: Any) -> str:
        asked.append((origin, file_hash))
        raise Asked

    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", get_file)
    with pytest.raises(Asked):
        getattr(keras.applications, name)(weights="imagenet", include_top=top)
    if not top and "vgg" in spec:
        spec = spec.replace(")", ", top='mean')")
    found = imagenet.published(spec, num_classes=1000 if top else 5)
    assert asked == [(found.url, found.md5)]


def test_files_of_one_name_are_two_in_the_cache() -> None:
    new = imagenet.published("keras_resnet", num_classes=1000)
    old = imagenet.published("resnet50_unpadded(outputs=1000)", num_classes=4)
    assert new.url.rpartition("/")[2] == old.url.rpartition("/")[2]
    assert new.name != old.name
    with pytest.raises(WeightsError, match="no ImageNet weights of small_cnn"):
        imagenet.published("small_cnn", num_classes=1000)
    with pytest.raises(WeightsError, match="trained on 224 px"):
        imagenet.published("keras_vgg", num_classes=4, size=128)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A web server of the files given to it, in place of the publishers'."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that asks for the size alone goes away

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    table = {
        name: (f"http://127.0.0.1:{server.server_address[1]}/{name}", *sums)
        for name, (_, *sums) in imagenet.FILES.items()
    }
    monkeypatch.setattr(imagenet, "FILES", table)
    yield files
    server.shutdown()
    server.server_close()
    thread.join()


KERNELS = "_weights_tf_dim_ordering_tf_kernels"


def test_imagenet_weights_come_from_the_cache_or_the_net(
    site: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    source = models.create("keras_vgg(top='mean')", num_classes=1000, weights="none").module
    graph = keras_graph.without_head(keras_graph.trace(source, 224))
    body = keras_files.write_legacy(
        keras_state.stored_layers(graph, source.state_dict(), by_class=False),
        config={},
        version="2.0",
        note="",
    )
    buffer = io.BytesIO(body)
    with h5py.File(buffer, "r+") as file:  # weights alone, as published
        del file.attrs["model_config"]
    body = buffer.getvalue()
    spec = "keras_vgg(top='mean')"
    site[f"/vgg16{KERNELS}_notop.h5"] = body
    with pytest.raises(ResourceError, match="md5"):
        imagenet.imagenet_file(spec, num_classes=5, cache=tmp_path)
    assert not list(tmp_path.glob("*.h5"))

    address, top, _ = imagenet.FILES["vgg16"]
    digest = hashlib.md5(body).hexdigest()
    monkeypatch.setitem(imagenet.FILES, "vgg16", (address, top, digest))
    path = imagenet.imagenet_file(spec, num_classes=5, cache=tmp_path)
    site.clear()
    assert imagenet.imagenet_file(spec, num_classes=5, cache=tmp_path) == path

    network = models.create(spec, num_classes=5, weights="none")
    state = keras_state.read_state(path, network.module, size=224, bgr=True)
    notes = load_weights(network.module, state, head="head", source=path.name)
    assert "head" in notes[0]
    ours, theirs = network.module.state_dict(), source.state_dict()
    assert not ours["head.weight"].any()
    first = "features.0.weight"
    assert torch.equal(ours[first], theirs[first].flip(1))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if "head" not in k and k != first)

    with pytest.raises(ResourceError, match="404"):
        imagenet.imagenet_file("keras_resnet", num_classes=5, cache=tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_another_head_is_a_start_for_training(
    form: str, tiny: Any, tmp_path: Path
) -> None:
    path = saved(tiny, tmp_path, form)
    for classes, notes in ((4, 0), (7, 1)):
        network = models.create("cifar_resnet", num_classes=classes, weights="none")
        state = keras_state.read_state(path, network.module, size=32, bgr=False)
        told = load_weights(network.module, state, head="head", source=path.name)
        assert len(told) == notes
        kernel = keras.ops.convert_to_numpy(tiny.layers[1].kernel)
        assert np.array_equal(
            network.module.state_dict()["stem.weight"].numpy(), kernel.transpose(3, 2, 0, 1)
        )
    other = models.create("cifar_resnet(depth=32)", num_classes=4, weights="none")
    with pytest.raises(WeightsError, match="does not fit the network"):
        keras_state.read_state(path, other.module, size=32, bgr=False)


def test_caffes_scaling_is_the_same_everywhere() -> None:
    """The turn of the first kernel hangs on it."""
    mean, std = NORMALIZATIONS["caffe"]
    assert models.create("keras_vgg(top='mean')", num_classes=2, weights="none").input.mean == mean
    assert std == (1 / 255,) * 3
