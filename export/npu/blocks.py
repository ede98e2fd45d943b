"""Norm, short convolution, attention and dense feed-forward in the forms that Hexagon's compiler keeps on the NPU.

x is [1, S, H] throughout: S tokens of one sequence, those of padding at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...checkpoint.config import LfmConfig
from .static_graph import Array, StaticGraph, Value, WeightKind
from .weight_sources import WeightSources


@dataclass(frozen=True)
class CallInputs:
    """Inputs that all layers of a part share; None where no layer of it needs them."""

    mask: Value | None = None
    """[1, 1, S, C + S]: 0 where a query sees a column, ``HIDDEN`` elsewhere; the C cache columns first."""
    cos: Value | None = None
    """[1, S, 1, D/2]."""
    sin: Value | None = None
    state_columns: Value | None = None
    """int32 [L-1]: the columns, among past and new ones, of the last valid tokens. None in decode: the last columns."""
    expert_index: Value | None = None
    """int32 [E]: 0 … E-1, where a prefill graph takes one expert after another."""


HIDDEN = -100.0
"""Added to the score of a pair that must not meet."""

NARROW_NORM = 32

SCORE_MARGIN = 24.0
"""A masked score lies at least this far below every other: exp(-24) of weight, and no 16-bit steps wasted on -100."""


def linear(
    graph: StaticGraph, name: str, x: Value, weights: WeightSources, size: tuple[int, int], *, bias: bool = False
) -> Value:
    """x W^T (+ b) with the tensors ``name``.weight of ``size`` [out, in] and ``name``.bias."""
    out_features, in_features = size
    rows = weights.matrix(f"{name}.weight")
    weight = graph.weight(f"{name}.weight", (in_features, out_features), WeightKind.LINEAR, rows)
    if not bias:
        return graph.matmul(name, x, weight)
    product = graph.matmul(f"{name}.product", x, weight)
    return graph.add(name, product, table(graph, f"{name}.bias", (out_features,), weights))


def table(graph: StaticGraph, name: str, shape: tuple[int, ...], weights: WeightSources, factor: float = 1.0) -> Value:
    """A small tensor of the checkpoint, times ``factor``."""

    def change(values: Array) -> Array:
        result: Array = values.reshape(shape) * np.float32(factor)
        return result

    return graph.weight(name, shape, WeightKind.TABLE, weights.tensor(name, change))


def norm(graph: StaticGraph, name: str, x: Value, weights: WeightSources, epsilon: float, factor: float = 1.0) -> Value:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis, times ``factor``."""
    weight = table(graph, f"{name}.weight", (x.shape[-1],), weights, factor)
    return graph.rms_norm(name, x, weight, epsilon)


def short_conv(
    graph: StaticGraph, x: Value, weights: WeightSources, config: LfmConfig, past: Value, call: CallInputs
) -> tuple[Value, Value]:
    """C * conv(B * x) as shifted slices, weighted and added; ``past`` and the new state are [1, L-1, H]."""
    hidden, length, tokens = config.hidden_size, config.conv_L_cache, x.shape[1]
    bcx = linear(graph, "in_proj", x, weights, (3 * hidden, hidden), bias=config.conv_bias)
    b, c, value = (
        graph.slice(f"in_proj.{part}", bcx, 2, i * hidden, (i + 1) * hidden) for i, part in enumerate(("b", "c", "x"))
    )
    columns = graph.concat("columns", [past, graph.mul("bx", b, value)], 1)
    y: Value | None = None
    for j in range(length):
        tap = graph.weight(
            f"conv.tap{j}",
            (1, 1, hidden),
            WeightKind.TABLE,
            weights.tensor("conv.weight", lambda kernel, j=j: kernel[:, 0, j].reshape(1, 1, -1)),  # type: ignore[misc]
        )
        shifted = graph.slice(f"conv.shift{j}", columns, 1, j, j + tokens)
        term = graph.mul(f"conv.term{j}", shifted, tap)
        y = term if y is None else graph.add(f"conv.sum{j}", y, term)
    assert y is not None
    if config.conv_bias:
        y = graph.add("conv.biased", y, table(graph, "conv.bias", (hidden,), weights))
    y = linear(graph, "out_proj", graph.mul("gated", c, y), weights, (hidden, hidden), bias=config.conv_bias)
    if call.state_columns is not None:
        return y, graph.gather("state", columns, call.state_columns, 1)
    return y, graph.slice("state", columns, 1, tokens, tokens + length - 1)


