"""How far a model with other weights stands from the original: KLD on text, layer by layer over all of it at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifact.formats import Float32
from ..checkpoint.config import LfmConfig
from ..reference.blocks import attention, rms_norm, rotary_angles, short_conv, sparse_moe, swiglu
from .blas_threads import single_threaded_blas

Streams = list[Float32]
"""The residual stream [T, hidden] of each sequence."""

_TOKENS = 64
"""Tokens compared at a time: their probabilities are taken in float64."""


@dataclass(frozen=True)
class Divergence:
    """Mean KLD(original || other) in nats per token, its standard error over ``tokens``, and top-1 agreement."""

    kld: float
    standard_error: float
    top1: float
    tokens: int

    @property
    def upper(self) -> float:
        """What the mean over all text of this kind hardly exceeds: two standard errors more."""
        return self.kld + 2 * self.standard_error


def embed(weights: Any, sequences: Sequence[npt.NDArray[np.int64]]) -> Streams:
    """The streams that enter the first layer."""
    rows = weights.gather("model.embed_tokens.weight", np.concatenate(sequences))
    return np.split(rows, np.cumsum([len(ids) for ids in sequences])[:-1])


def operator(config: LfmConfig, weights: Any, index: int, streams: Streams) -> Streams:
    """x + operator(norm(x)) of layer ``index``."""
    layer = weights.scope(f"model.layers.{index}.")
    norm = layer("operator_norm.weight")
    result = []
    for x in streams:
        y = rms_norm(x, norm, config.norm_eps)
        if config.layer_types[index] == "conv":
            y, _ = short_conv(y, layer.scope("conv."), config, None)
        else:
            cos, sin = rotary_angles(0, len(x), config.head_dim, config.rope_theta)
            y, _ = attention(y, layer.scope("self_attn."), config, cos, sin, None)
        result.append(x + y)
    return result


def feed_forward(config: LfmConfig, weights: Any, index: int, streams: Streams) -> Streams:
    """x + feed_forward(norm(x)) of layer ``index``; all sequences at once, so that an expert is read once."""
    layer = weights.scope(f"model.layers.{index}.")
    x = np.concatenate(streams)
    y = rms_norm(x, layer("ffn_norm.weight"), config.norm_eps)
    block = layer.scope("feed_forward.")
    x = x + (sparse_moe(y, block, config) if config.is_moe_layer(index) else swiglu(y, block))
    return np.split(x, np.cumsum([len(part) for part in streams])[:-1])


def logits(config: LfmConfig, weights: Any, streams: Streams) -> Float32:
    """[T, V] of all tokens from the streams after the last layer."""
    x = rms_norm(np.concatenate(streams), weights("model.embedding_norm.weight"), config.norm_eps)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    result = np.empty((len(x), config.vocab_size), np.float32)
    for rows, matrix in weights.row_chunks(head):
        result[:, rows] = x @ matrix.T
    return result


def model_logits(config: LfmConfig, weights: Any, sequences: Sequence[npt.NDArray[np.int64]]) -> Float32:
    """[T, V] of all tokens of all sequences; the same whatever the number of threads."""
    with single_threaded_blas():
        streams = embed(weights, sequences)
        for index in range(config.num_hidden_layers):
            streams = feed_forward(config, weights, index, operator(config, weights, index, streams))
        return logits(config, weights, streams)


def divergence(original: Float32, other: Float32) -> Divergence:
    """Of logits [T, V] each."""
    terms = np.concatenate(list(_terms(original, other)))
    error = float(terms.std(ddof=1) / np.sqrt(len(terms))) if len(terms) > 1 else 0.0
    top1 = float((original.argmax(axis=1) == other.argmax(axis=1)).mean())
    return Divergence(float(terms.mean()), error, top1, len(terms))


def _terms(original: Float32, other: Float32) -> Iterator[npt.NDArray[np.float64]]:
    for start in range(0, len(original), _TOKENS):
        p, q = (_log_softmax(part[start : start + _TOKENS]) for part in (original, other))
        yield (np.exp(p) * (p - q)).sum(axis=1)


def _log_softmax(values: Float32) -> npt.NDArray[np.float64]:
    wide = values.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result
