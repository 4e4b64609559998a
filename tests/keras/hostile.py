"""Makers of Keras files that must be refused, each from a good file that says otherwise.

Every maker gets the path to write, and the path of a file that nobody must open.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldmark import models
from fieldmark.keras import config as keras_config
from fieldmark.keras import files as keras_files
from fieldmark.keras import graph as keras_graph
from fieldmark.keras import state as keras_state

SPEC, SIZE = "sneaker_cnn(size=32)", 32


def good(suffix: str, *, classes: int = 2) -> bytes:
    """A sound file of a small network: whole, ``.h5`` or ``.keras``."""
    torch.manual_seed(0)
    network = models.create(SPEC, num_classes=classes, weights="none")
    graph = keras_graph.trace(network.module, SIZE)
    legacy = suffix == ".h5"
    write = keras_files.write_legacy if legacy else keras_files.write_archive
    return write(
        keras_state.stored_layers(graph, network.module.state_dict(), by_class=not legacy),
        config=keras_config.write_config(graph, model="small", legacy=legacy),
        version="3.0.0",
        note="",
    )


def weights_only(source: bytes) -> bytes:
    """The ``.weights.h5`` inside a ``.keras`` file."""
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        return archive.read("model.weights.h5")


def h5py() -> Any:
    import h5py

    return h5py


def edited(path: Path) -> Any:
    """A good whole-model ``.h5`` file, open for changes."""
    path.write_bytes(good(".h5"))
    return h5py().File(path, "r+")


KERNEL = "model_weights/head/head/kernel:0"
MAKERS: dict[str, Callable[[Path, Path], None]] = {}


def maker(function: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    MAKERS[function.__name__] = function
    return function


# --- HDF5 -----------------------------------------------------------------------------------------


@maker
def external_link_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        del file[KERNEL]
        file[KERNEL] = h5py().ExternalLink(str(secret), "/weights")


@maker
def unused_external_link_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["model_weights/aside"] = h5py().ExternalLink(str(secret), "/")


@maker
def soft_link_loop_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["a"] = h5py().SoftLink("/b")
        file["b"] = h5py().SoftLink("/a")


@maker
def hard_link_loop_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["model_weights/again"] = file["model_weights"]


@maker
def root_in_itself_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["root"] = file["/"]


@maker
def tensor_under_two_names_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["model_weights/copy"] = file[KERNEL]


@maker
def external_storage_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        shape = file[KERNEL].shape
        del file[KERNEL]
        size = int(np.prod(shape)) * 4
        file.create_dataset(KERNEL, shape, "f4", external=[(str(secret), 0, size)])


@maker
def virtual_data_set_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        shape = file[KERNEL].shape
        del file[KERNEL]
        layout = h5py().VirtualLayout(shape=shape, dtype="f4")
        layout[:] = h5py().VirtualSource(str(secret), "weights", shape=shape)
        file.create_virtual_dataset(KERNEL, layout)


@maker
def shape_bomb_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        del file[KERNEL]
        file.create_dataset(KERNEL, (2**40,), "f4", chunks=(2**16,), compression="gzip")
        file[KERNEL][0] = 1.0


@maker
def deflated_bomb_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        del file[KERNEL]
        zeros = np.zeros(2**24, dtype="f4")
        file.create_dataset(KERNEL, data=zeros, chunks=(2**24,), compression="gzip")


@maker
def chunk_bomb_h5(path: Path, secret: Path) -> None:
    """One value, in a chunk of 64 MiB that is stored in 64 KiB."""
    with edited(path) as file:
        del file[KERNEL]
        file.create_dataset(
            KERNEL, data=[1.0], maxshape=(None,), chunks=(2**23,), compression="gzip"
        )


@maker
def nothing_stored_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        shape = file[KERNEL].shape
        del file[KERNEL]
        file.create_dataset(KERNEL, shape, "f4")


@maker
def plugin_filter_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        del file[KERNEL]
        file.create_dataset(KERNEL, data=np.zeros((8, 2), dtype="f4"), compression="lzf")


@maker
def texts_for_numbers_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        del file[KERNEL]
        file.create_dataset(KERNEL, data=[b"a" * 10, b"b"], dtype=h5py().string_dtype())


@maker
def references_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file.create_dataset("aside", data=[file.ref], dtype=h5py().ref_dtype)


@maker
def records_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["aside"] = np.zeros(3, dtype=[("a", "f4"), ("b", "i4")])


@maker
def named_type_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["aside"] = np.dtype("f4")


@maker
def million_groups_h5(path: Path, secret: Path) -> None:
    """So many that going through them would take minutes; made by one link each to a root."""
    with edited(path) as file:
        group = file.create_group("model_weights/many")
        for number in range(keras_files.MAX_OBJECTS):
            group.id.links.create_soft(str(number).encode(), b"/")


@maker
def deep_groups_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file.create_group("/".join("d" * 200))


@maker
def integer_weights_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        values = np.ones(file[KERNEL].shape, dtype="i4")
        del file[KERNEL]
        file[KERNEL] = values


@maker
def not_finite_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file[KERNEL][0, 0] = np.nan


@maker
def too_large_for_float32_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        values = np.full(file[KERNEL].shape, 1e300)
        del file[KERNEL]
        file[KERNEL] = values


@maker
def layer_not_there_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        del file["model_weights/head"]


@maker
def tensor_outside_its_layer_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["model_weights/head"].attrs["weight_names"] = [b"../hidden_1/hidden_1/kernel:0"]


@maker
def names_that_are_numbers_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["model_weights"].attrs["layer_names"] = np.arange(5)


@maker
def long_names_many_times_h5(path: Path, secret: Path) -> None:
    """3000 names of 4 MiB each, which is one text of 4 MiB in the file, pointed to 3000 times."""
    with edited(path) as file:
        file["model_weights"].attrs["layer_names"] = [b"%08d" % i for i in range(3000)]
        file["model_weights"].attrs["long"] = "x" * 2**22


@maker
def names_as_one_text_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file["model_weights"].attrs["layer_names"] = "head"


@maker
def config_is_no_json_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        file.attrs["model_config"] = "{'class_name': __import__('os')}"


@maker
def no_layers_h5(path: Path, secret: Path) -> None:
    with h5py().File(path, "w") as file:
        file["a/b"] = np.zeros(3, dtype="f4")


@maker
def empty_h5(path: Path, secret: Path) -> None:
    path.write_bytes(b"")


@maker
def picture_h5(path: Path, secret: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


@maker
def truncated_h5(path: Path, secret: Path) -> None:
    path.write_bytes(good(".h5")[:-2000])


@maker
def zero_tail_h5(path: Path, secret: Path) -> None:
    data = good(".h5")
    path.write_bytes(data[: len(data) // 4] + bytes(len(data) - len(data) // 4))


# --- Archives -------------------------------------------------------------------------------------


def members(source: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def with_config(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    parts = members(good(".keras"))
    config = json.loads(parts["config.json"])
    change(config)
    pack(path, {**parts, "config.json": json.dumps(config).encode()})


def layer(config: dict[str, Any], class_name: str) -> dict[str, Any]:
    layers: list[dict[str, Any]] = config["config"]["layers"]
    return next(entry for entry in layers if entry["class_name"] == class_name)


@maker
def lambda_keras(path: Path, secret: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        entry = layer(config, "Activation")
        entry["class_name"] = "Lambda"
        code = {"class_name": "__lambda__", "config": {"code": "4wEAAAAA", "defaults": None}}
        entry["config"] = {"name": "evil", "function": code}

    with_config(path, change)


@maker
def lambda_h5(path: Path, secret: Path) -> None:
    with edited(path) as file:
        config = json.loads(file.attrs["model_config"])
        layer(config, "Activation")["class_name"] = "Lambda"
        file.attrs["model_config"] = json.dumps(config)


@maker
def class_of_the_author_keras(path: Path, secret: Path) -> None:
    with_config(path, lambda c: layer(c, "Dense").update(registered_name="mine>Dense"))


@maker
def module_of_the_author_keras(path: Path, secret: Path) -> None:
    with_config(path, lambda c: layer(c, "Dense").update(module="os"))


@maker
def unknown_layer_keras(path: Path, secret: Path) -> None:
    with_config(path, lambda c: layer(c, "Flatten").update(class_name="TFOpLambda"))


@maker
def get_file_in_config_keras(path: Path, secret: Path) -> None:
    """A call in place of the model: what deserialising by name would run."""

    def change(config: dict[str, Any]) -> None:
        config.update(module="keras.utils", class_name="get_file")
        config["config"] = {"origin": secret.as_uri(), "fname": "x"}

    with_config(path, change)


@maker
def nested_config_keras(path: Path, secret: Path) -> None:
    parts = members(good(".keras"))
    pack(path, {**parts, "config.json": b'{"config":' * 100_000})


@maker
def models_in_models_keras(path: Path, secret: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        inner = json.dumps(config)
        for _ in range(40):
            config["config"] = {"layers": [json.loads(inner)], "name": "m"}
            config["class_name"] = "Sequential"
            inner = json.dumps(config)

    with_config(path, change)


@maker
def layer_before_itself_keras(path: Path, secret: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        entry = layer(config, "Dense")
        entry["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = entry["name"]

    with_config(path, change)


@maker
def huge_window_keras(path: Path, secret: Path) -> None:
    with_config(path, lambda c: layer(c, "Conv2D")["config"].update(kernel_size=[10**12, 3]))


@maker
def no_number_keras(path: Path, secret: Path) -> None:
    parts = members(good(".keras"))
    config = parts["config.json"].replace(b'"units": 128', b'"units": NaN')
    assert config != parts["config.json"]
    pack(path, {**parts, "config.json": config})


@maker
def traversal_member_keras(path: Path, secret: Path) -> None:
    pack(path, {**members(good(".keras")), "assets/../../../evil": b"x"})


@maker
def absolute_member_keras(path: Path, secret: Path) -> None:
    pack(path, {**members(good(".keras")), "/tmp/evil": b"x"})


@maker
def backslash_member_keras(path: Path, secret: Path) -> None:
    pack(path, {**members(good(".keras")), "..\\evil": b"x"})


@maker
def two_configs_keras(path: Path, secret: Path) -> None:
    pack(path, members(good(".keras")))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("config.json", "{}")


@maker
def two_spellings_keras(path: Path, secret: Path) -> None:
    pack(path, {**members(good(".keras")), "Config.json": b"{}"})


@maker
def link_member_keras(path: Path, secret: Path) -> None:
    parts = members(good(".keras"))
    del parts["model.weights.h5"]
    pack(path, parts)
    info = zipfile.ZipInfo("model.weights.h5")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, str(secret))


@maker
def bomb_member_keras(path: Path, secret: Path) -> None:
    parts = members(good(".keras"))
    pack(path, {**parts, "model.weights.h5": bytes(2**24)}, zipfile.ZIP_DEFLATED)


@maker
def bomb_beside_keras(path: Path, secret: Path) -> None:
    pack(path, {**members(good(".keras")), "assets/x": bytes(2**24)}, zipfile.ZIP_DEFLATED)


@maker
def unusual_compression_keras(path: Path, secret: Path) -> None:
    pack(path, members(good(".keras")), zipfile.ZIP_BZIP2)


@maker
def no_weights_keras(path: Path, secret: Path) -> None:
    parts = members(good(".keras"))
    del parts["model.weights.h5"]
    pack(path, parts)


@maker
def no_config_keras(path: Path, secret: Path) -> None:
    parts = members(good(".keras"))
    del parts["config.json"]
    pack(path, parts)


@maker
def external_link_inside_keras(path: Path, secret: Path) -> None:
    parts = members(good(".keras"))
    weights = io.BytesIO(parts["model.weights.h5"])
    with h5py().File(weights, "r+") as file:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = h5py().ExternalLink(str(secret), "/weights")
    pack(path, {**parts, "model.weights.h5": weights.getvalue()})


@maker
def wrong_checksum_keras(path: Path, secret: Path) -> None:
    data = bytearray(good(".keras"))
    at = data.index(b"\x89HDF") + 5000
    data[at] ^= 0xFF
    path.write_bytes(data)


@maker
def truncated_keras(path: Path, secret: Path) -> None:
    path.write_bytes(good(".keras")[:-200])
