"""Reads Keras's description of a network (``config.json``, ``model_config``) into a graph, and
writes one from a graph.

A description is data in a JSON object; no object is built from it, and only layers listed here are
accepted. Layers at the front that scale pixels, and layers at the end that scale the logits or
apply softmax, are not part of the graph: a run holds them in its input description and temperature.

Source: keras 3.15 (``functional.py``, ``sequential.py``, the layers' ``get_config``), which reads
the descriptions of Keras 2, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldmark.errors import WeightsError
from fieldmark.keras.files import StoredLayer
from fieldmark.keras.graph import Graph, Layer, Shape, keras_order, options, same_padding, window
from fieldmark.names import shown
from fieldmark.seeding import F64

Config = dict[str, Any]
Stored = Callable[[tuple[str, ...]], StoredLayer | None]
"""Function that returns a layer's tensors for one of its paths."""

_MODELS = {"Sequential", "Functional", "Model"}
_MAX_NESTING = 16


@dataclass(frozen=True)
class Scaling:
    """The scaling that layers at the front apply to pixels in 0..255: pixel * scale + offset.

    Shape:
        scale, offset: [3]
    """

    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


@dataclass(frozen=True)
class Description:
    """A network as its file describes it."""

    graph: Graph
    """Layers from the scaled picture to the logits."""
    scaling: Scaling | None
    """Scaling at the front; None if no layer there scales pixels."""
    temperature: float
    """Number by which a layer at the end divides the logits."""
    outputs: int
    """Number of the network's outputs that are kept: a layer at the end may leave out the rest."""


def input_size(config: Config, *, name: str) -> int:
    """Return height and width of the input in the description; 0 where it leaves them open.

    Raises:
        WeightsError: if the input is not a square picture in colour.
    """
    return _Reader(name, lambda path: None, by_class=False).size_of(config)


def read_config(
    config: Config, stored: Stored, *, size: int, by_class: bool, name: str
) -> Description:
    """Read a description.

    Args:
        config: ``class_name`` and ``config`` of the model.
        stored: Finds the tensors of layers whose function they decide.
        size: Height and width of the input, where the description leaves them open.
        by_class: Whether the file's paths are numbered class names, or else the layers' own names.
        name: Name of the file, for messages.

    Raises:
        WeightsError: if it is damaged, or has a layer that is not known here.
    """
    reader = _Reader(name, stored, by_class=by_class)
    try:
        return reader.description(config, size)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{name}: the network's description is damaged "
            f"({type(error).__name__}: {shown(str(error))[:100]})"
        ) from None


