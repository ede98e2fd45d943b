"""Tokens per second to expect of a chip's NPU and CPU: a projection from bytes and bandwidth, not a measurement.

Decoding reads every touched weight once per token, so a token takes the time of its bytes, plus the launches of the
parts. Prefill is bounded by arithmetic. The shares of bandwidth and arithmetic that are reached come from figures that
others have published for models on the same chips (``PUBLISHED``); every assumption is printed with the result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..artifact.graph_weights import TensorKind
from ..checkpoint.config import LfmConfig
from ..export.decoder import model_weights
from ..hardware.chips import CHIPS, Chip
from ..quantize.tensor_groups import tensor_groups

PLANS = ("npu", "hybrid", "cpu")
WEIGHT_BITS = {"int4": 4.5, "int8": 8.1}
"""Bits of a weight with its scales: int4 in blocks of 32 with 16-bit scales, int8 per channel."""
_CPU_BITS = 4.5
_LARGEST_PART = 3_000_000_000


@dataclass(frozen=True)
class ChipSpeed:
    """What a chip reaches.

    npu_bandwidth_share, cpu_bandwidth_share: of the memory's bandwidth, while decoding. npu_operations: multiplications
    and additions per second in prefill at 16-bit activations. launch_s: from the call of one compiled part
    to its start, and back.
    """

    npu_bandwidth_share: float
    cpu_bandwidth_share: float
    npu_operations: float
    cpu_operations: float
    launch_s: float = 0.5e-3


# From PUBLISHED: 12.9 tokens/s x 4.8 GB = 62 GB/s of the 8 Elite's 85; 10.0 x 4.8 = 48 of the X Elite's 135. The NPU
# of a PC sees no more bandwidth than that of a phone of its generation. Prefill: 128 tokens of an 8 B model in 0.159 s.
# CPUs: about 30 tokens/s of LFM2.5-8B-A1B, 0.95 GB a token, on phones of 60 to 85 GB/s.
_PHONE = ChipSpeed(0.73, 0.38, 1.2e13, 0.5e12)
_PC = ChipSpeed(0.36, 0.50, 0.9e13, 1.5e12)
# A gathered expert is read, written to a buffer, and read from there. The buffer is small enough to stay near the NPU
# half of the time.
_GATHER_PASSES = 2.0
# Prefill of chips without a published figure, relative to the 8 Elite's, by the generation of their NPU.
_GENERATION = {69: 0.3, 73: 0.5, 75: 0.75, 79: 1.0, 81: 1.3}


@dataclass(frozen=True)
class PublishedFigure:
    """Someone else's measurement. weight_bytes: read per token; parameters: multiplied in prefill."""

    model: str
    chip: str
    plan: str
    tokens_per_s: float
    weight_bytes: float
    parameters: float
    first_chunk_s: float | None
    source: str


