"""The canonical names and shapes of a model's tensors, which follow from its config alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .config import LfmConfig

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


def head_tensor(config: LfmConfig) -> str:
    """The matrix [V, H] that gives the logits: the embedding table where it is tied."""
    return EMBEDDING if config.tie_word_embeddings else LM_HEAD


def expected_tensors(config: LfmConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Canonical name and shape of every tensor of the model, in the model's order."""
    hidden = config.hidden_size
    yield EMBEDDING, (config.vocab_size, hidden)
    for i, kind in enumerate(config.layer_types):
        layer = f"model.layers.{i}."
        yield layer + "operator_norm.weight", (hidden,)
        if kind == "conv":
            yield from _conv_tensors(config, layer + "conv.")
        else:
            attention = layer + "self_attn."
            yield attention + "q_proj.weight", (config.q_dim, hidden)
            yield attention + "k_proj.weight", (config.kv_dim, hidden)
            yield attention + "v_proj.weight", (config.kv_dim, hidden)
            yield attention + "out_proj.weight", (hidden, config.q_dim)
            yield attention + "q_layernorm.weight", (config.head_dim,)
            yield attention + "k_layernorm.weight", (config.head_dim,)
        yield layer + "ffn_norm.weight", (hidden,)
        feed_forward = layer + "feed_forward."
        if not config.is_moe_layer(i):
            yield from _swiglu_tensors(feed_forward, config.ff_dim, hidden)
            continue
        yield feed_forward + "gate.weight", (config.num_experts, hidden)
        if config.use_expert_bias:
            yield feed_forward + "expert_bias", (config.num_experts,)
        for e in range(config.num_experts):
            yield from _swiglu_tensors(f"{feed_forward}experts.{e}.", config.moe_intermediate_size, hidden)
    yield "model.embedding_norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield LM_HEAD, (config.vocab_size, hidden)


def parameter_count(config: LfmConfig) -> int:
    """Elements of all tensors; a tied head counts once."""
    return sum(math.prod(shape) for _, shape in expected_tensors(config))


def _conv_tensors(config: LfmConfig, conv: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config.hidden_size
    for name, shape in (("conv", (hidden, 1, config.conv_L_cache)), ("in_proj", (3 * hidden, hidden)),
                        ("out_proj", (hidden, hidden))):  # fmt: skip
        yield f"{conv}{name}.weight", shape
        if config.conv_bias:
            yield f"{conv}{name}.bias", shape[:1]


def _swiglu_tensors(prefix: str, width: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield prefix + "w1.weight", (width, hidden)
    yield prefix + "w2.weight", (hidden, width)
    yield prefix + "w3.weight", (width, hidden)