class _Reader:
    """Goes through a model's layers, and those of models in it, into one graph."""

    def __init__(self, name: str, stored: Stored, *, by_class: bool) -> None:
        self.name = name
        self.stored = stored
        self.by_class = by_class
        self.layers: list[Layer] = []
        self.front = {0: (np.ones(3), np.zeros(3))}
        """Places in the graph whose value is the scaled picture, with that scaling."""

    def fail(self, text: str) -> WeightsError:
        """Make an error that names the file."""
        return WeightsError(f"{self.name}: {text}")

    def size_of(self, config: Config) -> int:
        """Return the input's height and width, or 0."""
        self._check_model(config)
        try:
            shape = _input_shape(config)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise self.fail("the network's description has no input") from None
        if shape is None:
            return 0
        if len(shape) != 3 or shape[2] != 3:
            raise self.fail(f"the network's input is {shape}; (height, width, 3) is accepted")
        height, width, _ = shape
        if height != width or not (height is None or 1 <= height <= 4096):
            raise self.fail(f"the network's input is {height}x{width}; only squares are accepted")
        return height or 0

    def description(self, config: Config, size: int) -> Description:
        """Read the whole model."""
        side = self.size_of(config) or size
        self.layers = [Layer("picture", "input", (), (side, side, 3))]
        last = self._model(config, (0,), path=(), nesting=0)
        last, temperature, outputs = self._end(last)
        graph, start = self._begin(last)
        scale, offset = self.front[start]
        scaled = start != 0 or not (np.all(scale == 1) and np.all(offset == 0))
        scaling = Scaling(_three(scale), _three(offset)) if scaled else None
        return Description(graph, scaling, temperature, outputs)

    def _check_model(self, config: Config) -> None:
        kind = str(config.get("class_name"))
        if kind not in _MODELS:
            raise self.fail(
                f"the model is of the class {shown(kind)}; sequential and functional ones are read"
            )
        _own_class(config, self.fail)

    def _model(
        self, config: Config, inputs: tuple[int, ...], *, path: tuple[str, ...], nesting: int
    ) -> int:
        """Add the layers of a model; returns the place of its output."""
        self._check_model(config)
        kind, inside = config["class_name"], config["config"]
        if nesting > _MAX_NESTING:
            raise self.fail("models are nested too deeply")
        layers = inside if isinstance(inside, list) else inside["layers"]
        counts: dict[str, int] = {}
        places: dict[str, int] = {}
        last = inputs[0]
        for layer in layers:
            name = str(layer["config"].get("name", layer.get("name", "")))
            slot = _slot(str(layer["class_name"]), counts)
            if layer["class_name"] == "InputLayer":
                places[name] = inputs[0]
                continue
            if kind == "Sequential":
                sources: tuple[int, ...] = (last,)
            else:
                sources = tuple(places[source] for source in self._sources(layer, name))
            here = (*path, slot) if self.by_class else (*path[:1], name)
            if layer["class_name"] in _MODELS:
                if len(sources) != 1:
                    raise self.fail(f"the model {shown(name)} takes {len(sources)} inputs")
                last = self._model(layer, sources, path=here, nesting=nesting + 1)
            else:
                last = self._layer(layer, name, sources, here)
            if name in places:
                raise self.fail(f"two layers are called {shown(name)}")
            places[name] = last
        if kind != "Sequential":
            outputs = _references(inside["output_layers"])
            if len(outputs) != 1 or len(_references(inside["input_layers"])) != 1:
                raise self.fail("the network has several inputs or outputs; one of each is read")
            last = places[outputs[0]]
        return last

    def _sources(self, layer: Config, name: str) -> list[str]:
        nodes = layer["inbound_nodes"]
        if len(nodes) != 1:
            raise self.fail(f"layer {shown(name)} is used {len(nodes)} times; once is read")
        found = _tensors(nodes[0]) if isinstance(nodes[0], dict) else _references(nodes[0])
        if not found:
            raise self.fail(f"layer {shown(name)} has no input")
        return found

    def _layer(
        self, layer: Config, name: str, inputs: tuple[int, ...], path: tuple[str, ...]
    ) -> int:
        """Add one layer, and its activation as another; returns the place of the output."""
        _own_class(layer, self.fail)
        kind, config = str(layer["class_name"]), layer["config"]
        read = _CLASSES.get(kind)
        if kind == "Lambda":
            raise self.fail(
                f"layer {shown(name)} is a Lambda, which is code in the file; it is not run. "
                "Save the model without it (what it does to pixels: --preprocess)"
            )
        if read is None:
            raise self.fail(
                f"layer {shown(name)} is of the class {shown(kind)}, which none of our networks "
                f"has (read are {', '.join(sorted(_CLASSES))})"
            )
        if config.get("data_format", "channels_last") not in (None, "channels_last"):
            raise self.fail(f"layer {shown(name)} has channels first; channels last is read")
        if kind in ("Rescaling", "Normalization") and len(inputs) == 1 and inputs[0] in self.front:
            place = self._scale(kind, name, config, inputs[0], path)
            if place is not None:
                return place
        shapes = [self.layers[i].shape for i in inputs]
        try:
            made = read(config, shapes)
        except ValueError as error:
            raise self.fail(f"layer {shown(name)} ({kind}): {error}") from None
        if made is None:  # it does nothing to a prediction
            return inputs[0]
        label, shape, chosen, weights = made
        self.layers.append(
            Layer(name, label, inputs, shape, chosen, weights, path if weights else ())
        )
        activation = _activation(config.get("activation")) if kind != "Activation" else "linear"
        if activation != "linear":
            place = len(self.layers) - 1
            label, chosen = _activation_layer(activation)
            self.layers.append(Layer(f"{name}: {activation}", label, (place,), shape, chosen))
        return len(self.layers) - 1

    def _scale(
        self, kind: str, name: str, config: Config, source: int, path: tuple[str, ...]
    ) -> int | None:
        """Combine a scaling layer at the front with those before; None if not by channel."""
        scale, offset = self.front[source]
        if kind == "Rescaling":
            factor, term = _channels(config["scale"]), _channels(config.get("offset", 0.0))
        else:
            mean, variance = self._normalization(name, config, path)
            if mean.shape == self.layers[source].shape and np.all(variance == 1):
                shape = self.layers[source].shape
                self.layers.append(Layer(name, "centre", (source,), shape, (), (shape,), path))
                return len(self.layers) - 1
            if mean.size not in (1, 3) or config.get("invert"):
                raise self.fail(
                    f"layer {shown(name)} scales every pixel on its own; only a mean by pixel "
                    "(variance 1), or mean and variance by channel, are read"
                )
            deviation = np.maximum(np.sqrt(_channels(variance)), 1e-7)
            factor, term = 1 / deviation, -_channels(mean) / deviation
        picture = self.layers[source]
        self.layers.append(Layer(name, "input", (), picture.shape))
        self.front[len(self.layers) - 1] = (scale * factor, offset * factor + term)
        return len(self.layers) - 1

    def _normalization(self, name: str, config: Config, path: tuple[str, ...]) -> tuple[F64, F64]:
        if config.get("mean") is not None:
            given = config["mean"], config["variance"]
        else:
            tensors = self.stored(path)
            if tensors is None or len(tensors.tensors) < 2:
                raise self.fail(f"layer {shown(name)} has no mean and variance in the file")
            given = tensors.tensors[0][1], tensors.tensors[1][1]
        mean, variance = (np.asarray(value, dtype=np.float64) for value in given)
        if mean.shape != variance.shape:
            raise self.fail(f"layer {shown(name)} has a mean and a variance of different shapes")
        return mean, variance

    def _end(self, last: int) -> tuple[int, float, int]:
        """Go back from the output to the logits; return their place, temperature and number."""
        layer = self.layers[last]
        if layer.kind == "softmax":
            last = layer.inputs[0]
        elif layer.kind == "activation":
            raise self.fail(
                f"the network ends in {layer.option('function')}; our networks end in logits or "
                "softmax, one output a class (a sigmoid answers for each class on its own)"
            )
        temperature = 1.0
        layer = self.layers[last]
        if layer.kind == "scale":
            factor, offset = layer.option("scale"), layer.option("offset")
            if len(factor) != 1 or any(offset) or not factor[0] > 0:
                raise self.fail(f"layer {shown(layer.name)} does more than scale the logits")
            temperature, last = 1 / factor[0], layer.inputs[0]
        outputs = self.layers[last].shape[-1]
        if (
            self.layers[last].kind == "flatten"
            and self.layers[self.layers[last].inputs[0]].kind == "crop"
        ):
            last = self.layers[self.layers[last].inputs[0]].inputs[0]
        return last, temperature, outputs

    def _begin(self, last: int) -> tuple[Graph, int]:
        """Cut the graph to the layers that lead to a place; return the place of its picture."""
        used: set[int] = set()
        todo = [last]
        while todo:
            i = todo.pop()
            if i not in used:
                used.add(i)
                todo += self.layers[i].inputs
        starts = [i for i in used if self.layers[i].kind == "input"]
        if len(starts) != 1:
            raise self.fail("the network's layers take the picture both scaled and not")
        kept = sorted(used)
        place = {i: k for k, i in enumerate(kept)}
        graph = tuple(
            Layer(
                *(layer.name, layer.kind, tuple(place[j] for j in layer.inputs), layer.shape),
                *(layer.options, layer.weights, layer.keys),
            )
            for layer in (self.layers[i] for i in kept)
        )
        return graph, starts[0]


