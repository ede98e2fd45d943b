"""The graph of one part: a range of layers, with or without the LM head, for a chunk of a prompt or for one token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.config import LfmConfig
from ...checkpoint.expected_tensors import head_tensor
from .blocks import HIDDEN, CallInputs, attention, dense_feed_forward, norm, short_conv
from .moe import every_expert, gathered_experts, wide_experts
from .static_graph import StaticGraph, Value, WeightKind
from .weight_sources import WeightSources


class Phase(Enum):
    """Prefill takes a chunk of a prompt, decode one token."""

    PREFILL = "prefill"
    DECODE = "decode"


class MoeForm(Enum):
    """How the experts are computed."""

    WIDE = "wide"
    GATHERED = "gathered"
    PACKED = "packed"
    """Gathered, two 4-bit codes a byte."""

    @property
    def is_packed(self) -> bool:
        """Whether two 4-bit codes share a byte."""
        return self is MoeForm.PACKED


@dataclass(frozen=True)
class PartShape:
    """What of the model is in a part, and the sizes of its states."""

    first_layer: int
    last_layer: int
    """Exclusive."""
    head: bool
    context_length: int
    """Columns of the KV cache."""


def declare_part(
    checkpoint: Checkpoint, part: PartShape, phase: Phase, tokens: int, moe: MoeForm = MoeForm.WIDE
) -> StaticGraph:
    """The graph of ``part`` for ``tokens`` tokens a call; inputs and outputs as the manifest of an export says.

    Where a prefill graph gathers experts, it takes every expert in turn.
    """
    config = checkpoint.config
    graph = StaticGraph(f"layers {part.first_layer} to {part.last_layer - 1}, {phase.value}")
    x = graph.input(
        "hidden_states",
        (1, tokens, config.hidden_size),
        "hidden",
        value_name=residual_name(part.first_layer - 1),
    )
    call = _call_inputs(graph, config, part, phase, tokens, moe)
    last_token = None
    if part.head and phase is Phase.PREFILL:
        last_token = graph.input("last_token", (1,), "last_token", dtype="int32")
    for i in range(part.first_layer, part.last_layer):
        x = _layer(graph, x, WeightSources(checkpoint, f"model.layers.{i}."), config, i, part, call, moe)
    if not part.head:
        graph.output("hidden_states_next", x, "hidden")
        return graph
    if last_token is not None:
        x = graph.gather("last_hidden", x, last_token, 1)
    x = norm(graph, "embedding_norm", x, WeightSources(checkpoint, "model."), config.norm_eps)
    rows = WeightSources(checkpoint).matrix(head_tensor(config))
    weight = graph.weight("lm_head.weight", (config.hidden_size, config.vocab_size), WeightKind.LINEAR, rows)
    graph.output("logits", graph.matmul("logits", x, weight), "logits")
    return graph


def residual_name(layer: int) -> str:
    """The residual stream after ``layer``; -1: the embeddings."""
    return f"hidden_states.{layer}" if layer >= 0 else "hidden_states.embed"


def _call_inputs(
    graph: StaticGraph, config: LfmConfig, part: PartShape, phase: Phase, tokens: int, moe: MoeForm
) -> CallInputs:
    kinds = set(config.layer_types[part.first_layer : part.last_layer])
    mask = cos = sin = state_columns = None
    if "full_attention" in kinds:
        columns = part.context_length + tokens
        mask = graph.input("attention_mask", (1, 1, tokens, columns), "mask")
        graph.fixed(mask, HIDDEN, 0.0)
        angles = (1, tokens, 1, config.head_dim // 2)
        cos, sin = (graph.fixed(graph.input(name, angles, name), -1.0, 1.0) for name in ("cos", "sin"))
    if "conv" in kinds and phase is Phase.PREFILL:
        state_columns = graph.input("state_columns", (config.conv_L_cache - 1,), "state_columns", dtype="int32")
    expert_index = None
    has_experts = any(config.is_moe_layer(i) for i in range(part.first_layer, part.last_layer))
    if has_experts and phase is Phase.PREFILL and moe is not MoeForm.WIDE:
        expert_index = graph.input("expert_index", (config.num_experts,), "expert_index", dtype="int32")
    return CallInputs(mask, cos, sin, state_columns, expert_index)


def _layer(
    graph: StaticGraph,
    x: Value,
    weights: WeightSources,
    config: LfmConfig,
    i: int,
    part: PartShape,
    call: CallInputs,
    moe: MoeForm,
) -> Value:
    """x += operator(operator_norm(x)); x += feed_forward(ffn_norm(x))."""
    layer = graph.scope(f"layers.{i}.", layer=i)
    y = norm(layer, "operator_norm", x, weights, config.norm_eps)
    if config.layer_types[i] == "conv":
        past = graph.input(f"past_conv.{i}", (1, config.conv_L_cache - 1, config.hidden_size), "conv_state", layer=i)
        y, state = short_conv(layer.scope("conv."), y, weights.scope("conv."), config, past, call)
        graph.output(f"present_conv.{i}", state, "conv_state", layer=i)
    else:
        kv_heads, size, columns = config.num_key_value_heads, config.head_dim, part.context_length
        past_key = graph.input(f"past_key.{i}", (1, kv_heads, size, columns), "key_cache", layer=i)
        past_value = graph.input(f"past_value.{i}", (1, kv_heads, columns, size), "value_cache", layer=i)
        y, key, value = attention(
            layer.scope("self_attn."), y, weights.scope("self_attn."), config, past_key, past_value, call
        )
        graph.output(f"new_key.{i}", key, "key_cache", layer=i)
        graph.output(f"new_value.{i}", value, "value_cache", layer=i)
    x = layer.add("operator_sum", x, y)
    y = norm(layer, "ffn_norm", x, weights, config.norm_eps)
    scope, tensors = layer.scope("feed_forward."), weights.scope("feed_forward.")
    if not config.is_moe_layer(i):
        y = dense_feed_forward(scope, y, tensors, config)
    elif moe is MoeForm.WIDE:
        y = wide_experts(scope, y, tensors, config)
    elif call.expert_index is not None:
        y = every_expert(scope, y, tensors, config, call.expert_index, packed=moe.is_packed)
    else:
        y = gathered_experts(scope, y, tensors, config, packed=moe.is_packed)
    return graph.add(residual_name(i), x, y)
