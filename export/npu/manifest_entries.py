"""What was declared and quantized as the NPU manifest describes it: ports, graphs, parts, and the states of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ...artifact.npu_manifest import State
from ...artifact.npu_parts import PHASES, NodeWeights, NpuGraph, NpuPart, NpuPort
from .part_files import WEIGHTS_FILE, DeclaredGraph
from .parts import PartPlan
from .quantization import QuantizationParameters
from .static_graph import PACKED_GATHER, Port, StaticGraph

_STATES = {"conv_state": ("conv", None), "key_cache": ("key", 3), "value_cache": ("value", 2)}
"""Role → kind of state, and the axis of the columns that a call adds; None: each call replaces the state."""


def npu_port(port: Port, quantization: Mapping[str, QuantizationParameters] | None) -> NpuPort:
    """A graph's input or output as the manifest describes it; without ``quantization`` it stays float32."""
    dtype, scale, zero_point = port.value.dtype, None, 0
    if quantization is not None and dtype == "float32":
        used = quantization[port.value.name]
        dtype, scale, zero_point = used.dtype, used.scale, used.zero_point
    return NpuPort(port.name, port.role, np.dtype(dtype), port.value.shape, scale, zero_point, port.layer)


def npu_graph(
    declared: DeclaredGraph,
    folder: str,
    quantization: Mapping[str, QuantizationParameters] | None,
    weight_bytes: Mapping[str, int],
) -> NpuGraph:
    """One graph of a part, its file in ``folder``; ``weight_bytes``: by name of the weight, as stored."""
    graph = declared.graph
    return NpuGraph(
        phase=declared.phase.value,
        context_length=declared.context_length,
        tokens=declared.tokens,
        file=f"{folder}/{declared.file}",
        nodes=len(graph.nodes),
        op_types=dict(sorted(Counter(node.op_type for node in graph.nodes).items())),
        weights=_weights_by_node(graph, weight_bytes),
        inputs=tuple(npu_port(port, quantization) for port in graph.inputs),
        outputs=tuple(npu_port(port, quantization) for port in graph.outputs),
    )


def _weights_by_node(graph: StaticGraph, weight_bytes: Mapping[str, int]) -> tuple[NodeWeights, ...]:
    entries = []
    users = Counter(value.name for node in graph.nodes for value in node.inputs)
    for node in graph.nodes:
        names = [value.name for value in node.inputs if value.name in graph.weights]
        size = sum((weight_bytes.get(name, 0) + weight_bytes.get(f"{name}.scale", 0)) // users[name] for name in names)
        if names:
            op_type = "Gather" if node.op_type == PACKED_GATHER else node.op_type
            entries.append(NodeWeights(node.name, op_type, size))
    return tuple(entries)


def npu_part(plan: PartPlan, graphs: Sequence[NpuGraph], file_bytes: int, folder: str) -> NpuPart:
    """One part with its graphs and the bytes that it reads of its weights in each phase."""
    by_phase = {
        phase: max(sum(node.bytes for node in graph.weights) for graph in graphs if graph.phase == phase)
        for phase in PHASES
    }
    return NpuPart(
        index=plan.index,
        name=f"part{plan.index}",
        first_layer=plan.first_layer,
        last_layer=plan.last_layer,
        head=plan.head,
        weight_bytes={**by_phase, "file": file_bytes},
        compiled_bytes=plan.weight_bytes,
        token_bytes=plan.token_bytes,
        weights_file=f"{folder}/{WEIGHTS_FILE}",
        graphs=tuple(graphs),
    )


def states_of(parts: Sequence[NpuPart]) -> tuple[State, ...]:
    """The states of all layers: each is the same in every graph of its part."""
    states = []
    for part in parts:
        graph = part.graphs[0]
        outputs = {(port.role, port.layer): port.name for port in graph.outputs if port.layer is not None}
        for port in graph.inputs:
            if port.role in _STATES and port.layer is not None:
                kind, axis = _STATES[port.role]
                output = outputs[port.role, port.layer]
                states.append(State(port.layer, part.index, kind, port.name, output, axis is not None, axis or 0))
    return tuple(states)