def _own_class(layer: Config, fail: Callable[[str], WeightsError]) -> None:
    """Refuse classes that are not Keras's own, whatever their names are."""
    registered = str(layer.get("registered_name") or "")
    module = str(layer.get("module") or "keras")
    if ">" in registered or module.partition(".")[0] not in ("keras", "tensorflow", "tf_keras"):
        raise fail(
            f"the class {shown(str(layer['class_name']))} is not one of Keras "
            f"({shown(registered or module)[:60]}); what it computes is not known here"
        )


def _input_shape(config: Config) -> tuple[int | None, ...] | None:
    """Return (height, width, channels) of a model's input; None if it is not given."""
    inside = config["config"]
    layers = inside if isinstance(inside, list) else inside["layers"]
    given = None if isinstance(inside, list) else inside.get("build_input_shape")
    for layer in layers[:1]:
        own = layer["config"]
        given = own.get("batch_shape") or own.get("batch_input_shape") or given
        if layer["class_name"] in _MODELS and given is None:
            return _input_shape(layer)
    if given is None:
        return None
    return tuple(None if side is None else int(side) for side in given[1:])


def _references(value: Any) -> list[str]:
    """Return the layers' names in ``["name", 0, 0]``, or in a list of those."""
    if value and isinstance(value[0], str):
        value = [value]
    return [str(entry[0]) for entry in value]


