"""A static graph as a quantized ONNX model: each operator between DequantizeLinear and QuantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from .float_model import IR_VERSION, OPSET, ir_dtype
from .quantization import QuantizationParameters
from .static_graph import PACKED_GATHER, Node, StaticGraph, Value, Weight, WeightKind
from .weight_codes import BLOCK_SIZE, StoredAs

EXPERTS = QuantizationParameters("int8", float(np.float32(1 / 127)), 0)
PACKED = QuantizationParameters("uint8", 1 / 16, 128)
HIGH = QuantizationParameters("uint8", 1.0, 8)
"""Codes of the packed form rounded to whole numbers: the high half of the byte."""
LOW = QuantizationParameters("uint8", 1 / 16, 128)
"""What the high half leaves."""


class QdqModel:
    """The model; ``weights`` lists the LINEAR and EXPERTS weights whose codes are to be filled in, with their form.

    Inputs and outputs are integers. The quantized tensor has its value's name, an operator's result before that
    ``.float`` behind it. Codes of weight w are the initializer w, its scales w.scale.
    """

    def __init__(
        self,
        graph: StaticGraph,
        quantization: Mapping[str, QuantizationParameters],
        stored_as: Callable[[Weight], StoredAs],
    ) -> None:
        self.weights: dict[str, tuple[Weight, StoredAs]] = {}
        self._graph = graph
        self._quantization = quantization
        self._stored_as = stored_as
        self._outputs = {port.value.name: port.name for port in graph.outputs}
        self._codes: dict[str, ir.Value] = {}
        self._plain: dict[str, ir.Value] = {}
        self._initializers: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._uses: dict[str, int] = {}
        inputs = [self._input(port.value, port.name) for port in graph.inputs]
        for node in graph.nodes:
            self._lower(node)
        outputs = [self._codes[port.value.name] for port in graph.outputs]
        self.model = ir.Model(
            ir.Graph(
                inputs,
                outputs,
                nodes=self._nodes,
                initializers=list(self._initializers.values()),
                name=graph.name,
                opset_imports={"": OPSET},
            ),
            ir_version=IR_VERSION,
        )

    def _input(self, value: Value, name: str) -> ir.Value:
        if value.dtype != "float32":
            tensor = _value(name, value.shape, value.dtype)
            self._plain[value.name] = tensor
            return tensor
        tensor = _value(name, value.shape, self._quantization[value.name].dtype)
        self._codes[value.name] = tensor
        return tensor

    def _lower(self, node: Node) -> None:
        if node.op_type == PACKED_GATHER:
            self._packed_gather(node)
            return
        if node.op_type == "Gather" and self._kind(node.inputs[0]) is WeightKind.EXPERTS:
            self._expert_gather(node)
            return
        if node.op_type == "Identity":
            self._quantize(node.outputs[0], self._use(node.inputs[0]))
            return
        inputs = [self._use(value) for value in node.inputs]
        results = []
        for value in node.outputs:
            if value.dtype == "float32":
                results.append(_value(f"{value.name}.float", value.shape, "float32"))
            else:
                results.append(_value(value.name, value.shape, value.dtype))
                self._plain[value.name] = results[-1]
        self._nodes.append(ir.node(node.op_type, inputs, attributes=node.attributes, outputs=results, name=node.name))
        for value, result in zip(node.outputs, results, strict=True):
            if value.dtype == "float32":
                self._quantize(value, result)

    def _kind(self, value: Value) -> WeightKind | None:
        weight = self._graph.weights.get(value.name)
        return None if weight is None else weight.kind

    def _use(self, value: Value) -> ir.Value:
        """The tensor as an operator's input: dequantized by a node of its own."""
        if value.dtype != "float32":
            return self._constant(value)
        kind = self._kind(value)
        if kind is WeightKind.LINEAR:
            return self._linear_weight(value)
        if kind is WeightKind.TABLE and value.name not in self._codes:
            table = self._quantization[value.name]
            codes = table.codes(self._graph.weights[value.name].rows(0, 0))
            self._codes[value.name] = self._initializer(value.name, ir.tensor(codes, name=value.name))
        return self._dequantize(value.name, self._codes[value.name], self._quantization[value.name], value.shape)

    def _constant(self, value: Value) -> ir.Value:
        if value.name not in self._plain:
            numbers = ir.tensor(self._graph.constants[value.name], name=value.name)
            self._plain[value.name] = self._initializer(value.name, numbers)
        return self._plain[value.name]

    def _linear_weight(self, value: Value) -> ir.Value:
        weight = self._graph.weights[value.name]
        stored_as = self._stored_as(weight)
        self.weights[value.name] = (weight, stored_as)
        inputs, outputs = value.shape
        if stored_as is StoredAs.INT4_BLOCKS:
            codes = self._declare(value.name, value.shape, ir.DataType.INT4)
            scales = self._declare(f"{value.name}.scale", (inputs // BLOCK_SIZE, outputs), ir.DataType.FLOAT)
            attributes: dict[str, Any] = {"axis": 0, "block_size": BLOCK_SIZE}
            operands = [codes, scales]
        else:
            codes = self._declare(value.name, value.shape, ir.DataType.INT8)
            scales = self._declare(f"{value.name}.scale", (outputs,), ir.DataType.FLOAT)
            zeros = ir.tensor(np.zeros(outputs, np.int8), name=f"{value.name}.zero_point")
            attributes = {"axis": 1}
            operands = [codes, scales, self._initializer(f"{value.name}.zero_point", zeros)]
        return self._node(
            "DequantizeLinear", operands, self._unique(f"{value.name}.dequantized"), value.shape, **attributes
        )

    def _expert_gather(self, node: Node) -> None:
        """The gathered codes keep the weight's scale, and nothing is computed on the way."""
        value, chosen = node.inputs
        weight = self._graph.weights[value.name]
        self.weights[value.name] = (weight, StoredAs.INT8_EXPERTS)
        stored = self._declare(value.name, value.shape, ir.DataType.INT8)
        data = self._dequantize(value.name, stored, EXPERTS, value.shape)
        self._moved(node.outputs[0], data, self._constant(chosen), EXPERTS)

    def _moved(self, output: Value, data: ir.Value, chosen: ir.Value, quantization: QuantizationParameters) -> None:
        gathered = self._node("Gather", [data, chosen], f"{output.name}.float", output.shape, name=output.name, axis=0)
        self._quantize(output, gathered, quantization)

    def _packed_gather(self, node: Node) -> None:
        """byte = 16 (a + 8) + b: as a + b/16 it rounds to a, and the rest is b/16; every step is exact in 8 bits."""
        value, chosen = node.inputs
        high, low = node.outputs
        self.weights[value.name] = (self._graph.weights[value.name], StoredAs.INT4_PACKED_EXPERTS)
        experts, inputs, outputs = value.shape
        shape = (experts, inputs, outputs // 2)
        stored = self._declare(value.name, shape, ir.DataType.UINT8)
        both = Value(f"{high.name.rpartition('.')[0]}.both", high.shape)
        self._moved(both, self._dequantize(value.name, stored, PACKED, shape), self._constant(chosen), PACKED)
        self._quantize(high, self._dequantize(both.name, self._codes[both.name], PACKED, both.shape), HIGH)
        rest = self._node(
            "Sub",
            [
                self._dequantize(both.name, self._codes[both.name], PACKED, both.shape),
                self._dequantize(high.name, self._codes[high.name], HIGH, high.shape),
            ],
            f"{low.name}.float",
            low.shape,
            name=low.name,
        )
        self._quantize(low, rest, LOW)

    def _quantize(self, value: Value, result: ir.Value, quantization: QuantizationParameters | None = None) -> None:
        if quantization is not None:
            self._quantization = {**self._quantization, value.name: quantization}
        used = self._quantization[value.name]
        name = self._outputs.get(value.name, value.name)
        codes = _value(name, value.shape, used.dtype)
        self._nodes.append(
            ir.node("QuantizeLinear", [result, *self._parameters(used)], outputs=[codes], name=f"{value.name}.quantize")
        )
        self._codes[value.name] = codes

    def _dequantize(
        self, name: str, codes: ir.Value, quantization: QuantizationParameters, shape: tuple[int, ...]
    ) -> ir.Value:
        return self._node(
            "DequantizeLinear", [codes, *self._parameters(quantization)], self._unique(f"{name}.dequantized"), shape
        )

    def _parameters(self, quantization: QuantizationParameters) -> list[ir.Value]:
        """Scale and zero point as initializers, one pair for all tensors that have the same."""
        scale, zero_point = np.float32(quantization.scale), np.array(quantization.zero_point, quantization.dtype)
        key = f"{float(scale).hex()}.{quantization.dtype}.{quantization.zero_point}"
        return [
            self._initializer(
                f"scale.{float(scale).hex()}", ir.tensor(np.array(scale), name=f"scale.{float(scale).hex()}")
            ),
            self._initializer(f"zero_point.{key}", ir.tensor(zero_point, name=f"zero_point.{key}")),
        ]

    def _node(
        self,
        op_type: str,
        inputs: list[ir.Value],
        output: str,
        shape: tuple[int, ...],
        *,
        name: str | None = None,
        **attributes: int,
    ) -> ir.Value:
        made = _value(output, tuple(shape), "float32")
        self._nodes.append(ir.node(op_type, inputs, attributes=attributes, outputs=[made], name=name or output))
        return made

    def _unique(self, name: str) -> str:
        count = self._uses[name] = self._uses.get(name, -1) + 1
        return f"{name}.{count}" if count else name

    def _declare(self, name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
        if name not in self._initializers:
            self._initializers[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        return self._initializers[name]

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self._initializers:
            self._initializers[name] = ir.Value(
                name=name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        return self._initializers[name]


def _value(name: str, shape: tuple[int, ...], dtype: str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir_dtype(dtype)))
