"""A Keras file's tensors under the names of our network, and our tensors under Keras's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fieldmark.errors import WeightsError
from fieldmark.keras import config as keras_config
from fieldmark.keras import graph as keras_graph
from fieldmark.keras.config import Description
from fieldmark.keras.files import KerasFile, StoredLayer, read_keras
from fieldmark.keras.graph import Graph, Layer, MismatchError

SUFFIXES = (".h5", ".hdf5", ".keras")


@dataclass(frozen=True)
class KerasState:
    """The tensors of a file for one of our networks."""

    state: dict[str, torch.Tensor]
    """State dict with our names and layout, without the counters of batch norm."""
    description: Description | None
    """The file's description of its network; None for weights alone."""
    ordered: bool
    """Whether layers were paired by their order, as the file does not say how they connect."""


def read_state(path: Path, module: nn.Module, *, size: int, bgr: bool) -> dict[str, torch.Tensor]:
    """Read the tensors of a Keras file for a network that is to be trained further.

    Those of the head are left out if the file has another head, or none.

    Args:
        path: The file.
        module: The network.
        size: Height and width of its input.
        bgr: Whether the file's network takes blue first (Caffe's weights do).

    Raises:
        WeightsError: if the file cannot be used or does not fit.
        MissingExtraError: if h5py is not installed.
    """
    file, graph = read_keras(path), keras_graph.trace(module, size)
    try:
        found = keras_state(file, graph, size=size).state
    except MismatchError as whole:
        try:
            found = keras_state(file, keras_graph.without_head(graph), size=size, head=False).state
        except MismatchError:
            raise whole from None
    return turn_channels(found, graph) if bgr else found


def keras_state(file: KerasFile, graph: Graph, *, size: int, head: bool = True) -> KerasState:
    """Give a file's tensors the names of our network.

    Args:
        file: The file that was read.
        graph: Our network, traced.
        size: Height and width of its input.
        head: False for a graph without its head; then the file's head is left out, too.

    Raises:
        MismatchError: with the first differences, if the file is of another network.
        WeightsError: if its description or a layer cannot be used.
    """
    stored = {layer.path: layer for layer in file.layers}
    pairs: list[tuple[Layer, StoredLayer]] = []
    description = None
    if file.config is None:
        theirs = [_layer(layer, file.name) for layer in file.layers]
        if not head:
            theirs = _headless(theirs, graph)
        for own, other in keras_graph.in_order(graph, theirs, name=file.name):
            pairs.append((own, stored[other.keys]))
    else:

        def find(path: tuple[str, ...]) -> StoredLayer | None:
            return stored.get(path) or stored.get(path[:1])

        description = keras_config.read_config(
            file.config, find, size=size, by_class=file.by_class, name=file.name
        )
        other_graph = description.graph
        if not head:
            other_graph = keras_graph.without_head(other_graph)
        for i, j in keras_graph.match(graph, other_graph, name=file.name).items():
            layer = find(other_graph[j].keys)
            if layer is None:
                raise WeightsError(
                    f"{file.name} describes a layer {other_graph[j].name} and has no weights for it"
                )
            pairs.append((graph[i], layer))
    state: dict[str, torch.Tensor] = {}
    for own, layer in pairs:
        state |= _tensors(own, layer, file.name)
    return KerasState(state, description, ordered=file.config is None)


def _layer(layer: StoredLayer, name: str) -> Layer:
    """Find the kind of layer that tensors of these shapes belong to.

    Raises:
        WeightsError: if it is batch norm without its statistics.
    """
    shapes = tuple(array.shape for _, array in layer.tensors)
    first = layer.tensors[0][0]
    kind = "other"
    if len(shapes) <= 2 and shapes[1:] in ((), (shapes[0][-1:],)) and "depthwise" not in first:
        kind = {4: "conv", 2: "dense"}.get(len(shapes[0]), "other")
    elif len(shapes) == 4 and len(set(shapes)) == 1 and len(shapes[0]) == 1:
        kind = "norm"
    elif len(shapes) == 3 and len(shapes[0]) == 3 and shapes[2] == ():
        kind, shapes = "centre", shapes[:1]
    if len(shapes) == 2 and len(shapes[0]) == 1:
        raise WeightsError(
            f"{name}: layer {layer.name} has two vectors, as batch norm has them without its "
            "moving mean and variance; predictions need those. Save all weights of the model"
        )
    return Layer(layer.name, kind, (), (), (), shapes, layer.path)


def _headless(theirs: list[Layer], graph: Graph) -> list[Layer]:
    """Leave out the file's last dense layer if our network without its head has fewer."""
    dense = [layer for layer in theirs if layer.kind == "dense"]
    ours = [layer for layer in graph if layer.kind == "dense"]
    return [t for t in theirs if len(dense) <= len(ours) or t is not dense[-1]]


def _tensors(own: Layer, layer: StoredLayer, name: str) -> dict[str, torch.Tensor]:
    """Return a layer's tensors under our names.

    Raises:
        WeightsError: if the file's tensors are not those that it describes.
    """
    found = [array.shape for _, array in layer.tensors[: len(own.weights)]]
    extra = layer.tensors[len(own.weights) :]
    if tuple(found) != own.weights or (extra and own.kind != "centre"):
        raise WeightsError(
            f"{name}: layer {layer.name} holds tensors of the shapes "
            f"{[array.shape for _, array in layer.tensors]}, where {list(own.weights)} are needed"
        )
    if own.kind == "centre" and not np.all(layer.tensors[1][1] == 1):
        raise WeightsError(f"{name}: layer {layer.name} also divides by a deviation of every pixel")
    return {
        key: keras_graph.to_torch(own.kind, torch.from_numpy(array))
        for key, (_, array) in zip(own.keys, layer.tensors, strict=False)
    }


def turn_channels(state: Mapping[str, torch.Tensor], graph: Graph) -> dict[str, torch.Tensor]:
    """Turn blue-green-red in the first kernel into red-green-blue, or back."""
    first = next(layer for layer in graph if layer.kind == "conv")
    if first.weights[0][2] != 3:
        raise AssertionError("the first convolution of every network of ours takes the picture")
    key = first.keys[0]
    return {**state, key: state[key].flip(1).contiguous()}


def stored_layers(
    graph: Graph, state: Mapping[str, torch.Tensor], *, by_class: bool
) -> list[StoredLayer]:
    """Return all layers with their tensors, in the order and layout of a Keras file."""
    slots = keras_config.slots(graph)
    found = []
    for i in keras_graph.keras_order(graph):
        layer = graph[i]
        arrays = [
            keras_graph.to_keras(layer.kind, state[key]).to(torch.float32).numpy()
            for key in layer.keys
        ]
        if layer.kind == "centre":
            arrays += [np.ones_like(arrays[0]), np.zeros((), dtype=np.float32)]
        names = keras_config.variables(layer.kind)
        path = slots[i] if by_class else layer.name
        found.append(StoredLayer((path,), tuple(zip(names, arrays, strict=False))))
    return found