def _tensors(value: Any) -> list[str]:
    """Return the layers' names in the arguments of a call, as Keras 3 writes them."""
    found: list[str] = []
    todo = [value.get("kwargs"), value["args"]]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            if item.get("class_name") == "__keras_tensor__":
                found.append(str(item["config"]["keras_history"][0]))
            else:
                todo += reversed(list(item.values()))
        elif isinstance(item, list):
            todo += reversed(item)
    return found


def _slot(class_name: str, counts: dict[str, int]) -> str:
    """Name of a layer's group in the new format: its class in small letters, and a number."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    number = counts.get(name, 0)
    counts[name] = number + 1
    return f"{name}_{number}" if number else name


def _channels(value: Any) -> F64:
    """Read a number, or one for each channel."""
    array = np.asarray(value, dtype=np.float64).reshape(-1)
    if array.size not in (1, 3) or not np.isfinite(array).all():
        raise ValueError("a scale is neither a number nor three")
    return np.broadcast_to(array, (3,))


def _three(values: F64) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


# --- Classes of layers, read ----------------------------------------------------------------------

Made = tuple[str, Shape, tuple[tuple[str, Any], ...], tuple[Shape, ...]] | None
"""Kind, shape of the output, options, shapes of the tensors; None for layers that only training
uses."""


def _two(value: Any) -> Shape:
    first, second = (value, value) if isinstance(value, int) else value
    if not (1 <= int(first) <= 4096 and 1 <= int(second) <= 4096):
        raise ValueError(f"{value} is no size of a window")
    return int(first), int(second)


def _pads(config: Config, shape: Shape, kernel: Shape, stride: Shape) -> Shape:
    if config["padding"] not in ("valid", "same"):
        raise ValueError(f"padding {config['padding']!r}")
    return same_padding(shape, kernel, stride) if config["padding"] == "same" else (0, 0, 0, 0)


def _read_conv(config: Config, shapes: list[Shape]) -> Made:
    (shape,) = shapes
    kernel, stride = _two(config["kernel_size"]), _two(config.get("strides", 1))
    if _two(config.get("dilation_rate", 1)) != (1, 1) or config.get("groups", 1) != 1:
        raise ValueError("dilated or grouped convolutions are not read")
    pads, filters = _pads(config, shape, kernel, stride), int(config["filters"])
    weights: tuple[Shape, ...] = ((*kernel, shape[2], filters),)
    if config.get("use_bias", True):
        weights = (*weights, (filters,))
    chosen = options(kernel=kernel, stride=stride, pads=pads)
    return "conv", (*window(shape, kernel, stride, pads), filters), chosen, weights


def _read_dense(config: Config, shapes: list[Shape]) -> Made:
    (shape,) = shapes
    units = int(config["units"])
    weights: tuple[Shape, ...] = ((shape[-1], units),)
    if config.get("use_bias", True):
        weights = (*weights, (units,))
    if len(shape) != 1:
        raise ValueError(f"a dense layer after an output of {len(shape)} axes; flatten it first")
    return "dense", (units,), (), weights


def _read_norm(config: Config, shapes: list[Shape]) -> Made:
    (shape,) = shapes
    axis = config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) else axis
    if axis not in (-1, len(shape)):
        raise ValueError(f"batch norm over axis {axis}; the channels are normalised")
    kept = [config.get("scale", True), config.get("center", True), True, True]
    weights = ((shape[-1],),) * sum(map(bool, kept))
    return "norm", shape, options(epsilon=float(config.get("epsilon", 1e-3))), weights


def _read_pool(kind: str) -> Callable[[Config, list[Shape]], Made]:
    def read(config: Config, shapes: list[Shape]) -> Made:
        (shape,) = shapes
        kernel = _two(config["pool_size"])
        stride = _two(config.get("strides") or kernel)
        pads = _pads(config, shape, kernel, stride)
        chosen = options(kernel=kernel, stride=stride, pads=pads)
        return kind, (*window(shape, kernel, stride, pads), shape[2]), chosen, ()

    return read


def _read_global(kind: str) -> Callable[[Config, list[Shape]], Made]:
    def read(config: Config, shapes: list[Shape]) -> Made:
        (shape,) = shapes
        _, _, channels = shape
        return kind, ((1, 1, channels) if config.get("keepdims") else (channels,)), (), ()

    return read


def _read_pad(config: Config, shapes: list[Shape]) -> Made:
    ((height, width, channels),) = shapes
    given = config["padding"]
    rows, columns = (given, given) if isinstance(given, int) else given
    top, bottom = (rows, rows) if isinstance(rows, int) else rows
    left, right = (columns, columns) if isinstance(columns, int) else columns
    pads = (int(top), int(bottom), int(left), int(right))
    if not all(0 <= pad <= 4096 for pad in pads):
        raise ValueError(f"padding {pads}")
    shape = (height + pads[0] + pads[1], width + pads[2] + pads[3], channels)
    return "pad", shape, options(pads=pads), ()


def _read_add(config: Config, shapes: list[Shape]) -> Made:
    if len(shapes) != 2 or shapes[0] != shapes[1]:
        raise ValueError(f"an addition of {len(shapes)} values; two of one shape are added")
    return "add", shapes[0], (), ()


def _read_concat(config: Config, shapes: list[Shape]) -> Made:
    if config.get("axis", -1) not in (-1, len(shapes[0])):
        raise ValueError("concatenation along another axis than the channels")
    return "concat", (*shapes[0][:-1], sum(shape[-1] for shape in shapes)), (), ()


def _read_flatten(config: Config, shapes: list[Shape]) -> Made:
    (shape,) = shapes
    return "flatten", (math.prod(shape),), (), ()


def _read_relu(config: Config, shapes: list[Shape]) -> Made:
    given = {
        "max_value": config.get("max_value"),
        "negative_slope": config.get("negative_slope") or None,
        "threshold": config.get("threshold") or None,
    }
    special = {key: float(value) for key, value in given.items() if value is not None}
    if special:
        return "activation", shapes[0], options(function="relu", **special), ()
    return "relu", shapes[0], (), ()


def _read_activation(config: Config, shapes: list[Shape]) -> Made:
    activation = _activation(config["activation"])
    if activation == "linear":
        return None
    kind, chosen = _activation_layer(activation)
    return kind, shapes[0], chosen, ()


def _read_softmax(config: Config, shapes: list[Shape]) -> Made:
    if config.get("axis", -1) not in (-1, len(shapes[0])):
        raise ValueError("softmax along another axis than the classes")
    return "softmax", shapes[0], (), ()


def _read_scale(config: Config, shapes: list[Shape]) -> Made:
    def numbers(value: Any) -> tuple[float, ...]:
        array = np.asarray(value, dtype=np.float64).reshape(-1)
        return tuple(map(float, array))

    chosen = options(scale=numbers(config["scale"]), offset=numbers(config.get("offset", 0.0)))
    return "scale", shapes[0], chosen, ()


def _read_reshape(config: Config, shapes: list[Shape]) -> Made:
    target = tuple(int(side) for side in config["target_shape"])
    (shape,) = shapes
    if target.count(-1) == 1:
        known = abs(math.prod(target))
        target = tuple(math.prod(shape) // known if side == -1 else side for side in target)
    return "reshape", target, options(target=target), ()


def _read_crop(config: Config, shapes: list[Shape]) -> Made:
    """Read the cropping with which our exports leave out a network's last outputs."""
    ((length, columns),) = shapes
    given = config["cropping"]
    before, after = (given, given) if isinstance(given, int) else given
    if before or not 0 <= int(after) < length or columns != 1:
        raise ValueError("a cropping that is not at the end")
    return "crop", (length - int(after), 1), options(after=int(after)), ()