def attention(
    graph: StaticGraph,
    x: Value,
    weights: WeightSources,
    config: LfmConfig,
    past_key: Value,
    past_value: Value,
    call: CallInputs,
) -> tuple[Value, Value, Value]:
    """Grouped-query attention over ``past_key`` [1, kv, D, C], ``past_value`` [1, kv, C, D] and the new tokens.

    Returns (y, new keys [1, kv, D, S], new values [1, kv, S, D]).
    """
    assert call.mask is not None
    tokens, size = x.shape[1], config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    group = heads // kv_heads

    # The scores' factor is in the weight of the queries' norm: a rotation keeps it.
    query = _rotated_heads(graph, "q", x, weights, config, heads, call, size**-0.5)
    key = _rotated_heads(graph, "k", x, weights, config, kv_heads, call, 1.0)
    value = linear(graph, "v_proj", x, weights, (config.kv_dim, config.hidden_size))
    value = graph.reshape("v_heads", value, (1, tokens, kv_heads, size))
    query = graph.reshape(
        "q_groups", graph.transpose("q_by_head", query, (0, 2, 1, 3)), (1, kv_heads, group * tokens, size)
    )
    # Turned as a matrix: ONNX Runtime takes the permutation (0, 2, 3, 1) for a change of image layout and moves it to
    # where the compiler refuses it.
    stored = graph.reshape("k_rows", graph.convert("k_stored", key), (tokens, kv_heads * size))
    new_key = graph.reshape("new_key", graph.transpose("k_columns", stored, (1, 0)), (1, kv_heads, size, tokens))
    new_value = graph.transpose("new_value", graph.convert("v_stored", value), (0, 2, 1, 3))
    keys = graph.concat("keys", [past_key, new_key], 3)
    values = graph.concat("values", [past_value, new_value], 2)

    columns = keys.shape[3]
    scores = graph.reshape("scores_by_head", graph.matmul("scores", query, keys), (kv_heads, group, tokens, columns))
    attended = graph.softmax("attention", graph.add("masked_scores", scores, call.mask))
    attended = graph.reshape("attention_groups", attended, (1, kv_heads, group * tokens, columns))
    y = graph.reshape("attended_by_head", graph.matmul("attended", attended, values), (1, heads, tokens, size))
    y = graph.reshape(
        "attended_by_token", graph.transpose("attended_heads", y, (0, 2, 1, 3)), (1, tokens, heads * size)
    )
    return linear(graph, "out_proj", y, weights, (config.hidden_size, heads * size)), new_key, new_value


def _rotated_heads(
    graph: StaticGraph,
    kind: str,
    x: Value,
    weights: WeightSources,
    config: LfmConfig,
    heads: int,
    call: CallInputs,
    factor: float,
) -> Value:
    """rope(norm(projection)) * factor, [1, S, heads, D]; rotate-half: (x1, x2) → (x1 cos - x2 sin, x2 cos + x1 sin)."""
    assert call.cos is not None and call.sin is not None
    size, half = config.head_dim, config.head_dim // 2
    projected = linear(graph, f"{kind}_proj", x, weights, (heads * size, config.hidden_size))
    shape = (1, x.shape[1], heads, size)
    # In float, the compiler gets norms of rank 4 over few elements wrong, and says nothing.
    normed_shape = shape if size > NARROW_NORM else (1, x.shape[1] * heads, size)
    by_head = graph.reshape(f"{kind}_heads", projected, normed_shape)
    normed = norm(graph, f"{kind}_layernorm", by_head, weights, config.norm_eps, factor)
    if normed.shape != shape:
        normed = graph.reshape(f"{kind}_normed", normed, shape)
    first = graph.slice(f"{kind}_first", normed, 3, 0, half)
    second = graph.slice(f"{kind}_second", normed, 3, half, size)
    turned_first = graph.sub(
        f"{kind}_turned_first",
        graph.mul(f"{kind}_first_cos", first, call.cos),
        graph.mul(f"{kind}_second_sin", second, call.sin),
    )
    turned_second = graph.add(
        f"{kind}_turned_second",
        graph.mul(f"{kind}_second_cos", second, call.cos),
        graph.mul(f"{kind}_first_sin", first, call.sin),
    )
    return graph.concat(f"{kind}_rotated", [turned_first, turned_second], 3)


def gated(graph: StaticGraph, gate: Value, up: Value) -> Value:
    """silu(gate) * up."""
    activated = graph.mul("silu", gate, graph.sigmoid("sigmoid", gate))
    return graph.mul("gated", activated, up)


def dense_feed_forward(graph: StaticGraph, x: Value, weights: WeightSources, config: LfmConfig) -> Value:
    """w2(silu(w1 x) * w3 x)."""
    hidden, width = config.hidden_size, config.ff_dim
    gate = linear(graph, "w1", x, weights, (width, hidden))
    up = linear(graph, "w3", x, weights, (width, hidden))
    return linear(graph, "w2", gated(graph, gate, up), weights, (hidden, width))
