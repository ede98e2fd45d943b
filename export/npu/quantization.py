"""Which scale and zero point every tensor of the static graphs gets, from the ranges that calibration saw.

Tensors between which data only moves, past and new states among them, are one group with one scale and zero point:
a state goes from step to step, and from prefill to decode, without being quantized again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .blocks import SCORE_MARGIN
from .static_graph import PACKED_GATHER, Array, StaticGraph, WeightKind

DATA_MOVEMENT = frozenset(
    {"Reshape", "Transpose", "Slice", "Concat", "Gather", "GatherElements", "ScatterElements", "TopK"}
)

CACHE_ROLES = ("key_cache", "value_cache")
"""What is kept in 8 bits."""

SMALLEST_RANGE = 1e-6
"""A tensor that was always 0 gets this range: a scale must not be 0."""

HEADROOM = 1.25
"""16-bit ranges are this much wider than what calibration saw, where it saw texts like those to come. Not wider: the
NPU's own rounding grows with the range, and routers choose between near experts."""

FOREIGN_HEADROOM = 4.0
"""The same where it saw other texts, whose extremes may be several times smaller."""

ROUTER_HEADROOM = 1.25
"""Of the router's logits: their sigmoid hardly sees the clipping, the choice between near experts sees every step."""

EMBEDDINGS = "hidden_states.embed"
"""Its range is that of the whole table: nothing is clipped."""

Range = tuple[float, float]


@dataclass(frozen=True)
class QuantizationParameters:
    """value = (code - zero_point) * scale; dtype "uint16", "uint8" or "int8"."""

    dtype: str
    scale: float
    zero_point: int

    @classmethod
    def over(cls, low: float, high: float, dtype: str) -> QuantizationParameters:
        """The parameters whose codes cover low … high and 0, which is exact."""
        low, high = min(low, 0.0), max(high, 0.0, min(low, 0.0) + SMALLEST_RANGE)
        steps = int(np.iinfo(dtype).max)
        scale = float(np.float32((high - low) / steps))
        return cls(dtype, scale, min(max(round(-low / scale), 0), steps))

    @classmethod
    def symmetric(cls, magnitude: float) -> QuantizationParameters:
        """16 bits about 0, -magnitude … magnitude."""
        return cls("uint16", float(np.float32(max(magnitude, SMALLEST_RANGE) / 32767)), 32768)

    def codes(self, values: Array) -> npt.NDArray[np.generic]:
        """The nearest codes, in ``dtype`` and of the same shape; values out of range get the lowest or highest code."""
        info = np.iinfo(self.dtype)
        steps = np.rint(values.astype(np.float64) / self.scale) + self.zero_point
        result: npt.NDArray[np.generic] = np.clip(steps, info.min, info.max).astype(self.dtype)
        return result

    def values(self, codes: npt.NDArray[np.generic]) -> Array:
        """The float32 values that codes stand for, of the same shape."""
        result: Array = (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)
        return result