def _read_normalization(config: Config, shapes: list[Shape]) -> Made:
    raise ValueError("it is read at the front alone, where it takes the picture")


def _read_nothing(config: Config, shapes: list[Shape]) -> Made:
    return None


_CLASSES: dict[str, Callable[[Config, list[Shape]], Made]] = {
    "Conv2D": _read_conv,
    "Dense": _read_dense,
    "BatchNormalization": _read_norm,
    "MaxPooling2D": _read_pool("max_pool"),
    "AveragePooling2D": _read_pool("avg_pool"),
    "GlobalAveragePooling2D": _read_global("mean"),
    "GlobalMaxPooling2D": _read_global("max"),
    "ZeroPadding2D": _read_pad,
    "Add": _read_add,
    "Concatenate": _read_concat,
    "Flatten": _read_flatten,
    "ReLU": _read_relu,
    "Activation": _read_activation,
    "Softmax": _read_softmax,
    "Rescaling": _read_scale,
    "Normalization": _read_normalization,
    "Reshape": _read_reshape,
    "Cropping1D": _read_crop,
    **dict.fromkeys(
        (
            *("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
            *("ActivityRegularization", "Identity", "RandomFlip", "RandomRotation", "RandomZoom"),
            *("RandomTranslation", "RandomContrast", "RandomBrightness"),
        ),
        _read_nothing,
    ),
}
"""Layers that do not change a prediction; the graph leaves them out."""


def _activation(value: Any) -> str:
    """Return an activation's name, which is given as such or as an object."""
    if isinstance(value, dict):
        config = value.get("config")
        value = config if isinstance(config, str) else value["class_name"]
    name = "linear" if value is None else str(value)
    return {"ReLU": "relu", "Softmax": "softmax"}.get(name, name)


def _activation_layer(name: str) -> tuple[str, tuple[tuple[str, Any], ...]]:
    return (name, ()) if name in ("relu", "softmax") else ("activation", options(function=name))


# --- Writing --------------------------------------------------------------------------------------

_VARIABLES = {
    "conv": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "norm": ("gamma", "beta", "moving_mean", "moving_variance"),
    "centre": ("mean", "variance", "count"),
}


def variables(kind: str) -> tuple[str, ...]:
    """Return the names of a layer's tensors in Keras's order; conv and dense may lack the bias."""
    return _VARIABLES.get(kind, ())


def slots(graph: Graph) -> dict[int, str]:
    """Return for every layer the name of its group in the new format."""
    counts: dict[str, int] = {}
    return {i: _slot(_class_and_config(graph, graph[i])[0], counts) for i in keras_order(graph)}


def write_config(graph: Graph, *, model: str, legacy: bool) -> Config:
    """Write the description of a functional model, as Keras 3 or (``legacy``) Keras 2 does."""
    layers = [_entry(graph, graph[i], legacy=legacy) for i in keras_order(graph)]
    config: Config = {
        "name": model,
        "trainable": True,
        "layers": layers,
        "input_layers": [[graph[0].name, 0, 0]],
        "output_layers": [[graph[-1].name, 0, 0]],
    }
    if legacy:
        return {"class_name": "Functional", "config": config}
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": config,
        "registered_name": "Functional",
        "build_config": {"input_shape": None},
    }


