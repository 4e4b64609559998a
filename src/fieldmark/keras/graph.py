"""Networks as graphs of Keras's layers: ours are traced, and compared with the graph of a file.

Both are written in the same few kinds of layers. Two graphs are equal if their outputs have the
same signature: a number that stands for a layer's kind, options and the signatures of its inputs.
Names, the order in which layers were made, and layers that only training uses do not count.

Source: the order of a model's layers, from keras 3.15 (``ops/function.py``); Keras 2 has the same.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fieldmark.errors import WeightsError
from fieldmark.networks.layers import FlattenHWC, MeanPicture, SameConv2d, SameMaxPool2d

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One layer of a graph."""

    name: str
    kind: str
    """input, conv, dense, norm, relu, dropout, pad, max_pool, avg_pool, mean, max, add, concat,
    flatten, centre; from files also softmax, scale, reshape, crop."""
    inputs: tuple[int, ...]
    """Places in the graph of the layers that it takes its inputs from."""
    shape: Shape
    """Shape of its output in Keras's order: (H, W, C), or (C,)."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options that decide its function besides the weights, sorted by name."""
    weights: tuple[Shape, ...] = ()
    """Shapes of its tensors, in Keras's order and layout."""
    keys: tuple[str, ...] = ()
    """In our graphs the tensors' names in the state dict; in a file's, the layer's path in it."""
    rate: float = 0.0
    """Probability of dropout."""

    def option(self, name: str) -> Any:
        """Return the value of an option."""
        return dict(self.options)[name]

    def __str__(self) -> str:
        """Describe the layer in a word or two, for messages."""
        words = [self.kind, *(f"{name} {_words(value)}" for name, value in self.options)]
        words += ["x".join(map(str, shape)) or "number" for shape in self.weights[:1]]
        if self.kind in ("conv", "dense"):
            words.append("biased" if len(self.weights) == 2 else "no bias")
        elif not self.weights:
            words.append("to " + "x".join(map(str, self.shape)))
        return " ".join(words)


Graph = tuple[Layer, ...]
"""Layers in an order in which each comes after its inputs; the first is the input, the last the
output."""


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class MismatchError(WeightsError):
    """A file does not fit a network; the message has the first differences."""


def options(**given: Any) -> tuple[tuple[str, Any], ...]:
    """Options in the form that :class:`Layer` keeps them in."""
    return tuple(sorted(given.items()))


def same_padding(shape: Shape, kernel: Shape, stride: Shape) -> Shape:
    """Top, bottom, left and right padding that Keras's "same" means for this input."""
    pads: list[int] = []
    for size, k, s in zip(shape, kernel, stride, strict=False):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return tuple(pads)


def window(shape: Shape, kernel: Shape, stride: Shape, pads: Shape) -> Shape:
    """Height and width after a convolution or pooling of this input."""
    return tuple(
        (shape[i] + pads[2 * i] + pads[2 * i + 1] - kernel[i]) // stride[i] + 1 for i in (0, 1)
    )


# --- Our networks ---------------------------------------------------------------------------------


def trace(module: nn.Module, size: int) -> Graph:
    """Turn our network into a graph, for inputs of this size.

    Raises:
        WeightsError: if it has a part for which Keras has no layer.
    """
    # In training mode, so that the outputs of a head which only scoring leaves out are in it.
    copied = _without_values(module).train()
    tracer = _Tracer(size)
    try:
        graph = tracer.trace(copied)
    except (
        Exception
    ) as error:  # nearly any error, for a network that computes with more than layers
        text = (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(
            f"{type(module).__name__} has no Keras twin: it cannot be traced ({text})"
        ) from None
    return _Translation(copied).graph(graph)


def _without_values(module: nn.Module) -> nn.Module:
    """Copy a module with tensors that have shapes but no values, so that it costs no memory."""
    values: dict[int, object] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"))
        for value in module.parameters()
    }
    values |= {id(value): torch.empty_like(value, device="meta") for value in module.buffers()}
    return copy.deepcopy(module, values)


class _Shaped(fx.Proxy):
    """A traced value that knows its shape, because the code of networks may ask for it."""

    @property
    def shape(self) -> torch.Size:
        shape: torch.Size = self.node.meta["value"].shape
        return shape


