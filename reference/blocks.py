"""The blocks of LFM2 and LFM2-MoE in numpy: one function per block, each the formula of its docstring, in float32.

A block takes the activations of one sequence, ``x [T, H]`` (T tokens, H = hidden size), and a ``LayerWeights`` scope
that yields float32 weights by name. Weights are stored ``[out, in]``, so that a projection is ``x @ W.T``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..checkpoint.config import LfmConfig

Array = npt.NDArray[np.float32]
KeyValue = tuple[Array, Array]

# Attention scores held at one time, in elements (64 MB): queries go through in blocks, so that a long prompt
# never allocates its whole [heads, T, S] score tensor.
SCORE_ELEMENTS = 1 << 24


class LayerWeights(Protocol):
    """Weights of one scope, for example of ``model.layers.3.``."""

    def __call__(self, name: str) -> Array:
        """The weight ``name`` of this scope in float32."""
        ...

    def scope(self, prefix: str) -> LayerWeights:
        """The same weights under a longer prefix."""
        ...


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, elementwise."""
    with np.errstate(over="ignore"):  # exp overflows to inf, whose reciprocal is the right limit: 0
        y: Array = np.float32(1) / (np.float32(1) + np.exp(-x))
    return y


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``, elementwise."""
    return x * sigmoid(x)


def softmax(x: Array) -> Array:
    """``exp(x - max x) / sum exp(x - max x)`` over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """``weight * x / sqrt(mean(x^2) + eps)``, the mean over the last axis; x ``[..., D]``, weight ``[D]``."""
    result: Array = weight * (x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps)))
    return result


def linear(x: Array, weights: LayerWeights, name: str, bias: bool = False) -> Array:
    """``x W^T (+ b)`` with the weights ``name.weight [out, in]`` and ``name.bias [out]``."""
    y = x @ weights(name + ".weight").T
    result: Array = y + weights(name + ".bias") if bias else y
    return result


def rotary_angles(start: int, tokens: int, head_dim: int, theta: float) -> KeyValue:
    """Cosine and sine, ``[tokens, head_dim]`` each, of the angles ``p / theta^(2j / head_dim)``.

    p = start … start + tokens - 1 are the positions, j = 0 … head_dim/2 - 1 the frequencies; both halves of the last
    axis hold the same angles (rotate-half layout). Frequencies are rounded to float32 before they meet the position,
    as in transformers: at position 100 000 the rounding shows in the angle.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = np.float32(1) / (float(theta) ** exponents).astype(np.float32)
    angles = np.arange(start, start + tokens, dtype=np.float32)[:, None] * frequencies
    angles = np.concatenate([angles, angles], axis=-1)
    return np.cos(angles), np.sin(angles)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding, rotate-half: ``x cos + [-x2, x1] sin`` with ``x = [x1, x2]``; x ``[T, heads, D]``."""
    x1, x2 = np.split(x, 2, axis=-1)
    rotated: Array = np.concatenate([-x2, x1], axis=-1)
    return x * cos[:, None] + rotated * sin[:, None]


