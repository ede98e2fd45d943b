"""npu_manifest.json: parts, graphs, and every input and output with what the host must know to fill and read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .part_files import WEIGHTS_FILE, DeclaredGraph
from .parts import PartPlan
from .quantization import QuantizationParameters
from .static_graph import PACKED_GATHER, Port, StaticGraph

NPU_MANIFEST_NAME = "npu/npu_manifest.json"
NPU_MANIFEST_VERSION = 1

STATE_ROLES = {
    "conv_state": ("conv", "replace", None),
    "key_cache": ("key", "append", 3),
    "value_cache": ("value", "append", 2),
}
"""Role → kind of state, how the host brings it forward, and the axis of the columns."""


def port_entry(port: Port, quantization: Mapping[str, QuantizationParameters] | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": port.name,
        "role": port.role,
        "dtype": port.value.dtype,
        "shape": list(port.value.shape),
    }
    if quantization is not None and port.value.dtype == "float32":
        used = quantization[port.value.name]
        entry |= {"dtype": used.dtype, "scale": used.scale, "zero_point": used.zero_point}
    if port.layer is not None:
        entry["layer"] = port.layer
    return entry


def graph_entry(
    declared: DeclaredGraph,
    folder: str,
    quantization: Mapping[str, QuantizationParameters] | None,
    weight_bytes: Mapping[str, int],
) -> dict[str, Any]:
    graph = declared.graph
    return {
        "phase": declared.phase.value,
        "context_length": declared.context_length,
        "tokens": declared.tokens,
        "file": f"{folder}/{declared.file}",
        "nodes": len(graph.nodes),
        "op_types": dict(sorted(Counter(node.op_type for node in graph.nodes).items())),
        "weights": _weights_by_node(graph, weight_bytes),
        "inputs": [port_entry(port, quantization) for port in graph.inputs],
        "outputs": [port_entry(port, quantization) for port in graph.outputs],
    }


def _weights_by_node(graph: StaticGraph, weight_bytes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Nodes that read weights, with the bytes of them in the file; nodes that read the same ones share the bytes."""
    entries = []
    users = Counter(value.name for node in graph.nodes for value in node.inputs)
    for node in graph.nodes:
        names = [value.name for value in node.inputs if value.name in graph.weights]
        size = sum((weight_bytes.get(name, 0) + weight_bytes.get(f"{name}.scale", 0)) // users[name] for name in names)
        if names:
            op_type = "Gather" if node.op_type == PACKED_GATHER else node.op_type
            entries.append({"node": node.name, "op_type": op_type, "bytes": size})
    return entries


def part_entry(part: PartPlan, graphs: Sequence[dict[str, Any]], file_bytes: int, folder: str) -> dict[str, Any]:
    by_phase = {
        phase: max(sum(node["bytes"] for node in graph["weights"]) for graph in graphs if graph["phase"] == phase)
        for phase in ("prefill", "decode")
    }
    return {
        "index": part.index,
        "name": f"part{part.index}",
        "layers": [part.first_layer, part.last_layer],
        "head": part.head,
        "weight_bytes": {**by_phase, "file": file_bytes},
        "compiled_weight_bytes": part.weight_bytes,
        "token_bytes": part.token_bytes,
        "weights_file": f"{folder}/{WEIGHTS_FILE}",
        "graphs": list(graphs),
    }


def state_entries(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a state: the same in every graph of its part."""
    states = []
    for part in parts:
        graph = part["graphs"][0]
        outputs = {(entry["role"], entry["layer"]): entry for entry in graph["outputs"] if "layer" in entry}
        for entry in graph["inputs"]:
            if entry["role"] not in STATE_ROLES:
                continue
            kind, update, axis = STATE_ROLES[entry["role"]]
            state: dict[str, Any] = {
                "layer": entry["layer"],
                "part": part["index"],
                "kind": kind,
                "input": entry["name"],
                "output": outputs[entry["role"], entry["layer"]]["name"],
                "update": update,
            }
            states.append(state if axis is None else {**state, "axis": axis})
    return states