class _Tracer(fx.Tracer):
    """Traces a network without looking into its layers, and computes every value's shape."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is a layer of torch, or one of ours that stands for one of Keras's."""
        ours = (SameConv2d, SameMaxPool2d, FlattenHWC, MeanPicture)
        return isinstance(m, ours) or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return parameters untraced: our layers compute with them during the trace."""
        return attr_val

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the object that stands for a node's value."""
        return _Shaped(node, self)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> fx.Node:
        """Make a node with an example value without memory: two pictures, for batch norm."""
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        values = fx.node.map_arg((args, kwargs), lambda n: n.meta["value"])
        with torch.no_grad():
            node.meta["value"] = self._value(kind, target, *values)
        return node

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return torch.empty(2, 3, self.size, self.size, device="meta")
        if kind == "call_module":
            return self.root.get_submodule(target).forward(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "output":
            return args[0]
        raise NotImplementedError(f"{kind} {target}")


def _pair(value: Any) -> Shape:
    return (int(value), int(value)) if isinstance(value, int) else tuple(map(int, value))


class _Translation:
    """Translates the operations of a trace to layers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layers: list[Layer] = []
        self.place: dict[fx.Node, int] = {}
        self.seen: set[str] = set()

    def graph(self, traced: fx.Graph) -> Graph:
        """Translate all operations up to the output."""
        for node in traced.nodes:
            if node.op == "output":
                (last,) = node.all_input_nodes
                return tuple(self.layers[: self.place[last] + 1])
            if node.op == "placeholder":
                self._add(node, "input", name="picture")
            elif node.op == "call_module":
                self._module(node)
            else:
                self._function(node)
        raise AssertionError("a trace ends in its output")

    def _add(self, node: fx.Node, kind: str, *, name: str = "", **rest: Any) -> None:
        inputs = tuple(self.place[n] for n in node.all_input_nodes)
        shape = tuple(node.meta["value"].shape[1:])
        if len(shape) == 3:
            shape = (*shape[1:], shape[0])
        name = (name or str(node.target if node.op == "call_module" else node.name)).replace(
            ".", "_"
        )
        self.place[node] = len(self.layers)
        self.layers.append(Layer(name, kind, inputs, shape, **rest))

    def _module(self, node: fx.Node) -> None:
        path = str(node.target)
        layer = self.module.get_submodule(path)
        before = self.layers[self.place[node.all_input_nodes[0]]].shape
        if isinstance(layer, nn.Identity):
            self.place[node] = self.place[node.all_input_nodes[0]]
            return
        tensors = dict(layer.named_parameters(path)) | dict(layer.named_buffers(path))
        if tensors and path in self.seen:
            raise WeightsError(f"{path} is used twice, which has no Keras twin")
        self.seen.add(path)
        if isinstance(layer, nn.Conv2d):
            self._conv(node, layer, before)
        elif isinstance(layer, nn.Linear):
            matrix = (layer.in_features, layer.out_features)
            self._add(node, "dense", **_kernel(path, matrix, biased=layer.bias is not None))
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
            names = ("weight", "bias", "running_mean", "running_var")
            self._add(
                node,
                "norm",
                options=options(epsilon=layer.eps),
                weights=((layer.num_features,),) * 4,
                keys=tuple(f"{path}.{name}" for name in names),
            )
        elif isinstance(layer, nn.ReLU):
            self._add(node, "relu")
        elif isinstance(layer, nn.Dropout | nn.Dropout2d):
            self._add(node, "dropout", rate=float(layer.p))
        elif isinstance(layer, SameMaxPool2d):
            kernel, stride = _pair(layer.kernel), _pair(layer.stride)
            self._pool(node, "max_pool", kernel, stride, same_padding(before, kernel, stride))
        elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and _plain(layer):
            kind = "max_pool" if isinstance(layer, nn.MaxPool2d) else "avg_pool"
            stride = _pair(layer.stride or layer.kernel_size)
            self._pool(node, kind, _pair(layer.kernel_size), stride, (0, 0, 0, 0))
        elif isinstance(layer, nn.ZeroPad2d):
            left, right, top, bottom = layer.padding
            self._add(node, "pad", options=options(pads=(top, bottom, left, right)))
        elif isinstance(layer, FlattenHWC):
            self._add(node, "flatten")
        elif isinstance(layer, MeanPicture):
            _, height, width = layer.mean.shape
            self._add(node, "centre", weights=((height, width, 3),), keys=(f"{path}.mean",))
        else:
            raise WeightsError(f"{path} ({type(layer).__name__}) has no Keras twin")

    def _conv(self, node: fx.Node, layer: nn.Conv2d, before: Shape) -> None:
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
        if layer.groups != 1 or _pair(layer.dilation) != (1, 1) or isinstance(layer.padding, str):
            raise WeightsError(
                f"{node.target} has groups or dilation, which has no Keras twin here"
            )
        if isinstance(layer, SameConv2d):
            pads: Shape = same_padding(before, kernel, stride)
        else:
            vertical, horizontal = _pair(layer.padding)
            pads = (vertical,) * 2 + (horizontal,) * 2
        shape = (*kernel, layer.in_channels, layer.out_channels)
        self._add(
            node,
            "conv",
            options=options(kernel=kernel, stride=stride, pads=pads),
            **_kernel(str(node.target), shape, biased=layer.bias is not None),
        )

    def _pool(self, node: fx.Node, kind: str, kernel: Shape, stride: Shape, pads: Shape) -> None:
        self._add(node, kind, options=options(kernel=kernel, stride=stride, pads=pads))

    def _function(self, node: fx.Node) -> None:
        name = node.target if node.op == "call_method" else None
        arguments = (*node.args[1:], *node.kwargs.values())
        if node.target in (torch.relu, F.relu) or name == "relu":
            self._add(node, "relu")
        elif node.target in (operator.add, torch.add) and len(node.all_input_nodes) == 2:
            self._add(node, "add")
        elif node.target is torch.cat and 1 in arguments:
            self._add(node, "concat")
        elif name in ("mean", "amax") and arguments == ((2, 3),):
            self._add(node, "mean" if name == "mean" else "max")
        elif node.target is F.max_pool2d and _halves(node):
            before = self.layers[self.place[node.all_input_nodes[0]]].shape
            pads = same_padding(before, (2, 2), (2, 2))  # at the end only, where nothing wins
            self._pool(node, "max_pool", (2, 2), (2, 2), pads)
        else:
            raise WeightsError(f"the operation {node} ({node.target}) has no Keras twin")


def _halves(node: fx.Node) -> bool:
    """Whether a maximum pooling is 2x2 with stride 2, and keeps a single last row or column."""
    given = {key: value for key, value in node.kwargs.items() if value}
    return node.args[1:] == (2,) and given in (
        {"ceil_mode": True, "dilation": 1},
        {"ceil_mode": True, "dilation": 1, "stride": 2},
    )


def _kernel(path: str, shape: Shape, *, biased: bool) -> dict[str, Any]:
    names, shapes = [f"{path}.weight"], [shape]
    if biased:
        names.append(f"{path}.bias")
        shapes.append(shape[-1:])
    return {"weights": tuple(shapes), "keys": tuple(names)}


def _plain(layer: nn.MaxPool2d | nn.AvgPool2d) -> bool:
    """Whether pooling has no option that Keras lacks."""
    dilated = isinstance(layer, nn.MaxPool2d) and _pair(layer.dilation) != (1, 1)
    return _pair(layer.padding) == (0, 0) and not layer.ceil_mode and not dilated


# --- Keras's order --------------------------------------------------------------------------------


def keras_order(graph: Graph) -> list[int]:
    """Return the layers' places in the order of Keras's ``model.layers`` and of its files.

    Layers farthest from the output come first; at equal distance, the one that a walk from the
    output to the input, first inputs first, meets first.
    """
    depth = [0] * len(graph)
    for i in reversed(range(len(graph))):
        for j in graph[i].inputs:
            depth[j] = max(depth[j], depth[i] + 1)
    met: dict[int, int] = {}
    todo = [len(graph) - 1]
    while todo:
        i = todo.pop()
        if i not in met:
            met[i] = len(met)
            todo += reversed(graph[i].inputs)
    return sorted(met, key=lambda i: (-depth[i], met[i]))


# --- Comparing ------------------------------------------------------------------------------------

_TRAINING_ONLY = frozenset({"dropout"})


class Signatures:
    """Numbers for what layers compute; all graphs given to one object share them."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], int] = {}

    def of(self, graph: Graph) -> tuple[list[int], list[int]]:
        """Return each layer's signature, and the place of the layer that computes its value.

        That is its own place, except for layers that change nothing: theirs is that of their input.
        """
        signatures: list[int] = []
        places: list[int] = []
        for i, layer in enumerate(graph):
            if _changes_nothing(graph, layer):
                signatures.append(signatures[layer.inputs[0]])
                places.append(places[layer.inputs[0]])
                continue
            inputs = [signatures[j] for j in layer.inputs]
            if layer.kind == "add":
                inputs.sort()
            kind, chosen = _normal(graph, layer)
            key = (kind, chosen, layer.weights, *inputs)
            signatures.append(self._known.setdefault(key, len(self._known)))
            places.append(i)
        return signatures, places


def _changes_nothing(graph: Graph, layer: Layer) -> bool:
    if layer.kind in _TRAINING_ONLY:
        return True
    before = graph[layer.inputs[0]].shape if layer.inputs else ()
    if layer.kind in ("flatten", "reshape"):  # of what has one value a channel already
        return before[:-1] in ((), (1, 1))
    pools = layer.kind in ("max_pool", "avg_pool")
    return pools and layer.option("kernel") == layer.option("stride") == (1, 1)


def _normal(graph: Graph, layer: Layer) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """Bring a layer to its normal form: pooling of a whole map becomes a mean or maximum."""
    if layer.kind in ("max_pool", "avg_pool"):
        before = graph[layer.inputs[0]].shape
        if layer.option("kernel") == before[:2] and not any(layer.option("pads")):
            return {"max_pool": "max", "avg_pool": "mean"}[layer.kind], ()
    return layer.kind, layer.options


def without_head(graph: Graph) -> Graph:
    """Cut off the last dense layer and what follows; no change if it ends in another layer."""
    last = graph[-1]
    return graph[: last.inputs[0] + 1] if last.kind == "dense" else graph


def match(ours: Graph, theirs: Graph, *, name: str) -> dict[int, int]:
    """Return for each of our layers with weights the place of its counterpart in the file's graph.

    Raises:
        MismatchError: with the first differences.
    """
    numbers = Signatures()
    own, own_place = numbers.of(ours)
    other, other_place = numbers.of(theirs)
    if own[-1] != other[-1]:
        raise MismatchError(_structures(ours, own, theirs, other, name))
    pairs: dict[int, int] = {}
    todo = [(own_place[-1], other_place[-1])]
    while todo:
        i, j = todo.pop()
        if i in pairs:
            continue
        pairs[i] = j
        inputs = [own_place[k] for k in ours[i].inputs]
        counterparts = [other_place[k] for k in theirs[j].inputs]
        if ours[i].kind == "add":
            inputs.sort(key=lambda k: own[k])
            counterparts.sort(key=lambda k: other[k])
        todo += zip(inputs, counterparts, strict=True)
    used = [j for i, j in pairs.items() if ours[i].weights]
    if len(set(used)) != len(used):
        raise MismatchError(f"{name} uses one layer in two places, which our network does not")
    return {i: j for i, j in pairs.items() if ours[i].weights}


def _structures(
    ours: Graph, own: Sequence[int], theirs: Graph, other: Sequence[int], name: str
) -> str:
    left, right = _described(ours), _described(theirs)
    if [text for _, text in left] != [text for _, text in right]:
        return difference(left, right, name=name)
    known = set(other)
    at = next((ours[i] for i in keras_order(ours) if own[i] not in known), ours[-1])
    return (
        f"{name} has the same layers as the network, but connects them otherwise: "
        f"nothing in it corresponds to {at.name} ({at}) with what goes into it"
    )


def _described(graph: Graph) -> list[tuple[str, str]]:
    found = []
    for i in keras_order(graph):
        layer = graph[i]
        if not _changes_nothing(graph, layer):
            kind, chosen = _normal(graph, layer)
            found.append((layer.name, str(dataclasses.replace(layer, kind=kind, options=chosen))))
    return found


def by_kind(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Group layers with weights by kind, in the given order."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.weights:
            found.setdefault(layer.kind, []).append(layer)
    return found


def in_order(ours: Graph, theirs: Sequence[Layer], *, name: str) -> list[tuple[Layer, Layer]]:
    """Pair our layers with weights with the file's, when the file holds weights alone.

    Layers of each kind are paired in Keras's order; the file does not say how they connect.

    Raises:
        MismatchError: with the first differences, if their shapes differ.
    """
    own = by_kind([ours[i] for i in keras_order(ours)])
    other = by_kind(theirs)
    for kind in {**own, **other}:
        left, right = own.get(kind, []), other.get(kind, [])
        if [layer.weights for layer in left] != [layer.weights for layer in right]:
            raise MismatchError(
                difference([_bare(i) for i in left], [_bare(i) for i in right], name=name)
            )
    return [pair for kind in own for pair in zip(own[kind], other[kind], strict=True)]


def _bare(layer: Layer) -> tuple[str, str]:
    """Describe a layer by its shapes alone: a file of weights has no options."""
    return layer.name, str(dataclasses.replace(layer, options=()))


def difference(
    ours: Sequence[tuple[str, str]], theirs: Sequence[tuple[str, str]], *, name: str, rows: int = 8
) -> str:
    """Show the first layers that differ side by side, each with its name and description."""
    matcher = difflib.SequenceMatcher(
        None, [text for _, text in ours], [text for _, text in theirs], autojunk=False
    )
    lines: list[tuple[str, str, str]] = []
    left_out = 0
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            continue
        for k in range(max(b - a, d - c)):
            if len(lines) == rows:
                left_out += 1
                continue
            left = ": ".join(ours[a + k]) if a + k < b else "nothing"
            right = ": ".join(theirs[c + k]) if c + k < d else "nothing"
            lines.append((str(a + k + 1), left, right))
    width = max(len(left) for _, left, _ in lines)
    same = sum(block.size for block in matcher.get_matching_blocks())
    head = f"{name} does not fit the network: {same} of its {len(ours)} layers match"
    table = [f"  {'layer':>5}  {'the network has':{width}}  the file has"]
    table += [f"  {number:>5}  {left:{width}}  {right}" for number, left, right in lines]
    if left_out:
        table.append(f"         and {left_out} more")
    return "\n".join([head, *table, "Name the network that the file was made with, by --model"])


# --- Tensors --------------------------------------------------------------------------------------


def to_torch(kind: str, value: torch.Tensor) -> torch.Tensor:
    """Bring a tensor of Keras's to our layout.

    Shape:
        conv: [kh, kw, in, out] to [out, in, kh, kw]; dense: [in, out] to [out, in]; centre:
        [H, W, C] to [C, H, W]; vectors stay.
    """
    if kind == "conv" and value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    if kind == "dense" and value.ndim == 2:
        return value.T.contiguous()
    if kind == "centre" and value.ndim == 3:
        return value.permute(2, 0, 1).contiguous()
    return value


def to_torch_shape(shape: Shape) -> Shape:
    """Bring the shape of a tensor of Keras's to our layout, for any layer."""
    if len(shape) == 4:
        return (shape[3], shape[2], *shape[:2])
    return (shape[2], *shape[:2]) if len(shape) == 3 else tuple(reversed(shape))


def to_keras(kind: str, value: torch.Tensor) -> torch.Tensor:
    """Bring a tensor to Keras's layout: the inverse of :func:`to_torch`."""
    if kind == "conv" and value.ndim == 4:
        return value.permute(2, 3, 1, 0).contiguous()
    if kind == "dense" and value.ndim == 2:
        return value.T.contiguous()
    if kind == "centre" and value.ndim == 3:
        return value.permute(1, 2, 0).contiguous()
    return value
