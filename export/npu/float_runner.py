"""Runs the float graphs of a part on ONNX Runtime's CPU provider as a host would, and watches the ranges of tensors."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from ...artifact.npu_parts import STATE_ROLES
from ...checkpoint.checkpoint import Checkpoint
from .call_inputs import attention_mask, rotary_inputs, state_columns
from .float_model import FloatModel
from .part_graph import MoeForm, PartShape, Phase, declare_part
from .static_graph import Array, StaticGraph

Range = tuple[float, float]


@dataclass
class Ranges:
    """Smallest and largest number seen, by tensor; several threads may add."""

    by_tensor: dict[str, Range] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, name: str, low: float, high: float) -> None:
        """Widens the range of tensor ``name`` to include low … high."""
        with self._lock:
            before = self.by_tensor.get(name, (low, high))
            self.by_tensor[name] = (min(low, before[0]), max(high, before[1]))

    def merge(self, others: Mapping[str, Range]) -> None:
        """Widens the ranges by those of ``others``, by tensor."""
        for name, (low, high) in others.items():
            self.add(name, low, high)


@dataclass
class FloatState:
    """States of one sequence by input name, and the cache columns that are filled."""

    filled: int = 0
    arrays: dict[str, Array] = field(default_factory=dict)


class FloatGraph:
    """One session of one thread. Weights are fed as inputs: held once and folded into nothing."""

    def __init__(self, graph: StaticGraph, weights: dict[str, Array], *, ranges: Ranges | None = None) -> None:
        """weights: arrays made before, added to here; the prefill and the decode graph share most of them."""
        lowered = FloatModel(graph)
        self.graph = graph
        self._ranges = ranges
        self._weights: dict[str, Array] = {}
        for name, source in lowered.weights.items():
            if name not in weights:
                weights[name] = source.array()
            self._weights[name] = weights[name]
        model = lowered.model
        for name in self._weights:
            model.graph.inputs.append(model.graph.initializers.pop(name))
        self._watched = _watch(model, set(self._weights)) if ranges is not None else []
        self._inside = {port.name: port.value.name for port in [*graph.inputs, *graph.outputs]}
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        serialized = ir.serde.serialize_model(model).SerializeToString()
        self._session = ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Array]:
        """Arrays by input name → outputs by name; with ``ranges``, what the tensors inside reach is added to them."""
        found = dict(zip(self._outputs, self._session.run(None, {**self._weights, **feeds}), strict=True))
        for name in self._watched:
            low, high = found.pop(f"{name}.lowest"), found.pop(f"{name}.highest")
            assert self._ranges is not None
            self._ranges.add(self._inside.get(name, name), float(low), float(high))
        return found


def _watch(model: ir.Model, weights: set[str]) -> list[str]:
    """Adds the smallest and the largest element of every float tensor that a node makes to the outputs."""
    names = []
    for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]:
        if value.dtype != ir.DataType.FLOAT or value.name is None or value.name in weights:
            continue
        for op_type, suffix in (("ReduceMin", "lowest"), ("ReduceMax", "highest")):
            extreme = ir.Value(name=f"{value.name}.{suffix}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
            model.graph.append(ir.node(op_type, [value], attributes={"keepdims": 0}, outputs=[extreme]))
            model.graph.outputs.append(extreme)
        names.append(value.name)
    return names


class FloatPart:
    """The prefill and the decode graph of a part over one set of weights; several threads may feed it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        part: PartShape,
        chunk: int,
        *,
        decode: MoeForm = MoeForm.GATHERED,
        prefill: MoeForm = MoeForm.WIDE,
        ranges: Ranges | None = None,
        until: Sequence[str] = (),
    ) -> None:
        """until: the graphs end where these values are made, and give them instead of their outputs."""
        self.config = checkpoint.config
        self.part, self.chunk = part, chunk
        weights: dict[str, Array] = {}
        graphs = [
            declare_part(checkpoint, part, Phase.PREFILL, chunk, prefill),
            declare_part(checkpoint, part, Phase.DECODE, 1, decode),
        ]
        if until:
            graphs = [graph.ending_at(until) for graph in graphs]
        self.prefill, self.decode = (FloatGraph(graph, weights, ranges=ranges) for graph in graphs)

    def new_state(self) -> FloatState:
        """The state before the first token: zeros for every state input, no cache column filled."""
        inputs = self.decode.graph.inputs
        return FloatState(
            arrays={port.name: np.zeros(port.value.shape, np.float32) for port in inputs if port.role in STATE_ROLES}
        )

    def feed(self, hidden: Array, state: FloatState, *, prefill: bool) -> dict[str, Array]:
        """hidden [n, H] of the next n tokens (decode: 1) → the graph's outputs that are no states, [n, …] each.

        Prefill puts tokens of padding behind them up to the chunk. ``state`` is brought forward by n tokens.
        """
        graph, tokens = (self.prefill, self.chunk) if prefill else (self.decode, 1)
        valid = len(hidden)
        padded = np.zeros((1, tokens, hidden.shape[1]), np.float32)
        padded[0, :valid] = hidden
        offered: dict[str, npt.NDArray[np.generic]] = {"hidden_states": padded, **state.arrays}
        wanted = {port.name for port in graph.graph.inputs}
        if "attention_mask" in wanted:
            offered["attention_mask"] = attention_mask(state.filled, tokens, self.part.context_length)
            offered["cos"], offered["sin"] = rotary_inputs(self.config, state.filled, tokens)
        offered["state_columns"] = state_columns(valid, self.config.conv_L_cache)
        offered["expert_index"] = np.arange(self.config.num_experts, dtype=np.int32)
        offered["last_token"] = np.array([valid - 1], np.int32)
        found = graph.run({name: array for name, array in offered.items() if name in wanted})
        self._advance(state, graph.graph, found, valid)
        return {port.name: found[port.name][0, :valid] for port in graph.graph.outputs if port.layer is None}

    def _advance(self, state: FloatState, graph: StaticGraph, outputs: dict[str, Array], valid: int) -> None:
        columns = slice(state.filled, state.filled + valid)
        for port in graph.outputs:
            if port.role == "conv_state":
                state.arrays[f"past_conv.{port.layer}"] = outputs[port.name]
            elif port.role == "key_cache":
                state.arrays[f"past_key.{port.layer}"][..., columns] = outputs[port.name][..., :valid]
            elif port.role == "value_cache":
                state.arrays[f"past_value.{port.layer}"][:, :, columns] = outputs[port.name][:, :, :valid]
        state.filled += valid
