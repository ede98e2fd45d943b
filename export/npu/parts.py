"""Cuts a model into parts that the compiler and the NPU can take: ranges of layers under a budget of weight bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from ...checkpoint.config import LfmConfig
from ...errors import InputError
from ...hardware.compile_cost import GraphToCompile, compile_memory, compile_seconds
from ...reporting.byte_size import byte_size
from .part_graph import MoeForm, Phase

WEIGHT_BUDGET = 3_000_000_000
"""Bytes of weights a graph: the compiler fails somewhere above 3.5 GB."""


class NpuWeights(Enum):
    """How the large matrices are stored."""

    INT8 = "int8"
    INT4 = "int4"
    FLOAT = "float"


BITS = {NpuWeights.INT8: 8.0, NpuWeights.INT4: 4.0 + 4.0 / 32, NpuWeights.FLOAT: 32.0}
"""Bits a weight as compiled; int4 with the 4-bit scale of its block."""


@dataclass(frozen=True)
class PartPlan:
    """Layers first_layer … last_layer - 1, and the LM head where ``head``."""

    index: int
    first_layer: int
    last_layer: int
    head: bool
    weight_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of weights as compiled, by phase."""
    token_bytes: int = 0
    """Bytes of weights that decode reads a token: all but the experts that are not chosen."""
    binary_bytes: int = 0
    """Of the binary of both graphs: what they store in the same way is there once."""
    compile_seconds: float = 0.0
    """Seconds for compiling all graphs, as a projection."""
    compile_memory: int = 0
    """Bytes of host memory for compiling all graphs to one binary, as a projection."""


def plan_parts(
    config: LfmConfig,
    weights: NpuWeights = NpuWeights.INT8,
    *,
    weight_budget: int = WEIGHT_BUDGET,
    memory_budget: int | None = None,
    decode: MoeForm = MoeForm.GATHERED,
    prefill: MoeForm = MoeForm.WIDE,
    lengths: int = 1,
) -> list[PartPlan]:
    """Parts of as many layers as fit, in order; the LM head goes with the last layers, or alone where it must.

    weight_budget: bytes of weights in one graph; memory_budget: host memory for compiling a part; lengths: number of
    context lengths, each of which has two graphs. InputError where one layer does not fit.
    """
    in_turn = config.is_moe and prefill is not MoeForm.WIDE
    budget = _Budget(weight_budget, memory_budget, _Compiled(weights.value, in_turn, lengths))
    sizes = [_layer_bytes(config, i, weights, prefill, decode) for i in range(config.num_hidden_layers)]
    head = math.ceil(config.hidden_size * config.vocab_size * BITS[weights] / 8)
    last = _Bytes.same(head)
    for i, size in enumerate([*sizes, last]):
        budget.require(size, f"layer {i}" if i < len(sizes) else "the LM head")
    parts: list[tuple[int, int, bool, _Bytes]] = []
    first, total = 0, _Bytes()
    for i, size in enumerate(sizes):
        if i > first and not budget.holds(total + size):
            parts.append((first, i, False, total))
            first, total = i, _Bytes()
        total += size
    if budget.holds(total + last):
        parts.append((first, len(sizes), True, total + last))
    else:
        parts += [(first, len(sizes), False, total), (len(sizes), len(sizes), True, last)]
    return [_part(index, *part, budget.compiled) for index, part in enumerate(parts)]


@dataclass(frozen=True)
class _Bytes:
    prefill: int = 0
    decode: int = 0
    token: int = 0
    binary: int = 0
    """One copy of what both graphs store in the same way."""

    @classmethod
    def same(cls, size: int) -> _Bytes:
        """Weights that both graphs read in full."""
        return cls(size, size, size, size)

    def __add__(self, other: _Bytes) -> _Bytes:
        return _Bytes(
            self.prefill + other.prefill,
            self.decode + other.decode,
            self.token + other.token,
            self.binary + other.binary,
        )


@dataclass(frozen=True)
class _Compiled:
    """What part sizes are compiled as: graphs of both phases for ``lengths`` context lengths."""

    weights: str
    in_turn: bool
    lengths: int

    def graphs(self, size: _Bytes) -> list[GraphToCompile]:
        prefill = GraphToCompile(size.prefill, self.weights, self.in_turn)
        return [prefill, GraphToCompile(size.decode, self.weights)] * self.lengths


@dataclass(frozen=True)
class _Budget:
    weights: int
    memory: int | None
    compiled: _Compiled

    def holds(self, size: _Bytes) -> bool:
        return max(size.prefill, size.decode) <= self.weights and (
            self.memory is None or compile_memory(self.compiled.graphs(size)) <= self.memory
        )

    def require(self, size: _Bytes, what: str) -> None:
        """InputError where a part of nothing but ``what`` would be too large."""
        if self.holds(size):
            return
        largest, memory = max(size.prefill, size.decode), compile_memory(self.compiled.graphs(size))
        if largest > self.weights:
            excess = f"{what} has {byte_size(largest)} of weights, a part may have {byte_size(self.weights)}"
        else:
            excess = f"compiling {what} takes about {byte_size(memory)} of memory, more than the budget"
        raise InputError(f"{excess}; raise the budget or choose int4 weights")


def _part(index: int, first: int, last: int, head: bool, size: _Bytes, compiled: _Compiled) -> PartPlan:
    graphs = compiled.graphs(size)
    return PartPlan(
        index,
        first,
        last,
        head,
        {Phase.PREFILL.value: size.prefill, Phase.DECODE.value: size.decode},
        size.token,
        size.binary,
        round(compile_seconds(graphs), 1),
        compile_memory(graphs),
    )


def _layer_bytes(config: LfmConfig, layer: int, weights: NpuWeights, prefill: MoeForm, decode: MoeForm) -> _Bytes:
    hidden = config.hidden_size
    if config.layer_types[layer] == "conv":
        elements = 4 * hidden * hidden
    else:
        elements = hidden * (2 * config.q_dim + 2 * config.kv_dim)
    if not config.is_moe_layer(layer):
        size = math.ceil((elements + 3 * hidden * config.ff_dim) * BITS[weights] / 8)
        return _Bytes.same(size)
    common = math.ceil(elements * BITS[weights] / 8) + 2 * hidden * config.num_experts
    expert = 3 * hidden * config.moe_intermediate_size
    sizes = {MoeForm.WIDE: BITS[weights], MoeForm.GATHERED: 8.0, MoeForm.PACKED: 4.0}
    if weights is NpuWeights.FLOAT:
        sizes = dict.fromkeys(sizes, BITS[weights])
    in_prefill, in_decode = (math.ceil(expert * sizes[form] / 8) for form in (prefill, decode))
    read = config.num_experts if decode is MoeForm.WIDE else config.num_experts_per_tok
    copies = in_decode if prefill is decode else in_prefill + in_decode
    return _Bytes(
        common + config.num_experts * in_prefill,
        common + config.num_experts * in_decode,
        common + read * in_decode,
        common + config.num_experts * copies,
    )