PUBLISHED = (
    PublishedFigure(
        "Llama 3.1 8B class, w4a16", "sm8750", "npu", 12.93, 4.8e9, 8.0e9, 0.159,
        "Qualcomm AI Hub model cards, QNN context binaries, 8 Elite QRD",
    ),
    PublishedFigure(
        "Llama 3.1 8B class, w4a16", "x-elite", "npu", 10.04, 4.8e9, 8.0e9, 0.212,
        "Qualcomm AI Hub model cards, QNN context binaries, X Elite CRD",
    ),
    PublishedFigure(
        "Mistral 7B v0.3, w4a16", "sm8750", "npu", 10.73, 4.15e9, 7.2e9, 0.18,
        "Qualcomm AI Hub model cards, QNN, 8 Elite QRD",
    ),
    PublishedFigure(
        "LFM2.5-8B-A1B, int4", "sm8750", "cpu", 30.0, 0.95e9, 1.7e9, None,
        "Liquid AI: about 30 tokens/s on phones, CPU",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class PartCost:
    """Bytes that one token moves in one part: weights, KV cache, activations in and out."""

    layers: tuple[int, int]
    head: bool
    weight_bytes: float
    cache_bytes: float

    @property
    def bytes(self) -> float:
        """Bytes that decoding one token moves."""
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True)
class Projection:
    """One model on one chip by one plan. launch_share: of a decoded token's time, what starting the parts takes."""

    chip: str
    plan: str
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    bytes_per_token: float
    parts: int
    launch_share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, labelled."""
        return {**asdict(self), "kind": "projection"}


def speed_of(chip: Chip) -> ChipSpeed:
    """What is assumed of a chip."""
    base = _PC if chip.kind == "pc" else _PHONE
    factor = _GENERATION[chip.htp_arch] / (_GENERATION[73] if chip.kind == "pc" else 1.0)
    return ChipSpeed(
        base.npu_bandwidth_share, base.cpu_bandwidth_share, base.npu_operations * factor, base.cpu_operations
    )


def touched_bytes(config: LfmConfig, bits: float, layer: int | None = None, expert_passes: float = 1.0) -> float:
    """Bytes of the weights that decoding one token reads, in one ``layer`` or in the LM head (None).

    expert_passes: how often the bytes of a chosen expert are moved.
    """
    share = config.num_experts_per_tok / config.num_experts if config.is_moe else 1.0
    matrices = _matrices(config).get(layer, _Matrices())
    return (matrices.common + expert_passes * share * matrices.experts) * bits / 8


def stored_bytes(config: LfmConfig, bits: float, layer: int | None = None) -> float:
    """Bytes of all weights of a ``layer`` or of the LM head (None)."""
    matrices = _matrices(config).get(layer, _Matrices())
    return (matrices.common + matrices.experts) * bits / 8


def part_costs(
    config: LfmConfig, weights: str, context: int, budget: float = _LARGEST_PART, expert_passes: float = 1.0
) -> list[PartCost]:
    """Parts of at most ``budget`` stored bytes, filled in order, with what a token moves in each.

    weights: "int4" or "int8". context: tokens in the cache, whose keys and values (8-bit) are read whole.
    """
    bits = WEIGHT_BITS[weights]
    parts: list[PartCost] = []
    first, moved, cache, held = 0, 0.0, 0.0, 0.0
    layers = [*range(config.num_hidden_layers), None]
    for layer in layers:
        size = stored_bytes(config, bits, layer)
        if held and held + size > budget:
            end = config.num_hidden_layers if layer is None else layer
            parts.append(PartCost((first, end), False, moved, cache))
            first, moved, cache, held = end, 0.0, 0.0, 0.0
        moved += touched_bytes(config, bits, layer, expert_passes)
        held += size
        if layer is not None and config.layer_types[layer] == "full_attention":
            cache += 2 * config.kv_dim * context
    parts.append(PartCost((first, config.num_hidden_layers), True, moved, cache))
    return parts


def project(
    config: LfmConfig, chip: Chip, plan: str, *, weights: str = "int4", context: int = 512, chunk: int = 128
) -> Projection:
    """What ``plan`` gives on ``chip``: decode and prefill in tokens per second."""
    speed = speed_of(chip)
    on_npu = plan == "npu"
    parts = part_costs(config, weights, context, expert_passes=_GATHER_PASSES if on_npu else 1.0)
    bits = WEIGHT_BITS[weights] if on_npu else _CPU_BITS
    moved = sum(part.bytes for part in parts)
    if not on_npu:  # the CPU's cache is in float32
        moved = sum(part.weight_bytes for part in parts) * bits / WEIGHT_BITS[weights]
        moved += sum(part.cache_bytes for part in parts) * 4
    share = speed.npu_bandwidth_share if on_npu else speed.cpu_bandwidth_share
    launches = len(parts) * speed.launch_s if on_npu else 0.0
    seconds = moved / (share * chip.memory_bandwidth) + launches
    prefill = _prefill_seconds(config, chip, speed, plan, weights, chunk, len(parts))
    return Projection(chip.name, plan, 1 / seconds, chunk / prefill, moved, len(parts), launches / seconds)


def projections(config: LfmConfig, chips: Sequence[Chip] = CHIPS, **options: Any) -> list[Projection]:
    """Every plan on every chip."""
    return [project(config, chip, plan, **options) for chip in chips for plan in PLANS]


def assumptions(weights: str = "int4", context: int = 512, chunk: int = 128) -> list[str]:
    """The assumptions, a line each."""
    phone, pc = _PHONE, _PC
    return [
        "A projection from bytes and bandwidth. Nothing was measured on a chip.",
        f"Weights {weights} on the NPU ({WEIGHT_BITS[weights]} bits with scales), int4 on the CPU; only the experts "
        "that a token chooses are read; the KV cache is 8-bit on the NPU, float32 on the CPU.",
        f"{context} tokens in the cache; prefill in chunks of {chunk}, there over all experts of a layer.",
        f"Share of the memory's bandwidth while decoding: NPU {phone.npu_bandwidth_share:.0%} on phones and "
        f"{pc.npu_bandwidth_share:.0%} on PCs, CPU {phone.cpu_bandwidth_share:.0%} and {pc.cpu_bandwidth_share:.0%}.",
        f"The bytes of a chosen expert count {_GATHER_PASSES:g} times on the NPU: it is gathered into a buffer first.",
        f"{phone.launch_s * 1e3:g} ms for each part of the model to be started.",
        f"Prefill: {phone.npu_operations / 1e12:g} and {pc.npu_operations / 1e12:g} T operations/s on the NPUs with "
        f"published figures (8 Elite, X Elite), others scaled by generation; CPUs {phone.cpu_operations / 1e12:g} and "
        f"{pc.cpu_operations / 1e12:g} T operations/s, assumed.",
        "The embedding's lookup, the sampler and thermal limits are left out.",
    ]


def _prefill_seconds(
    config: LfmConfig, chip: Chip, speed: ChipSpeed, plan: str, weights: str, chunk: int, parts: int
) -> float:
    if plan == "cpu":
        return 2 * chunk * _multiplied(config, dense=False) / speed.cpu_operations
    bits = WEIGHT_BITS[weights]
    layers = [*range(config.num_hidden_layers), None]
    read = sum(stored_bytes(config, bits, layer) for layer in layers)
    arithmetic = 2 * chunk * _multiplied(config, dense=True) / speed.npu_operations
    return max(arithmetic, read / (speed.npu_bandwidth_share * chip.memory_bandwidth)) + parts * speed.launch_s


def _multiplied(config: LfmConfig, *, dense: bool) -> float:
    """Weights that a prompt's token is multiplied with. dense: all experts. The head serves one token of a chunk."""
    bits = 8.0  # a byte a weight: bytes are then a count
    count = stored_bytes if dense else touched_bytes
    return sum(count(config, bits, layer) for layer in range(config.num_hidden_layers))


@dataclass(frozen=True)
class _Matrices:
    """Elements of the matrices of a layer: those that every token is multiplied with, and those of all experts."""

    common: int = 0
    experts: int = 0


@functools.lru_cache(maxsize=16)
def _matrices(config: LfmConfig) -> dict[int | None, _Matrices]:
    """By layer; None: the LM head. Norms, kernels and the router are a few MB in all and left out."""
    by_layer: dict[int | None, _Matrices] = {}
    for group in tensor_groups(model_weights(config, blocks=True)):
        if group.kind is TensorKind.EMBEDDING and not config.tie_word_embeddings:
            continue  # one row a token
        old, count = by_layer.get(group.layer, _Matrices()), group.parameters
        is_experts = group.kind is TensorKind.EXPERTS
        by_layer[group.layer] = _Matrices(
            old.common + (0 if is_experts else count), old.experts + (count if is_experts else 0)
        )
    return by_layer
