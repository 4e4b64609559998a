"""Reading Keras files: sound ones give what is in them, hostile ones are refused untouched."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark import models
from fieldmark.errors import MissingExtraError, WeightsError
from fieldmark.jobs.import_keras import import_keras
from fieldmark.keras import files as keras_files
from fieldmark.keras.files import StoredLayer, read_keras, read_stream
from fieldmark.runs.model import ModelInfo, Selected
from tests.opening import OpenWatch

h5py = pytest.importorskip("h5py")

from tests.keras.hostile import MAKERS, SPEC, edited, good, weights_only  # noqa: E402

opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event in ("open", "os.listdir", "os.scandir", "subprocess.Popen"):
        opened.append(str(arguments[0]))


sys.addaudithook(_watch)


@contextlib.contextmanager
def python_opens() -> Iterator[list[str]]:
    """Paths that Python opens meanwhile."""
    global opened
    found: list[str] = []
    opened = found
    try:
        yield found
    finally:
        opened = None


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that would do as weights, which nobody must open."""
    path = tmp_path / "secret"
    path.mkdir()
    with h5py.File(path / "weights.h5", "w") as file:
        file["weights"] = np.ones((8, 2), dtype="f4")
    return path / "weights.h5"


def names(file: keras_files.KerasFile) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    return {layer.name: [(n, a.shape) for n, a in layer.tensors] for layer in file.layers}


CONV = [("kernel", (3, 3, 3, 16)), ("bias", (16,))]


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5"])
def test_a_sound_file_gives_its_layers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".weights.h5":
        path.write_bytes(weights_only(good(".keras")))
    else:
        path.write_bytes(good(suffix))
    with python_opens() as paths:
        file = read_keras(path)
    assert set(paths) <= {str(path)}
    assert (file.name, file.by_class) == (path.name, suffix != ".h5")
    assert (file.config is None) == (suffix == ".weights.h5")
    found = names(file)
    if file.by_class:
        first = [(str(i), shape) for i, (_, shape) in enumerate(CONV)]
        assert list(found) == ["conv2d", "conv2d_1", "conv2d_2", "dense", "dense_1"]
        assert found["conv2d"] == first
    else:
        order = ["features_0", "features_3", "features_7", "hidden_1", "head"]
        assert list(found) == order
        assert found["features_0"] == CONV
    assert all(array.dtype == np.float32 for layer in file.layers for _, array in layer.tensors)


def test_layers_are_counted_as_numbers(tmp_path: Path) -> None:
    """conv2d_10 comes after conv2d_9, and variable 10 after 9; HDF5 lists them otherwise."""
    layers = [
        StoredLayer(
            (f"conv2d_{i}" if i else "conv2d",), (("kernel", np.full((1, 1, 1, 1), float(i))),)
        )
        for i in range(12)
    ]
    many = tuple((str(i), np.array([float(i)])) for i in range(11))
    data = keras_files.write_archive(
        [*layers, StoredLayer(("other",), many)], config={}, version="3", note=""
    )
    file = read_stream(io.BytesIO(data), name="x.keras")
    assert [int(layer.tensors[0][1].item()) for layer in file.layers[:12]] == list(range(12))
    assert [array.item() for _, array in file.layers[12].tensors] == list(range(11))


