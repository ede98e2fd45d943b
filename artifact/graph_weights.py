"""The table of graph weights: what each initializer of a model is, and which tensors of the checkpoint it is made of.

A table's entries are made where the graph is declared (export/) and handed on to those who calibrate, quantize or read
weights. Whoever has a graph but no table, such as an inspection, knows a weight's kind by ``tensor_kind``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

SCALES, ZERO_POINTS = "_scales", "_zero_points"
"""What follows a weight's name in the names of the other initializers of its blocks."""


class TensorKind(Enum):
    """What a weight is for. EMBEDDING, LM_HEAD, CONV, ATTENTION, FEED_FORWARD and EXPERTS may be stored in blocks."""

    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    NORM = "norm"
    CONV = "conv"
    """The projections around a short convolution."""
    SHORT_CONV = "short_conv"
    """Its kernel and the kernel's bias."""
    BIAS = "bias"
    """Of a projection around a short convolution."""
    ATTENTION = "attention"
    FEED_FORWARD = "feed_forward"
    ROUTER = "router"
    EXPERTS = "experts"
    ROTARY = "rotary"


class Layout(Enum):
    """How a weight's values follow from those of its sources."""

    ROWS = "rows"
    """The sources' rows below one another."""
    PAIRS = "pairs"
    """Rows of two sources in turn, of experts two after two: row 2m is the first's row m, row 2m+1 the second's."""
    TAPS = "taps"
    """[L, hidden] from a convolution's [hidden, 1, L]: one row per tap."""
    COSINES = "cosines"
    """Computed: of the rotary angles, a row per position."""
    SINES = "sines"
    ZEROS = "zeros"
    """Computed: what stands for a tensor that the checkpoint does not have."""


@dataclass(frozen=True)
class GraphWeight:
    """One weight of a graph: a vector [columns], a matrix [rows, columns], or matrices of experts [E, ·, columns].

    ``sources``: the checkpoint's tensors that it is made of, of experts one expert's after the other's; they see the
    same input, those of experts their own expert's. ``group``: that of its block format (quantize/tensor_groups.py),
    None where it stays float. ``common_input``: of experts, the checkpoint's matrix that every token's input to them
    goes into, the router; None where each has inputs of its own. ``layer``: None outside of the layers.
    """

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    layout: Layout = Layout.ROWS
    group: str | None = None
    layer: int | None = None
    common_input: str | None = None

    @property
    def rows(self) -> int:
        """Of all experts; 1 of a vector."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Elements of a row, or of the whole vector."""
        return self.shape[-1]

    @property
    def experts(self) -> int:
        """How many it holds; 0 of any other weight."""
        return self.shape[0] if len(self.shape) == 3 else 0

    @property
    def rows_per_expert(self) -> int:
        """0 of a weight that holds none."""
        return self.shape[1] if len(self.shape) == 3 else 0

    def expert_of_row(self, row: int) -> int | None:
        """Whose row it is; None of a weight that holds no experts."""
        return row // self.rows_per_expert if self.experts else None

    def sources_of(self, expert: int) -> tuple[str, ...]:
        """Those that one expert's rows are made of."""
        count = len(self.sources) // self.experts
        return self.sources[expert * count : (expert + 1) * count]

    def sources_by_expert(self) -> Iterator[tuple[int | None, tuple[str, ...]]]:
        """(expert, its sources) of each expert; (None, all sources) of any other weight."""
        if not self.experts:
            yield None, self.sources
        for expert in range(self.experts):
            yield expert, self.sources_of(expert)


def weights_by_source(weights: Iterable[GraphWeight]) -> dict[str, GraphWeight]:
    """The weight that each tensor of the checkpoint is in, by the tensor's name."""
    return {source: weight for weight in weights for source in weight.sources}


_LAYER = "model.layers."
_KINDS = {
    "model.embed_tokens.weight": TensorKind.EMBEDDING,
    "model.embedding_norm.weight": TensorKind.NORM,
    "lm_head.weight": TensorKind.LM_HEAD,
    "rotary.cos": TensorKind.ROTARY,
    "rotary.sin": TensorKind.ROTARY,
    "rotary.inverse_frequencies": TensorKind.ROTARY,
}
_KINDS_IN_LAYER = {
    "operator_norm.weight": TensorKind.NORM,
    "conv.in_proj.weight": TensorKind.CONV,
    "conv.in_proj.bias": TensorKind.BIAS,
    "conv.conv.weight": TensorKind.SHORT_CONV,
    "conv.conv.bias": TensorKind.SHORT_CONV,
    "conv.out_proj.weight": TensorKind.CONV,
    "conv.out_proj.bias": TensorKind.BIAS,
    "self_attn.q_proj.weight": TensorKind.ATTENTION,
    "self_attn.k_proj.weight": TensorKind.ATTENTION,
    "self_attn.v_proj.weight": TensorKind.ATTENTION,
    "self_attn.qkv_proj.weight": TensorKind.ATTENTION,
    "self_attn.q_layernorm.weight": TensorKind.NORM,
    "self_attn.k_layernorm.weight": TensorKind.NORM,
    "self_attn.out_proj.weight": TensorKind.ATTENTION,
    "ffn_norm.weight": TensorKind.NORM,
    "feed_forward.w1.weight": TensorKind.FEED_FORWARD,
    "feed_forward.w2.weight": TensorKind.FEED_FORWARD,
    "feed_forward.w3.weight": TensorKind.FEED_FORWARD,
    "feed_forward.gate_up.weight": TensorKind.FEED_FORWARD,
    "feed_forward.down.weight": TensorKind.FEED_FORWARD,
    "feed_forward.gate.weight": TensorKind.ROUTER,
    "feed_forward.expert_bias": TensorKind.ROUTER,
    "feed_forward.experts.gate_up": TensorKind.EXPERTS,
    "feed_forward.experts.down_proj": TensorKind.EXPERTS,
}
_RENAMED = {"feed_forward.experts.gate_up_proj": "feed_forward.experts.gate_up"}
"""Names in artifacts of lfm-onnx 0.1.0. Checkpoints have a ``gate_up_proj`` of another layout."""


def current_name(name: str) -> str:
    """What an initializer that lfm-onnx 0.1.0 may have written is called today."""
    if not name.startswith(_LAYER):
        return name
    layer, _, inner = name.removeprefix(_LAYER).partition(".")
    return f"{_LAYER}{layer}.{_RENAMED.get(inner, inner)}"


def tensor_kind(name: str) -> TensorKind | None:
    """By the name of a weight, or of its scales or zero points; None of what is no weight of the model."""
    name = current_name(name.removesuffix(SCALES).removesuffix(ZERO_POINTS))
    if name.startswith(_LAYER):
        return _KINDS_IN_LAYER.get(name.removeprefix(_LAYER).partition(".")[2])
    return _KINDS.get(name)
