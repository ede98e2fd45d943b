"""A graph of static shapes, declared once, from which the float model and the quantized model are both written.

Every value has a name and a shape. The prefill and the decode graph of a part give the same names to the same tensors,
so that a range measured in either holds for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from .weight_sources import Rows

PACKED_GATHER = "PackedGather"
"""The one operator that is no ONNX operator: see ``StaticGraph.emit_packed_gather``."""

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. dtype is "float32" (what gets quantized), "int32" or "int64"."""

    name: str
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True)
class Node:
    """An ONNX operator and its attributes, named after its first output."""

    op_type: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the first output."""
        return self.outputs[0].name


class WeightKind(Enum):
    """What a weight is used by, which decides how it may be quantized."""

    LINEAR = "linear"
    """[K, N], right operand of a MatMul: one scale a column, or blocks along K."""
    EXPERTS = "experts"
    """[E, K, N], gathered by expert: one scale in all, its columns normalized before."""
    TABLE = "table"
    """Small tensors that meet activations elementwise: 16 bits."""


class Half(Enum):
    """Which half of an EXPERTS weight's columns, where two 4-bit codes share a byte."""

    HIGH = "high"
    """The first columns, in the byte's high bits."""
    LOW = "low"


@dataclass(frozen=True)
class Weight:
    """An initializer and where its float32 values come from.

    rows(first, last) gives rows of the matrix as checkpoints store it: LINEAR [n, K] of the N output rows; EXPERTS
    [n * N, K] for the experts first … last - 1, which ``Value.shape`` has as [E, K, N]; TABLE ignores its arguments
    and gives the tensor.
    """

    value: Value
    kind: WeightKind
    rows: Rows
    layer: int | None = None
    """None: of none."""


@dataclass(frozen=True)
class Port:
    """An input or output: its name outside of the graph, and its role in a call."""

    name: str
    value: Value
    role: str
    layer: int | None = None