def test_half_and_double_precision_become_single(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    with edited(path) as file:
        for name, kind in (("head", "f2"), ("hidden_1", "f8")):
            place = f"model_weights/{name}/{name}/bias:0"
            values = np.asarray(file[place]).astype(kind)
            del file[place]
            file[place] = values
    read = {layer.name: layer.tensors[1][1] for layer in read_keras(path).layers}
    assert read["head"].dtype == read["hidden_1"].dtype == np.float32


def test_compressed_by_hdf5_itself_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    place = "model_weights/hidden_1/hidden_1/kernel:0"
    with edited(path) as file:
        values = np.asarray(file[place])
        del file[place]
        file.create_dataset(place, data=values, compression="gzip", shuffle=True, fletcher32=True)
    read = {layer.name: layer.tensors[0][1] for layer in read_keras(path).layers}
    assert np.array_equal(read["hidden_1"], values)


def test_long_lists_of_names_are_put_together(tmp_path: Path) -> None:
    """Keras cuts a list of names that is too long for one attribute into several."""
    path = tmp_path / "model.h5"
    with edited(path) as file:
        group = file["model_weights"]
        whole = list(group.attrs["layer_names"])
        del group.attrs["layer_names"]
        group.attrs["layer_names0"] = np.array([n.encode() for n in whole[:4]])  # of fixed length
        group.attrs["layer_names1"] = whole[4:]
    assert (
        names(read_keras(path)).keys()
        == names(read_stream(io.BytesIO(good(".h5")), name="x")).keys()
    )


def test_names_are_only_names(tmp_path: Path) -> None:
    """A layer may be called anything; what is shown of it cannot change a terminal."""
    name = "../\x1b[31m\u202eevil"
    layer = StoredLayer(("x",), (("kernel", np.zeros((2, 2), dtype=np.float32)),))
    data = keras_files.write_archive([layer], config={}, version="3", note="")
    buffer = io.BytesIO(weights_only(data))
    with h5py.File(buffer, "r+") as file:
        file["layers"].move("x", "\x1b[31m\u202eevil")
    (read,) = read_stream(io.BytesIO(buffer.getvalue()), name=name).layers
    assert read.name.isascii()
    with pytest.raises(WeightsError) as error:
        read_stream(io.BytesIO(b"nothing"), name=name)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("name", MAKERS)
def test_hostile_files_are_refused_and_nothing_else_is_opened(
    name: str, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"file.{name.rpartition('_')[2]}"
    monkeypatch.setattr(keras_files, "MAX_OBJECTS", 2000)  # not to write fifty thousand groups
    MAKERS[name](path, secret)
    before = sorted(p for p in tmp_path.rglob("*"))
    watch = OpenWatch(secret) if sys.platform == "linux" else None
    # What the first use of a library opens is not because of the file.
    read_stream(io.BytesIO(good(".h5")), name="x")
    import_error(tmp_path / "missing.h5", tmp_path)
    tracemalloc.start()
    started = time.monotonic()
    try:
        with python_opens() as paths:
            error = import_error(path, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.exit_code == 4
    assert "\n" not in str(error).strip() or "does not fit" in str(error)
    assert set(paths) <= {str(path)}
    assert sorted(p for p in tmp_path.rglob("*")) == before  # no run, no unpacked member
    assert peak < 200 * 2**20
    assert time.monotonic() - started < 20
    if watch is not None:
        assert watch.count() == 0
        with h5py.File(secret, "r"):  # the watch does see what C code opens
            pass
        assert watch.count() > 0
        watch.close()


def import_error(path: Path, tmp_path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        import_keras(path, model=SPEC, classes=["a", "b"], out=tmp_path / "run")
    return error.value


WORDS = {
    "external_link_h5": "is a link (ExternalLink)",
    "soft_link_loop_h5": "is a link (SoftLink)",
    "hard_link_loop_h5": "under two names",
    "external_storage_h5": "keeps its values in another file",
    "virtual_data_set_h5": "is a virtual data set",
    "shape_bomb_h5": "declares 4398046511104 bytes",
    "deflated_bomb_h5": "declares 67108864 bytes",
    "chunk_bomb_h5": "declares 67108864 bytes",
    "nothing_stored_h5": "stores 0",
    "plugin_filter_h5": "compressed by filter 32000",
    "texts_for_numbers_h5": "other than integers or floats",
    "million_groups_h5": "more than 2000 groups",
    "deep_groups_h5": "nested deeper",
    "integer_weights_h5": "int32",
    "not_finite_h5": "not finite",
    "too_large_for_float32_h5": "not finite",
    "layer_not_there_h5": "lists a layer head",
    "tensor_outside_its_layer_h5": "not in the file",
    "long_names_many_times_h5": "too long",
    "no_layers_h5": "without a Keras model's layers",
    "picture_h5": "neither an HDF5 file",
    "lambda_keras": "is a Lambda, which is code",
    "lambda_h5": "is a Lambda, which is code",
    "class_of_the_author_keras": "mine>Dense",
    "module_of_the_author_keras": "not one of Keras",
    "unknown_layer_keras": "TFOpLambda",
    "get_file_in_config_keras": "of the class get_file",
    "models_in_models_keras": "nested too deeply",
    "traversal_member_keras": "leads out of the archive",
    "absolute_member_keras": "leads out of the archive",
    "backslash_member_keras": "leads out of the archive",
    "two_configs_keras": "twice",
    "two_spellings_keras": "twice",
    "link_member_keras": "a link or encrypted",
    "bomb_member_keras": "declares 16777216 bytes",
    "bomb_beside_keras": "declares 16777216 bytes",
    "no_weights_keras": "holds no model.weights.h5",
    "no_config_keras": "holds no config.json",
    "external_link_inside_keras": "is a link (ExternalLink)",
    "wrong_checksum_keras": "CRC",
}


@pytest.mark.parametrize("name", WORDS)
def test_the_reason_is_the_right_one(
    name: str, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_files, "MAX_OBJECTS", 2000)
    path = tmp_path / f"file.{name.rpartition('_')[2]}"
    MAKERS[name](path, secret)
    assert WORDS[name] in str(import_error(path, tmp_path))


def test_batch_norm_without_statistics_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"norm"]
        group = file.create_group("norm")
        group.attrs["weight_names"] = [b"norm/gamma:0", b"norm/beta:0"]
        group["norm/gamma:0"] = group["norm/beta:0"] = np.ones(16, dtype="f4")
        del group["norm/beta:0"]
        group["norm/beta:0"] = np.ones(16, dtype="f4")
    assert "moving mean and variance" in str(import_error(path, tmp_path))


def test_a_network_that_is_asked_for_is_not_built_before_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note in a file may name a network of gigabytes."""
    path = tmp_path / "model.h5"
    with edited(path) as file:
        network = models.create(SPEC, num_classes=2, weights="none")
        info = ModelInfo(
            model="small_cnn(width=4096)",
            input=network.input,
            class_names=("a", "b"),
            temperature=1.0,
            selected=Selected(epoch=0, metric="imported"),
            weights="",
            num_params=0,
        )
        file.attrs["fieldmark"] = json.dumps(info.to_json())
    create, devices = models.create, []

    def watched(*arguments: Any, **rest: Any) -> models.Network:
        devices.append(str(torch.get_default_device()))
        return create(*arguments, **rest)

    monkeypatch.setattr(models, "create", watched)
    with pytest.raises(WeightsError, match="does not fit the network"):
        import_keras(path, out=tmp_path / "run")
    assert devices == ["meta"]
    with edited(path) as file:
        file.attrs["fieldmark"] = "{}"
    with pytest.raises(WeightsError, match="has format None"):
        import_keras(path, out=tmp_path / "run")


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "is not there" in str(import_error(tmp_path / "no.h5", tmp_path))
    assert "is a folder" in str(import_error(tmp_path, tmp_path))


def test_without_h5py_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.h5").write_bytes(good(".h5"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"fieldmark\[keras\]"):
        read_keras(tmp_path / "model.h5")


def test_the_same_network_gives_the_same_bytes() -> None:
    assert good(".h5") == good(".h5")
    assert good(".keras") == good(".keras")


ARCHIVE, WHOLE = good(".keras", classes=3), good(".h5", classes=3)
WEIGHTS = weights_only(ARCHIVE)


@settings(max_examples=40)
@given(cut=st.integers(0, len(WHOLE) - 1), source=st.sampled_from([ARCHIVE, WHOLE, WEIGHTS]))
def test_truncated_anywhere_is_refused(cut: int, source: bytes) -> None:
    with pytest.raises(WeightsError):
        read_stream(io.BytesIO(source[: cut % len(source)]), name="x")


@settings(max_examples=60)
@given(
    source=st.sampled_from([ARCHIVE, WEIGHTS]),
    changes=st.lists(
        st.tuples(st.integers(0, 2**31), st.binary(min_size=1, max_size=8)), max_size=6
    ),
    near=st.booleans(),
)
def test_changed_anywhere_is_read_or_refused(
    source: bytes, changes: list[tuple[int, bytes]], near: bool
) -> None:
    data = bytearray(source)
    for at, piece in changes:
        at %= 4000 if near else len(data)  # the structure is at the front
        data[at : at + len(piece)] = piece
    with contextlib.suppress(WeightsError):
        read_stream(io.BytesIO(data), name="x")
