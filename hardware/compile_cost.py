"""What compiling graphs for the NPU takes: memory and seconds from their weights, one formula for every plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LARGEST_GRAPH_BYTES = 3_500_000_000
"""Weights of one graph; above it the compiler fails with code 1002."""

# Measured with graphs of LFM2.5-8B-A1B's widths on two x86-64 cores with QAIRT 2.51:
# tests/hardware/test_compile_cost.py.
_BASE_MEMORY = 300_000_000
_MEMORY_PER_BYTE = 5.5
_BASE_SECONDS = 2.0
_SECONDS_PER_GB = {"int8": 40.0, "int4": 110.0, "float": 40.0}
_IN_TURN = 4.0
"""Prefill that takes expert after expert has many more operators."""

WITHIN = 2.0
"""Memory differs from the plan by no more than this factor, and seconds on such a machine with nothing else to do."""


@dataclass(frozen=True)
class GraphToCompile:
    """weight_bytes: as compiled. weights: how they are stored, "int8", "int4" or "float"."""

    weight_bytes: int
    weights: str
    experts_in_turn: bool = False


def compile_memory(graphs: Sequence[GraphToCompile], *, shared: bool = True) -> int:
    """Bytes of host memory.

    shared: for one binary, where the compiler holds all graphs until the last is done; else one after another.
    """
    sizes = [graph.weight_bytes for graph in graphs]
    return round(_BASE_MEMORY + _MEMORY_PER_BYTE * (sum(sizes) if shared else max(sizes)))


def compile_seconds(graphs: Sequence[GraphToCompile]) -> float:
    """Seconds for all of them on two cores."""
    return sum(_BASE_SECONDS + graph.weight_bytes / 1e9 * _rate(graph) for graph in graphs)


def _rate(graph: GraphToCompile) -> float:
    rate = _SECONDS_PER_GB.get(graph.weights, max(_SECONDS_PER_GB.values()))
    return rate * _IN_TURN if graph.experts_in_turn else rate
