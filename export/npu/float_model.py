"""A static graph as an ONNX model of float32: what calibration runs, and the float export."""

from __future__ import annotations

import onnx_ir as ir

from .float_weights import FloatWeight
from .static_graph import PACKED_GATHER, Half, Node, StaticGraph, Value, WeightKind

OPSET = 24
IR_VERSION = 11

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "uint16": ir.DataType.UINT16,
    "uint8": ir.DataType.UINT8,
    "int8": ir.DataType.INT8,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}


def ir_dtype(name: str) -> ir.DataType:
    """The element type of that numpy name."""
    return _DTYPES[name]


class FloatModel:
    """The ONNX graph of ``graph``; initializers of the weights have no data yet: ``weights`` lists what they hold."""

    def __init__(self, graph: StaticGraph, *, keep: frozenset[str] = frozenset()) -> None:
        """keep: values inside that become outputs too, under their own names."""
        self.weights: dict[str, FloatWeight] = {}
        self._graph = graph
        self._values: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._initializers: list[ir.Value] = []
        inputs = [self._declare(port.value, port.name) for port in graph.inputs]
        outputs = {port.value.name: port.name for port in graph.outputs}
        for node in graph.nodes:
            self._lower(node, outputs)
        results = [self._values[port.value.name] for port in graph.outputs]
        results += [self._values[name] for name in sorted(keep) if self._values[name] not in results]
        self.model = ir.Model(
            ir.Graph(
                inputs,
                results,
                nodes=self._nodes,
                initializers=self._initializers,
                name=graph.name,
                opset_imports={"": OPSET},
            ),
            ir_version=IR_VERSION,
        )

    def _declare(self, value: Value, name: str | None = None) -> ir.Value:
        result = ir.Value(
            name=name or value.name, shape=ir.Shape(value.shape), type=ir.TensorType(ir_dtype(value.dtype))
        )
        self._values[value.name] = result
        return result

    def _use(self, value: Value) -> ir.Value:
        if value.name not in self._values:
            result = self._declare(value)
            if value.name in self._graph.constants:
                result.const_value = ir.tensor(self._graph.constants[value.name], name=value.name)
            else:
                self.weights[value.name] = FloatWeight(self._graph.weights[value.name])
            self._initializers.append(result)
        return self._values[value.name]

    def _lower(self, node: Node, outputs: dict[str, str]) -> None:
        if node.op_type == PACKED_GATHER:
            self._lower_packed(node)
            return
        inputs = [self._use(value) for value in node.inputs]
        result = [self._declare(value, outputs.get(value.name)) for value in node.outputs]
        self._nodes.append(ir.node(node.op_type, inputs, attributes=node.attributes, outputs=result, name=node.name))

    def _lower_packed(self, node: Node) -> None:
        """Each half of the columns as a weight of its own."""
        weight, chosen = node.inputs
        for half, output in zip((Half.HIGH, Half.LOW), node.outputs, strict=True):
            source = Value(f"{weight.name}.{half.value}.float", (weight.shape[0], *output.shape[1:]))
            if source.name not in self._values:
                self._initializers.append(self._declare(source))
                self.weights[source.name] = FloatWeight(self._graph.weights[weight.name], half)
            result = self._values[source.name]
            self._nodes.append(
                ir.node(
                    "Gather",
                    [result, self._use(chosen)],
                    attributes={"axis": 0},
                    outputs=[self._declare(output)],
                    name=output.name,
                )
            )


__all__ = ["IR_VERSION", "OPSET", "FloatModel", "WeightKind", "ir_dtype"]
