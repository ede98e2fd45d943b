"""Cuts a model into parts that the compiler and the NPU can take: ranges of layers under a budget of weight bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from ...config import LfmConfig
from ...errors import InputError
from .part_graph import MoeForm, Phase

WEIGHT_BUDGET = 3_000_000_000
"""Bytes of weights a graph: the compiler fails somewhere above 3.5 GB."""

COMPILE_MEMORY_FACTOR = 5
"""Host memory that compiling takes, as a multiple of the weights: 5.0 measured with 1.15 GB of int4."""


class NpuWeights(Enum):
    """How the large matrices are stored."""

    INT8 = "int8"
    INT4 = "int4"
    FLOAT = "float"


BITS = {NpuWeights.INT8: 8.0, NpuWeights.INT4: 4.0 + 4.0 / 32, NpuWeights.FLOAT: 32.0}
"""Bits a weight as compiled; int4 with the 4-bit scale of its block."""

COMPILE_SECONDS_PER_GB = {NpuWeights.INT8: 40.0, NpuWeights.INT4: 85.0, NpuWeights.FLOAT: 40.0}
"""Measured on two desktop cores at real width; a projection for any other machine."""


@dataclass(frozen=True)
class Part:
    """Layers first_layer … last_layer - 1, and the LM head where ``head``."""

    index: int
    first_layer: int
    last_layer: int
    head: bool
    weight_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of weights as compiled, by phase."""
    token_bytes: int = 0
    """Bytes of weights that decode reads a token: all but the experts that are not chosen."""
    compile_seconds: float = 0.0
    """Both graphs, as a projection."""

    @property
    def compile_memory(self) -> int:
        """Bytes of host memory that compiling the larger graph takes, as a projection."""
        return COMPILE_MEMORY_FACTOR * max(self.weight_bytes.values())


def plan_parts(
    config: LfmConfig,
    weights: NpuWeights = NpuWeights.INT8,
    *,
    weight_budget: int = WEIGHT_BUDGET,
    memory_budget: int | None = None,
    decode: MoeForm = MoeForm.GATHERED,
    prefill: MoeForm = MoeForm.WIDE,
) -> list[Part]:
    """Parts of as many layers as fit, in order; the LM head goes with the last layers, or alone where it must.

    weight_budget: bytes of weights in one graph; memory_budget: host memory for compiling, about five times that.
    InputError where one layer does not fit.
    """
    budget = weight_budget if memory_budget is None else min(weight_budget, memory_budget // COMPILE_MEMORY_FACTOR)
    sizes = [_layer_bytes(config, i, weights, prefill, decode) for i in range(config.num_hidden_layers)]
    head = math.ceil(config.hidden_size * config.vocab_size * BITS[weights] / 8)
    for i, size in enumerate([*sizes, _Bytes(head, head, head)]):
        if size.largest > budget:
            what = f"layer {i}" if i < len(sizes) else "the LM head"
            raise InputError(
                f"{what} has {size.largest / 1e9:.2f} GB of weights, a part may have {budget / 1e9:.2f} GB; raise the "
                "budget or choose int4 weights"
            )
    parts: list[tuple[int, int, bool, _Bytes]] = []
    first, total = 0, _Bytes()
    for i, size in enumerate(sizes):
        if i > first and (total + size).largest > budget:
            parts.append((first, i, False, total))
            first, total = i, _Bytes()
        total += size
    last = _Bytes(head, head, head)
    if (total + last).largest <= budget:
        parts.append((first, len(sizes), True, total + last))
    else:
        parts += [(first, len(sizes), False, total), (len(sizes), len(sizes), True, last)]
    return [_part(index, *part, weights) for index, part in enumerate(parts)]


@dataclass(frozen=True)
class _Bytes:
    prefill: int = 0
    decode: int = 0
    token: int = 0

    def __add__(self, other: _Bytes) -> _Bytes:
        return _Bytes(self.prefill + other.prefill, self.decode + other.decode, self.token + other.token)

    @property
    def largest(self) -> int:
        return max(self.prefill, self.decode)


def _part(index: int, first: int, last: int, head: bool, size: _Bytes, weights: NpuWeights) -> Part:
    return Part(
        index,
        first,
        last,
        head,
        {Phase.PREFILL.value: size.prefill, Phase.DECODE.value: size.decode},
        size.token,
        round((size.prefill + size.decode) / 1e9 * COMPILE_SECONDS_PER_GB[weights], 1),
    )


def _layer_bytes(config: LfmConfig, layer: int, weights: NpuWeights, prefill: MoeForm, decode: MoeForm) -> _Bytes:
    hidden = config.hidden_size
    if config.layer_types[layer] == "conv":
        elements = 4 * hidden * hidden
    else:
        elements = hidden * (2 * config.q_dim + 2 * config.kv_dim)
    if not config.is_moe_layer(layer):
        size = math.ceil((elements + 3 * hidden * config.ff_dim) * BITS[weights] / 8)
        return _Bytes(size, size, size)
    common = math.ceil(elements * BITS[weights] / 8) + 2 * hidden * config.num_experts
    expert = 3 * hidden * config.moe_intermediate_size
    sizes = {MoeForm.WIDE: BITS[weights], MoeForm.GATHERED: 8.0, MoeForm.PACKED: 4.0}
    if weights is NpuWeights.FLOAT:
        sizes = dict.fromkeys(sizes, BITS[weights])
    in_prefill, in_decode = (math.ceil(expert * sizes[form] / 8) for form in (prefill, decode))
    read = config.num_experts if decode is MoeForm.WIDE else config.num_experts_per_tok
    return _Bytes(
        common + config.num_experts * in_prefill,
        common + config.num_experts * in_decode,
        common + read * in_decode,
    )