@dataclass
class StaticGraph:
    """Nodes in order of execution. ``scope`` gives a view that puts a prefix before every name."""

    name: str
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    constants: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Index and shape tensors."""
    fixed_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Ranges known without calibration."""
    prefix: str = ""
    layer: int | None = None
    """Of the weights that are declared here."""

    def scope(self, prefix: str, layer: int | None = None) -> StaticGraph:
        """A view of this graph whose names get ``prefix`` after the present one; layer None: the present layer."""
        return replace(self, prefix=self.prefix + prefix, layer=self.layer if layer is None else layer)

    def input(
        self,
        name: str,
        shape: Sequence[int],
        role: str,
        *,
        dtype: str = "float32",
        layer: int | None = None,
        value_name: str | None = None,
    ) -> Value:
        """value_name: what the tensor is called inside, where ranges are kept by name."""
        value = Value(value_name or name, tuple(shape), dtype)
        self.inputs.append(Port(name, value, role, layer))
        return value

    def output(self, name: str, value: Value, role: str, *, layer: int | None = None) -> None:
        """Makes ``value`` an output of the graph, called ``name`` outside, without the prefix."""
        self.outputs.append(Port(name, value, role, layer))

    def ending_at(self, names: Sequence[str]) -> StaticGraph:
        """The graph that makes the values ``names``, which are its outputs, and the states on the way; nothing else."""
        values = {value.name: value for node in self.nodes for value in node.outputs}
        states = [port for port in self.outputs if port.layer is not None]
        outputs = [*states, *(Port(name, values[name], "inside") for name in names)]
        needed = {port.value.name for port in outputs}
        nodes = []
        for node in reversed(self.nodes):
            if needed & {value.name for value in node.outputs}:
                nodes.append(node)
                needed |= {value.name for value in node.inputs}
        inputs = [port for port in self.inputs if port.value.name in needed]
        return replace(self, inputs=inputs, outputs=outputs, nodes=nodes[::-1])

    def weight(self, name: str, shape: Sequence[int], kind: WeightKind, rows: Rows) -> Value:
        """A float32 initializer of this shape, of the view's layer; its numbers are read from ``rows`` later."""
        value = Value(self.prefix + name, tuple(shape))
        self.weights[value.name] = Weight(value, kind, rows, self.layer)
        return value

    def constant(self, name: str, numbers: Sequence[int]) -> Value:
        """An int64 vector of the numbers given, [n]."""
        name = self.prefix + name
        self.constants[name] = np.array(numbers, np.int64)
        return Value(name, (len(numbers),), "int64")

    def emit(
        self,
        op_type: str,
        inputs: Sequence[Value],
        name: str,
        shape: Sequence[int],
        *,
        dtype: str = "float32",
        **attributes: Any,
    ) -> Value:
        """A node of one output."""
        value = Value(self.prefix + name, tuple(shape), dtype)
        self.nodes.append(Node(op_type, tuple(inputs), (value,), attributes))
        return value

    def fixed(self, value: Value, low: float, high: float) -> Value:
        """Say that ``value`` lies within low … high whatever the input."""
        self.fixed_ranges[value.name] = (low, high)
        return value

    def matmul(self, name: str, x: Value, weight: Value) -> Value:
        """x […, M, K] times weight […, K, N] → […, M, N]; the dimensions before are broadcast."""
        batch = np.broadcast_shapes(x.shape[:-2], weight.shape[:-2])
        return self.emit("MatMul", [x, weight], name, (*batch, x.shape[-2], weight.shape[-1]))

    def elementwise(self, op_type: str, name: str, *inputs: Value) -> Value:
        """A node of one float32 output, in the shape that the inputs broadcast to."""
        return self.emit(op_type, inputs, name, np.broadcast_shapes(*(value.shape for value in inputs)))

    def add(self, name: str, a: Value, b: Value) -> Value:
        """a + b, broadcast."""
        return self.elementwise("Add", name, a, b)

    def sub(self, name: str, a: Value, b: Value) -> Value:
        """a - b, broadcast."""
        return self.elementwise("Sub", name, a, b)

    def mul(self, name: str, a: Value, b: Value) -> Value:
        """a * b, element by element, broadcast."""
        return self.elementwise("Mul", name, a, b)

    def sigmoid(self, name: str, x: Value) -> Value:
        """The logistic function of every element, with the range 0 … 1 known without calibration."""
        return self.fixed(self.elementwise("Sigmoid", name, x), 0.0, 1.0)

    def softmax(self, name: str, x: Value) -> Value:
        """Softmax over the last axis, with the range 0 … 1 known without calibration."""
        return self.fixed(self.emit("Softmax", [x], name, x.shape, axis=-1), 0.0, 1.0)

    def rms_norm(self, name: str, x: Value, weight: Value, epsilon: float) -> Value:
        """x over its root mean square on the last axis, times ``weight``; ``epsilon`` is added to the mean square."""
        return self.emit("RMSNormalization", [x, weight], name, x.shape, axis=-1, epsilon=epsilon)

    def reshape(self, name: str, x: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape of as many; the dtype stays."""
        assert np.prod(shape) == np.prod(x.shape), (name, x.shape, shape)
        return self.emit("Reshape", [x, self.constant(f"{name}.shape", shape)], name, shape, dtype=x.dtype)

    def transpose(self, name: str, x: Value, perm: Sequence[int]) -> Value:
        """A Reshape where no element moves."""
        moving = [axis for axis in perm if x.shape[axis] != 1]
        if moving == sorted(moving):
            return self.reshape(name, x, [x.shape[axis] for axis in perm])
        return self.emit("Transpose", [x], name, [x.shape[axis] for axis in perm], perm=list(perm))

    def slice(self, name: str, x: Value, axis: int, start: int, stop: int) -> Value:
        """Elements start … stop - 1 along ``axis``, which may count from the end; the dtype stays."""
        axis %= len(x.shape)
        shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
        bounds = [
            self.constant(f"{name}.{part}", [number])
            for part, number in (("start", start), ("stop", stop), ("axis", axis))
        ]
        return self.emit("Slice", [x, *bounds], name, shape, dtype=x.dtype)

    def concat(self, name: str, values: Sequence[Value], axis: int) -> Value:
        """Float32 values one after another along ``axis``, which may count from the end; the other sizes agree."""
        axis %= len(values[0].shape)
        total = sum(value.shape[axis] for value in values)
        shape = (*values[0].shape[:axis], total, *values[0].shape[axis + 1 :])
        return self.emit("Concat", values, name, shape, axis=axis)

    def gather(self, name: str, data: Value, indices: Value, axis: int) -> Value:
        """Float32 entries of ``data`` along ``axis``, 0 or more, in whose place the shape of ``indices`` stands."""
        shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
        return self.emit("Gather", [data, indices], name, shape, axis=axis)

    def convert(self, name: str, x: Value) -> Value:
        """The same numbers under other quantization parameters (in float: nothing)."""
        return self.emit("Identity", [x], name, x.shape)

    def top_k(self, name: str, x: Value, k: int) -> Value:
        """int64 indices of the k largest along the last axis, largest first."""
        shape = (*x.shape[:-1], k)
        values, indices = Value(self.prefix + name + ".values", shape), Value(self.prefix + name, shape, "int64")
        count = self.constant(f"{name}.k", [k])
        self.nodes.append(Node("TopK", (x, count), (values, indices), {"axis": -1, "largest": 1, "sorted": 1}))
        return indices

    def emit_packed_gather(self, weight: Value, chosen: Value, halves: tuple[Value, Value]) -> None:
        """The chosen experts' matrices from two 4-bit codes a byte: columns of the first half, and of the second / 16.

        Lowered to two Gather in float, to one Gather and the arithmetic that separates the codes when quantized.
        """
        self.nodes.append(Node(PACKED_GATHER, (weight, chosen), halves))