def causal_attention(q: Array, k: Array, v: Array) -> Array:
    """``softmax(q k^T / sqrt(D) + mask) v`` for grouped-query attention.

    q ``[T, heads, D]`` are the last T positions of k, v ``[S, kv_heads, D]``; query t sees keys 0 … S - T + t; each
    key/value head serves heads/kv_heads consecutive query heads. Returns ``[T, heads, D]``.
    """
    tokens, heads, head_dim = q.shape
    length, kv_heads, _ = k.shape
    past = length - tokens
    q = (q * np.float32(head_dim**-0.5)).reshape(tokens, kv_heads, heads // kv_heads, head_dim)
    q = q.transpose(1, 2, 0, 3)  # [kv_heads, group, T, D]
    k = k.transpose(1, 2, 0)[:, None]  # [kv_heads, 1, D, S]
    v = v.transpose(1, 0, 2)[:, None]  # [kv_heads, 1, S, D]
    y = np.empty_like(q)
    block = max(1, SCORE_ELEMENTS // (heads * length))
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        seen = past + last
        scores = q[:, :, first:last] @ k[..., :seen]
        future = np.arange(seen) > np.arange(past + first, seen)[:, None]
        y[:, :, first:last] = softmax(np.where(future, -np.inf, scores)) @ v[:, :, :seen]
    result: Array = y.transpose(2, 0, 1, 3).reshape(tokens, heads, head_dim)
    return result


def attention(
    x: Array, weights: LayerWeights, config: LfmConfig, cos: Array, sin: Array, past: KeyValue | None
) -> tuple[Array, KeyValue]:
    """Grouped-query attention: ``y = attend(rope(norm(q)), [past k, rope(norm(k))], [past v, v]) W_out^T``.

    q, k and v are projections of x split into heads; the RMSNorm is per head, over head_dim, before the rotation.
    Returns y ``[T, H]`` and the keys and values of all positions so far, ``[S, kv_heads, head_dim]`` each.
    """
    tokens = x.shape[0]
    q = linear(x, weights, "q_proj").reshape(tokens, config.num_attention_heads, config.head_dim)
    k = linear(x, weights, "k_proj").reshape(tokens, config.num_key_value_heads, config.head_dim)
    v = linear(x, weights, "v_proj").reshape(tokens, config.num_key_value_heads, config.head_dim)
    q = rotate(rms_norm(q, weights("q_layernorm.weight"), config.norm_eps), cos, sin)
    k = rotate(rms_norm(k, weights("k_layernorm.weight"), config.norm_eps), cos, sin)
    if past is not None:
        k, v = np.concatenate([past[0], k]), np.concatenate([past[1], v])
    y = causal_attention(q, k, v).reshape(tokens, -1)
    return linear(y, weights, "out_proj"), (k, v)


def short_conv(x: Array, weights: LayerWeights, config: LfmConfig, past: Array | None) -> tuple[Array, Array]:
    """Double-gated short convolution: ``y = (C * conv(B * x')) W_out^T`` with ``[B, C, x'] = x W_in^T``.

    conv is causal and depthwise over time: ``conv(u)[t, h] = sum_j w[h, j] u[t - L + 1 + j, h]``, L = conv_L_cache,
    where u before the first token is ``past [L-1, H]``: the last columns of B * x' so far, zeros at the start.
    Returns y ``[T, H]`` and the new last L - 1 columns.
    """
    length, bias = config.conv_L_cache, config.conv_bias
    b, c, x = np.split(linear(x, weights, "in_proj", bias), 3, axis=-1)
    if past is None:
        past = np.zeros((length - 1, x.shape[1]), np.float32)
    u = np.concatenate([past, b * x])
    kernel = weights("conv.weight")[:, 0]  # [H, L]
    tokens = x.shape[0]
    y = sum((u[j : j + tokens] * kernel[:, j] for j in range(length)), np.float32(0))
    if bias:
        y = y + weights("conv.bias")
    return linear(c * y, weights, "out_proj", bias), u[tokens:].copy()


def swiglu(x: Array, weights: LayerWeights) -> Array:
    """Dense feed-forward, and one expert: ``w2 (silu(w1 x) * w3 x)``."""
    return linear(silu(linear(x, weights, "w1")) * linear(x, weights, "w3"), weights, "w2")


def route(x: Array, weights: LayerWeights, config: LfmConfig) -> tuple[npt.NDArray[np.int64], Array]:
    """Router of the mixture: which experts ``[T, k]`` a token goes to, and with what weights ``[T, k]``.

    ``s = sigmoid(gate x)``; chosen are the k highest of ``s + expert_bias`` (the bias selects only); the weights are s
    at those experts, divided by ``(sum + 1e-6)`` if norm_topk_prob, times routed_scaling_factor. Equal scores: the
    expert of lower index goes first, as in ONNX TopK.
    """
    s = sigmoid(linear(x, weights, "gate"))
    scores = s + weights("expert_bias") if config.use_expert_bias else s
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : config.num_experts_per_tok]
    w = np.take_along_axis(s, chosen, axis=-1)
    if config.norm_topk_prob:
        w = w / (w.sum(axis=-1, keepdims=True) + np.float32(1e-6))
    return chosen, w * np.float32(config.routed_scaling_factor)


@dataclass(frozen=True)
class ExpertShare:
    """The tokens ``[t]`` that go to one expert, and the router's weights for it ``[t, 1]``."""

    expert: int
    tokens: npt.NDArray[np.int64]
    weights: Array


def expert_shares(chosen: npt.NDArray[np.int64], weights: Array, experts: Iterable[int]) -> Iterator[ExpertShare]:
    """Of each of ``experts``, from what ``route`` gives: chosen ``[T, k]``, weights ``[T, k]``."""
    for expert in experts:
        tokens, rank = np.nonzero(chosen == expert)
        yield ExpertShare(expert, tokens, weights[tokens, rank, None])


def sparse_moe(x: Array, weights: LayerWeights, config: LfmConfig) -> Array:
    """Mixture of experts: ``y = sum over chosen e of w_e swiglu_e(x)``; only chosen experts' weights are read."""
    chosen, w = route(x, weights, config)
    y = np.zeros_like(x)
    for share in expert_shares(chosen, w, np.unique(chosen).tolist()):
        y[share.tokens] += share.weights * swiglu(x[share.tokens], weights.scope(f"experts.{share.expert}."))
    return y
