"""One walk through the layers in numpy: residual streams of sequences in and out, whoever holds the weights.

``weights`` are those of the whole model under their canonical names. A function takes the streams of all sequences at
once: operators see each sequence alone, a feed-forward sees all tokens together, so that an expert is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ..checkpoint.expected_tensors import EMBEDDING, head_tensor
from .blocks import (
    Array,
    KeyValue,
    LayerWeights,
    attention,
    rms_norm,
    rotary_angles,
    short_conv,
    sparse_moe,
    swiglu,
)

if TYPE_CHECKING:
    from ..checkpoint.config import LfmConfig

Streams = list[Array]
"""The residual stream [T, hidden] of each sequence."""


class ModelWeights(LayerWeights, Protocol):
    """Weights of the whole model, of which tables are too large to be held at once."""

    def gather(self, name: str, indices: npt.NDArray[np.int64]) -> Array:
        """Rows ``indices`` of a table, ``[len(indices), …]``."""
        ...

    def row_pieces(self, name: str) -> Iterator[tuple[slice, Array]]:
        """All rows of a matrix in order, a few at a time."""
        ...


@dataclass(frozen=True)
class LayerStates:
    """What a sequence leaves behind after ``length`` tokens; a walk from it fills another, so it can go on twice.

    conv: layer -> last conv_L_cache - 1 columns of B * x, ``[L-1, H]``.
    key_value: layer -> rotated keys and values, ``[length, kv_heads, head_dim]`` each.
    """

    length: int = 0
    conv: dict[int, Array] = field(default_factory=dict)
    key_value: dict[int, KeyValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A sequence's state before its tokens, and the one that the walk fills after them."""

    before: LayerStates
    after: LayerStates

    @classmethod
    def of(cls, tokens: int, before: LayerStates | None = None) -> Step:
        """Of ``tokens`` tokens that follow ``before``, or begin the sequence."""
        before = before or LayerStates()
        return cls(before, LayerStates(before.length + tokens))


def embed(weights: ModelWeights, sequences: Sequence[npt.NDArray[np.int64]]) -> Streams:
    """The streams that enter the first layer, from token ids."""
    return _split(weights.gather(EMBEDDING, np.concatenate(sequences)), sequences)


def walk(
    config: LfmConfig,
    weights: LayerWeights,
    streams: Streams,
    steps: Sequence[Step] | None = None,
    after_layer: Callable[[Streams], None] = lambda streams: None,
) -> Streams:
    """The streams after the last layer; ``after_layer`` sees those after each. ``steps`` as ``operator`` takes them."""
    for index in range(config.num_hidden_layers):
        streams = feed_forward(config, weights, index, operator(config, weights, index, streams, steps))
        after_layer(streams)
    return streams


def operator(
    config: LfmConfig, weights: LayerWeights, index: int, streams: Streams, steps: Sequence[Step] | None = None
) -> Streams:
    """``x + operator(norm(x))`` of layer ``index``.

    steps: of each sequence, whose states are read and filled; None where all sequences begin and nothing follows.
    """
    layer = weights.scope(f"model.layers.{index}.")
    norm = layer("operator_norm.weight")
    steps = steps or [Step.of(len(x)) for x in streams]
    result = []
    for x, step in zip(streams, steps, strict=True):
        y = rms_norm(x, norm, config.norm_eps)
        if config.layer_types[index] == "conv":
            past = step.before.conv.get(index)
            y, step.after.conv[index] = short_conv(y, layer.scope("conv."), config, past)
        else:
            cos, sin = rotary_angles(step.before.length, len(x), config.head_dim, config.rope_theta)
            seen = step.before.key_value.get(index)
            y, step.after.key_value[index] = attention(y, layer.scope("self_attn."), config, cos, sin, seen)
        result.append(x + y)
    return result


def feed_forward(config: LfmConfig, weights: LayerWeights, index: int, streams: Streams) -> Streams:
    """``x + feed_forward(norm(x))`` of layer ``index``."""
    layer = weights.scope(f"model.layers.{index}.")
    x = np.concatenate(streams)
    y = rms_norm(x, layer("ffn_norm.weight"), config.norm_eps)
    block = layer.scope("feed_forward.")
    return _split(x + (sparse_moe(y, block, config) if config.is_moe_layer(index) else swiglu(y, block)), streams)


def final_norm(config: LfmConfig, weights: LayerWeights, streams: Streams) -> Array:
    """[all tokens, H]: the head's input, from the streams after the last layer."""
    return rms_norm(np.concatenate(streams), weights("model.embedding_norm.weight"), config.norm_eps)


def head_logits(config: LfmConfig, weights: ModelWeights, x: Array) -> Array:
    """``x W_head^T`` [T, V], the vocabulary read a few rows at a time."""
    logits = np.empty((len(x), config.vocab_size), np.float32)
    for rows, matrix in weights.row_pieces(head_tensor(config)):
        logits[:, rows] = x @ matrix.T
    return logits


def _split(rows: Array, sequences: Sequence[npt.NDArray[np.generic]]) -> Streams:
    """``rows`` of all tokens by sequence."""
    return np.split(rows, np.cumsum([len(tokens) for tokens in sequences])[:-1])