def assign(
    graphs: Iterable[StaticGraph], ranges: Mapping[str, Range], headroom: float = HEADROOM
) -> dict[str, QuantizationParameters]:
    """Parameters by name for every float tensor of ``graphs`` that is no LINEAR or EXPERTS weight.

    headroom: by how much 16-bit ranges are wider than ``ranges``. InputError where a tensor has no range: the
    calibration did not run this graph.
    """
    graphs = list(graphs)
    known = {name: (low * headroom, high * headroom) for name, (low, high) in ranges.items()}
    known |= {name: ranges[name] for name in (EMBEDDINGS,) if name in ranges}
    known |= {name: _router_range(ranges[name]) for name in ranges if name.endswith("feed_forward.gate")}
    cached = {port.value.name for graph in graphs for port in graph.inputs if port.role in CACHE_ROLES}
    exact = {name: bounds for graph in graphs for name, bounds in graph.fixed_ranges.items()}
    for graph in graphs:
        for name, weight in graph.weights.items():
            if weight.kind is WeightKind.TABLE and name not in known:
                table = weight.rows(0, 0)
                known[name] = (float(table.min()), float(table.max()))
    groups = _Groups()
    for graph in graphs:
        _join(graph, groups)
    symmetric = {name for graph in graphs for name in _matmul_tables(graph)} | {"cos", "sin"}
    assigned: dict[str, QuantizationParameters] = {}
    for names in groups.members():
        if cached & set(names):
            chosen = QuantizationParameters.over(*_union(names, ranges), "uint8")
        else:
            low, high = _union(names, exact if exact.keys() & set(names) else known)
            chosen = QuantizationParameters.over(low, high, "uint16")
            if symmetric & set(names):
                chosen = QuantizationParameters.symmetric(max(-low, high))
        assigned |= dict.fromkeys(names, chosen)
    for graph in graphs:
        for node in graph.nodes:
            if node.name.endswith(".masked_scores"):
                low, high = _bounds(assigned[node.inputs[0].name])
                assigned[node.name] = QuantizationParameters.over(low - SCORE_MARGIN, high, "uint16")
            elif node.name.endswith(".router.biased"):  # a sigmoid and the bias
                low, high = _bounds(assigned[node.inputs[1].name])
                biased = QuantizationParameters.over(low, 1 + high, "uint16")
                assigned |= dict.fromkeys(groups.with_name(node.name), biased)
    return assigned


def _router_range(seen: Range) -> Range:
    return seen[0] * ROUTER_HEADROOM, seen[1] * ROUTER_HEADROOM


def _union(names: list[str], ranges: Mapping[str, Range]) -> Range:
    bounds = [ranges[name] for name in names if name in ranges]
    if not bounds:
        raise InputError(f"the calibration saw nothing of {names[0]}; calibrate with longer texts")
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _bounds(used: QuantizationParameters) -> Range:
    """The smallest and the largest number that 16-bit codes stand for."""
    return -used.zero_point * used.scale, (65535 - used.zero_point) * used.scale


def _matmul_tables(graph: StaticGraph) -> set[str]:
    """16-bit weights of a MatMul: the compiler wants them symmetric."""
    tables = {name for name, weight in graph.weights.items() if weight.kind is WeightKind.TABLE}
    return {node.inputs[1].name for node in graph.nodes if node.op_type == "MatMul"} & tables


def _join(graph: StaticGraph, groups: _Groups) -> None:
    own = {name for name, weight in graph.weights.items() if weight.kind is not WeightKind.TABLE}

    def floats(values: Iterable[object]) -> list[str]:
        return [v.name for v in values if v.dtype == "float32" and v.name not in own]  # type: ignore[attr-defined]

    for port in graph.inputs:
        if port.value.dtype == "float32":
            groups.root(port.value.name)
    for node in graph.nodes:
        if node.op_type == PACKED_GATHER:
            continue
        if node.op_type == "Gather" and node.inputs[0].name in own:
            continue
        inputs, outputs = floats(node.inputs), floats(node.outputs)
        for name in [*inputs, *outputs]:
            groups.root(name)
        if node.op_type in DATA_MOVEMENT:
            for name in [*inputs, *outputs][1:]:
                groups.join(inputs[0], name)


class _Groups:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self.parents: dict[str, str] = {}

    def root(self, name: str) -> str:
        parent = self.parents.setdefault(name, name)
        if parent != name:
            parent = self.parents[name] = self.root(parent)
        return parent

    def members(self) -> list[list[str]]:
        """The sets, their names in order."""
        sets: dict[str, list[str]] = {}
        for name in sorted(self.parents):
            sets.setdefault(self.root(name), []).append(name)
        return list(sets.values())

    def with_name(self, name: str) -> list[str]:
        return [other for other in self.parents if self.root(other) == self.root(name)]

    def join(self, one: str, other: str) -> None:
        self.parents[self.root(other)] = self.root(one)
