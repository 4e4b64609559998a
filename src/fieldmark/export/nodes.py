"""Writing an ONNX graph as arithmetic: a :class:`Value` stands for the output of a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Number = int | float | Sequence[int] | npt.NDArray[Any]


class Nodes:
    """Nodes of a part of a graph, in the order they are made; names begin with the part's name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """The constants that a node uses."""
        used = {name for node in self.nodes for name in node.input}
        return [tensor for name, tensor in self._constants.items() if name in used]

    def rename(self, value: Value, name: str) -> None:
        """Rename the output of the last node, for an output of the graph."""
        assert list(self.nodes[-1].output) == [value.name]
        self.nodes[-1].output[0] = value.name = name

    def value(self, name: str, dtype: npt.DTypeLike) -> Value:
        """Make a value for an input of the graph, or for an output of another part."""
        return Value(self, name, np.dtype(dtype))

    def constant(self, number: Number, dtype: npt.DTypeLike) -> Value:
        """Add a number or an array that is part of the file."""
        name = f"{self._name}_constant_{len(self._constants)}"
        array = np.asarray(number, dtype=dtype)
        self._constants[name] = numpy_helper.from_array(array, name)
        return Value(self, name, array.dtype)

    def call(
        self, op: str, *inputs: Value, dtype: npt.DTypeLike | None = None, **attributes: Any
    ) -> Value:
        """Add a node; ``dtype`` is that of its output, by default that of its first input."""
        name = f"{self._name}_{op.lower()}_{len(self.nodes)}"
        names = [value.name for value in inputs]
        self.nodes.append(helper.make_node(op, names, [name], name=name, **attributes))
        return Value(self, name, inputs[0].dtype if dtype is None else np.dtype(dtype))

    def halves(self, value: Value, *, axis: int) -> tuple[Value, Value]:
        """Cut a tensor into two along an axis."""
        name = f"{self._name}_split_{len(self.nodes)}"
        names = [f"{name}_0", f"{name}_1"]
        node = helper.make_node("Split", [value.name], names, name=name, axis=axis, num_outputs=2)
        self.nodes.append(node)
        first, second = (Value(self, half, value.dtype) for half in names)
        return first, second

    def transposed_if(
        self, condition: Value, value: Value, perms: tuple[list[int], list[int]]
    ) -> Value:
        """Transpose by the first permutation if the condition holds, else by the second."""
        name = f"{self._name}_if_{len(self.nodes)}"
        branches = [
            helper.make_graph(
                [helper.make_node("Transpose", [value.name], [f"{name}_{key}"], perm=perm)],
                f"{name}_{key}",
                [],
                [onnx.ValueInfoProto(name=f"{name}_{key}")],
            )
            for key, perm in zip(("then", "else"), perms, strict=True)
        ]
        self.nodes.append(
            helper.make_node(
                "If",
                [condition.name],
                [name],
                name=name,
                then_branch=branches[0],
                else_branch=branches[1],
            )
        )
        return Value(self, name, value.dtype)


class Value:
    """A tensor of the graph; plain numbers that meet it become constants of its type."""

    def __init__(self, nodes: Nodes, name: str, dtype: np.dtype[Any]) -> None:
        self.nodes = nodes
        self.name = name
        self.dtype = dtype

    def op(self, op: str, *others: Value | Number, **attributes: Any) -> Value:
        """Apply an operator to this and others of the same type."""
        return self.nodes.call(op, self, *map(self._same, others), **attributes)

    def cast(self, dtype: npt.DTypeLike) -> Value:
        """Convert to another type."""
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.nodes.call("Cast", self, dtype=dtype, to=to)

    def shaped(self, *shape: int) -> Value:
        """Reshape; -1 stands for what is left."""
        return self.nodes.call("Reshape", self, self.nodes.constant(shape, np.int64))

    def _same(self, other: Value | Number) -> Value:
        return other if isinstance(other, Value) else self.nodes.constant(other, self.dtype)

    def __add__(self, other: Value | Number) -> Value:
        return self.op("Add", other)

    def __sub__(self, other: Value | Number) -> Value:
        return self.op("Sub", other)

    def __mul__(self, other: Value | Number) -> Value:
        return self.op("Mul", other)

    def __truediv__(self, other: Value | Number) -> Value:
        return self.op("Div", other)

    def __lt__(self, other: Value | Number) -> Value:
        return self.op("Less", other, dtype=np.bool_)

    def __ge__(self, other: Value | Number) -> Value:
        return self.op("GreaterOrEqual", other, dtype=np.bool_)

    def __and__(self, other: Value) -> Value:
        return self.op("And", other)


def where(condition: Value, yes: Value, no: Value | Number) -> Value:
    """Choose element by element."""
    other = no if isinstance(no, Value) else condition.nodes.constant(no, yes.dtype)
    return condition.nodes.call("Where", condition, yes, other, dtype=yes.dtype)