def _entry(graph: Graph, layer: Layer, *, legacy: bool) -> Config:
    kind, own = _class_and_config(graph, layer)
    shapes = [[None, *graph[i].shape] for i in layer.inputs]
    config: Config = {"name": layer.name, "dtype": "float32", **own}
    if layer.kind == "input":
        config["batch_input_shape" if legacy else "batch_shape"] = [None, *layer.shape]
    else:
        config["trainable"] = True
    entry: Config = {"class_name": kind, "config": config, "name": layer.name}
    if legacy:
        calls = [[graph[i].name, 0, 0, {}] for i in layer.inputs]
        if layer.kind == "centre":  # without a module, Keras 3 takes the layer's axes away
            entry |= {"module": "keras.layers", "registered_name": None}
        return {**entry, "inbound_nodes": [calls] if calls else []}
    tensors: list[Config] = [
        {
            "class_name": "__keras_tensor__",
            "config": {"shape": shape, "dtype": "float32", "keras_history": [graph[i].name, 0, 0]},
        }
        for i, shape in zip(layer.inputs, shapes, strict=True)
    ]
    several = layer.kind in ("add", "concat")
    call: Config = {"args": [tensors] if several else tensors, "kwargs": {}}
    nodes = [call] if tensors else []
    entry |= {"module": "keras.layers", "registered_name": None, "inbound_nodes": nodes}
    if layer.weights:
        entry["build_config"] = {"input_shape": shapes[0]}
    return entry


