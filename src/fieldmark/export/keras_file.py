"""A run's network as a Keras model, written only once every tensor reads back the same."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import torch

from fieldmark.errors import ConfigError, WeightsError
from fieldmark.files.json_text import encode_json
from fieldmark.files.writing import write_atomic
from fieldmark.jobs.import_keras import input_of, temperature_of
from fieldmark.keras import config as keras_config
from fieldmark.keras import files as keras_files
from fieldmark.keras import graph as keras_graph
from fieldmark.keras import state as keras_state
from fieldmark.keras.graph import Graph, Layer, options
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Model, ModelInfo

EXPORTS = (".keras", ".h5")


KERAS_VERSION = "3.15.1"
"""Version that exported files are tested with, and name as their writer."""


def export_keras(
    run_path: Path, out: Path, *, allow_plugin_version: bool = False, which: str = "auto"
) -> Path:
    """Write a run's network as a Keras model that takes pixels in 0..255 and gives probabilities.

    The file is read back and every tensor compared before it is put in its place.

    Raises:
        ConfigError: if the file's name does not end in ``.keras`` or ``.h5``.
        WeightsError: if the network has no Keras twin.
        RunError: if the run cannot be used.
        MissingExtraError: if h5py is not installed.
    """
    if out.suffix not in EXPORTS:
        raise ConfigError(f"{out} ends in {out.suffix!r}; {' and '.join(EXPORTS)} are written")
    run = RunDirectory.open(run_path, allow_plugin_version=allow_plugin_version, which=which)
    model = run.load_model()
    info, legacy = model.info, out.suffix == ".h5"
    inner = keras_graph.trace(model.module, info.input.size)
    graph = _whole(inner, info)
    layers = keras_state.stored_layers(graph, model.module.state_dict(), by_class=not legacy)
    write = keras_files.write_legacy if legacy else keras_files.write_archive
    data = write(
        layers,
        config=keras_config.write_config(graph, model="fieldmark", legacy=legacy),
        version=KERAS_VERSION,
        note=encode_json(info.to_json(), indent=None).decode(),
    )
    _verify(data, model, inner, name=out.name)
    write_atomic(out, data)
    return out


def _whole(inner: Graph, info: ModelInfo) -> Graph:
    """Put the scaling of pixels before a network and softmax behind it, as layers of Keras."""
    scale = tuple(1 / (std * 255) for std in info.input.std)
    offset = tuple(-mean / std for mean, std in zip(info.input.mean, info.input.std, strict=True))
    layers = [inner[0]]

    def add(name: str, kind: str, shape: tuple[int, ...], **chosen: object) -> None:
        layers.append(Layer(name, kind, (len(layers) - 1,), shape, options(**chosen)))

    add("pixels", "scale", inner[0].shape, scale=scale, offset=offset)
    for layer in inner[1:]:
        inputs = tuple(i + 1 for i in layer.inputs)
        layers.append(dataclasses.replace(layer, inputs=inputs))
    outputs, classes = inner[-1].shape[-1], len(info.class_names)
    if outputs > classes:  # outputs without a class are not used in a prediction
        add("column", "reshape", (outputs, 1), target=(outputs, 1))
        add("classes", "crop", (classes, 1), after=outputs - classes)
        add("logits", "flatten", (classes,))
    if info.temperature != 1:
        add("temperature", "scale", (classes,), scale=(1 / info.temperature,), offset=(0.0,))
    add("probabilities", "softmax", (classes,))
    return _named_once(layers)


def _named_once(layers: list[Layer]) -> Graph:
    """Give every layer a unique name."""
    seen: set[str] = set()
    found = []
    for layer in layers:
        name = layer.name
        while name in seen:
            name += "_"
        seen.add(name)
        found.append(dataclasses.replace(layer, name=name))
    return tuple(found)


def _verify(data: bytes, model: Model, graph: Graph, *, name: str) -> None:
    """Read back what is about to be written, and compare every tensor.

    Raises:
        WeightsError: if one differs.
    """
    file = keras_files.read_stream(io.BytesIO(data), name=name)
    found = keras_state.keras_state(file, graph, size=model.info.input.size)
    own = model.module.state_dict()
    wanted = {key for key in own if not key.endswith("num_batches_tracked")}
    description = found.description
    same = (
        found.state.keys() == wanted
        and all(torch.equal(found.state[key], own[key].cpu()) for key in wanted)
        and description is not None
        and description.outputs == len(model.info.class_names)
        and temperature_of(description.temperature, model.info) == model.info.temperature
        and input_of(model.info.input, description.scaling, "auto", model.info, name)[0]
        == model.info.input
        and json.loads(file.note) == json.loads(encode_json(model.info.to_json()))
    )
    if not same:
        raise WeightsError(
            f"{name} does not read back as what was to be written; nothing was written. "
            "This is a fault of fieldmark: please report it"
        )