def _class_and_config(graph: Graph, layer: Layer) -> tuple[str, Config]:
    """Return Keras's class for a layer, and its configuration besides the name."""
    fixed: Mapping[str, tuple[str, Config]] = {
        "input": ("InputLayer", {}),
        "relu": ("Activation", {"activation": "relu"}),
        "softmax": ("Activation", {"activation": "softmax"}),
        "dropout": ("Dropout", {"rate": layer.rate}),
        "mean": ("GlobalAveragePooling2D", {}),
        "max": ("GlobalMaxPooling2D", {}),
        "add": ("Add", {}),
        "concat": ("Concatenate", {"axis": -1}),
        "flatten": ("Flatten", {}),
        "centre": ("Normalization", {"axis": [1, 2, 3]}),
    }
    if layer.kind in fixed:
        return fixed[layer.kind]
    if layer.kind == "dense":
        units = layer.weights[0][1]
        return "Dense", {"units": units, "use_bias": len(layer.weights) == 2}
    chosen = dict(layer.options)
    if layer.kind == "norm":
        # Torch's momentum is not kept: in Keras, training goes on with Keras's own.
        return "BatchNormalization", {"axis": -1, "epsilon": chosen["epsilon"]}
    if layer.kind == "pad":
        top, bottom, left, right = chosen["pads"]
        return "ZeroPadding2D", {"padding": [[top, bottom], [left, right]]}
    if layer.kind == "scale":
        return "Rescaling", {"scale": _plain(chosen["scale"]), "offset": _plain(chosen["offset"])}
    if layer.kind == "reshape":
        return "Reshape", {"target_shape": list(chosen["target"])}
    if layer.kind == "crop":
        return "Cropping1D", {"cropping": [0, chosen["after"]]}
    strides, kernel = list(chosen["stride"]), list(chosen["kernel"])
    padding = _padding(graph, layer)
    if layer.kind == "conv":
        return "Conv2D", {
            "filters": layer.weights[0][3],
            "kernel_size": kernel,
            "strides": strides,
            "padding": padding,
            "use_bias": len(layer.weights) == 2,
        }
    name = {"max_pool": "MaxPooling2D", "avg_pool": "AveragePooling2D"}[layer.kind]
    return name, {"pool_size": kernel, "strides": strides, "padding": padding}


def _plain(values: Sequence[float]) -> float | list[float]:
    return list(values) if len(values) > 1 else values[0]


def _padding(graph: Graph, layer: Layer) -> str:
    """Return Keras's word for a layer's padding.

    Raises:
        WeightsError: if Keras has none.
    """
    chosen = dict(layer.options)
    if not any(chosen["pads"]):
        return "valid"
    before = graph[layer.inputs[0]].shape
    if chosen["pads"] == same_padding(before, chosen["kernel"], chosen["stride"]):
        return "same"
    raise WeightsError(
        f"{layer.name} is padded by {chosen['pads']} (top, bottom, left, right), which is neither "
        'of Keras\'s "valid" and "same"'
    )
