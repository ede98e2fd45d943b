"""Mixture of experts: the router, the wide form of all experts, and the form that gathers the chosen ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ...checkpoint.config import LfmConfig
from .blocks import gated
from .float_weights import PACKED_STEPS, column_extremes
from .static_graph import Array, StaticGraph, Value, WeightKind
from .weight_sources import Rows, WeightSources


def route(graph: StaticGraph, x: Value, weights: WeightSources, config: LfmConfig) -> tuple[Value, Value]:
    """(indices int64, weights) of the chosen experts, [1, S, k] each.

    s = sigmoid(gate x); chosen are the k highest of s + expert_bias; weights are s there, divided by their sum if
    norm_topk_prob. The reference's 1e-6 beside that sum is below a 16-bit step of s and left out;
    routed_scaling_factor is in the down projections.
    """
    experts, k = config.num_experts, config.num_experts_per_tok
    gate = graph.weight(
        "gate.weight",
        (config.hidden_size, experts),
        WeightKind.TABLE,
        weights.tensor("gate.weight", lambda values: np.ascontiguousarray(values.T)),
    )
    scores = graph.sigmoid("router", graph.matmul("gate", x, gate))
    ranked = scores
    if config.use_expert_bias:
        bias = graph.weight("expert_bias", (experts,), WeightKind.TABLE, weights.tensor("expert_bias", _finite_bias))
        ranked = graph.add("router.biased", scores, bias)
    chosen = graph.top_k("router.chosen", ranked, k)
    picked = graph.emit("GatherElements", [scores, chosen], "router.picked", chosen.shape, axis=2)
    if not config.norm_topk_prob:
        return chosen, picked
    axes = graph.constant("router.total.axes", [2])
    total = graph.emit("ReduceSum", [picked, axes], "router.total", (*chosen.shape[:2], 1), keepdims=1)
    return chosen, graph.fixed(graph.elementwise("Div", "router.weights", picked, total), 0.0, 1.0)


def _finite_bias(bias: Array) -> Array:
    """-inf, by which an expert is pruned, as a number that none of s (0 to 1) makes up for: codes hold no infinity."""
    finite = bias[np.isfinite(bias)]
    return bias if finite.size == bias.size else np.where(np.isfinite(bias), bias, finite.min(initial=0.0) - 2)


def _weights_by_expert(graph: StaticGraph, x: Value, weights: WeightSources, config: LfmConfig) -> Value:
    """The router's weights with zeros for the experts that a token does not go to, [1, S, E]."""
    shape = (1, x.shape[1], config.num_experts)
    chosen, chosen_weights = route(graph, x, weights, config)
    zeros = graph.weight(
        f"router.none.{shape[1]}", shape, WeightKind.TABLE, Rows(lambda first, last: np.zeros(shape, np.float32))
    )
    return graph.emit("ScatterElements", [zeros, chosen, chosen_weights], "router.by_expert", shape, axis=2)


def wide_experts(graph: StaticGraph, x: Value, weights: WeightSources, config: LfmConfig) -> Value:
    """All experts as one feed-forward of width E * M, each expert's part weighted: for many tokens."""
    hidden, experts, width = config.hidden_size, config.num_experts, config.moe_intermediate_size
    tokens, total = x.shape[1], experts * width
    by_expert = _weights_by_expert(graph, x, weights, config)

    # The router is shared with the other forms; what follows has ranges of its own.
    outer, graph = graph, graph.scope("wide.")
    w1 = graph.weight("w1", (hidden, total), WeightKind.LINEAR, weights.stacked(_every_expert("w1", config)))
    w3 = graph.weight("w3", (hidden, total), WeightKind.LINEAR, weights.stacked(_every_expert("w3", config)))
    inner = gated(graph, graph.matmul("w1.out", x, w1), graph.matmul("w3.out", x, w3))
    inner = graph.reshape("inner_by_expert", inner, (1, tokens, experts, width))
    inner = graph.mul("weighted", inner, graph.reshape("router_column", by_expert, (1, tokens, experts, 1)))
    inner = graph.reshape("weighted_inner", inner, (1, tokens, total))
    rows = weights.side_by_side(_every_expert("w2", config), config.routed_scaling_factor)
    w2 = graph.weight("w2", (total, hidden), WeightKind.LINEAR, rows)
    return outer.matmul("experts", inner, w2)


def gathered_experts(graph: StaticGraph, x: Value, weights: WeightSources, config: LfmConfig, *, packed: bool) -> Value:
    """Only the chosen experts' weights are read: for one token. ``packed``: two 4-bit codes a byte, else 8 bits."""
    hidden, k = config.hidden_size, config.num_experts_per_tok
    assert x.shape[1] == 1
    chosen, chosen_weights = route(graph, x, weights, config)
    scope = graph.scope("gathered.")
    matrices = _expert_matrices(scope, weights, config, packed=packed)
    chosen = scope.reshape("chosen", chosen, (k,))
    y = _expert(scope, scope.reshape("x", x, (1, 1, hidden)), chosen, matrices)
    y = scope.mul("weighted", y, scope.reshape("router_column", chosen_weights, (k, 1, 1)))
    axes = scope.constant("experts.axes", [0])
    total = scope.emit("ReduceSum", [y, axes], "total", (1, hidden), keepdims=0)
    return graph.reshape("experts", total, (1, 1, hidden))


def every_expert(
    graph: StaticGraph, x: Value, weights: WeightSources, config: LfmConfig, expert_index: Value, *, packed: bool
) -> Value:
    """Expert after expert over all tokens, each gathered by ``expert_index`` (int32 0 … E-1, an input).

    The weights are those of ``gathered_experts``: where prefill and decode are compiled together they are stored once,
    which an index known to the compiler would undo.
    """
    by_expert = _weights_by_expert(graph, x, weights, config)
    scope = graph.scope("gathered.")
    matrices = _expert_matrices(scope, weights, config, packed=packed)
    total: Value | None = None
    for expert in range(config.num_experts):
        one = scope.scope(f"expert{expert}.")
        y = _expert(one, x, one.slice("index", expert_index, 0, expert, expert + 1), matrices)
        y = one.mul("weighted", y, one.slice("router_column", by_expert, 2, expert, expert + 1))
        total = y if total is None else one.add("total", total, y)
    assert total is not None
    return graph.reshape("experts", total, x.shape)


class _ExpertMatrix:
    """One matrix of all experts, and its product with the chosen ones.

    Each column of an expert's matrix is stored relative to its extreme, which stands in a table of its own:
    gathered weights can have one scale only.
    """

    def __init__(self, graph: StaticGraph, name: str, size: tuple[int, int, int], rows: Rows, packed: bool) -> None:
        """size: experts, inputs K, outputs N."""
        experts, _, outputs = size
        self._name = name
        self._weight = graph.weight(name, size, WeightKind.EXPERTS, rows)
        self._packed = packed
        largest = _extremes(rows, size, packed)
        half = outputs // 2
        # Packed, the low half comes as b/16, and both in units of 1/7 of the column's extreme.
        pieces = {"all": (1.0, 0, outputs)}
        if packed:
            pieces = {"high": (1 / PACKED_STEPS, 0, half), "low": (16 / PACKED_STEPS, half, outputs)}
        self._scales = {
            piece: graph.weight(
                f"{name}.{piece}.scales",
                (experts, 1, last - first),
                WeightKind.TABLE,
                _scaled(largest, slice(first, last), factor),
            )
            for piece, (factor, first, last) in pieces.items()
        }

    def product(self, graph: StaticGraph, x: Value, chosen: Value) -> Value:
        """x [1, S, K] or [k, S, K] times the k chosen matrices: [k, S, N]."""
        name = self._name
        if not self._packed:
            codes = graph.fixed(graph.gather(f"{name}.chosen", self._weight, chosen, 0), -1.0, 1.0)
            return self._scaled_product(graph, "all", x, codes, chosen)
        shape = (chosen.shape[0], x.shape[-1], self._weight.shape[-1] // 2)
        halves = tuple(Value(f"{graph.prefix}{name}.{piece}", shape) for piece in self._scales)
        graph.emit_packed_gather(self._weight, chosen, (halves[0], halves[1]))
        for half, largest in zip(halves, (PACKED_STEPS, PACKED_STEPS / 16), strict=True):
            graph.fixed(half, -largest, largest)
        products = [
            self._scaled_product(graph, piece, x, half, chosen)
            for piece, half in zip(self._scales, halves, strict=True)
        ]
        return graph.concat(f"{name}.out", products, 2)

    def _scaled_product(self, graph: StaticGraph, piece: str, x: Value, matrix: Value, chosen: Value) -> Value:
        name = f"{self._name}.{piece}"
        product = graph.matmul(f"{name}.normalized", x, matrix)
        scales = graph.gather(f"{name}.chosen_scales", self._scales[piece], chosen, 0)
        return graph.mul(f"{name}.scaled", product, scales)


def _expert_matrices(
    graph: StaticGraph, weights: WeightSources, config: LfmConfig, *, packed: bool
) -> tuple[_ExpertMatrix, _ExpertMatrix, _ExpertMatrix]:
    experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
    w1, w3 = (weights.experts(_every_expert(matrix, config)) for matrix in ("w1", "w3"))
    w2 = weights.experts(_every_expert("w2", config), config.routed_scaling_factor)
    return (
        _ExpertMatrix(graph, "w1", (experts, hidden, width), w1, packed),
        _ExpertMatrix(graph, "w3", (experts, hidden, width), w3, packed),
        _ExpertMatrix(graph, "w2", (experts, width, hidden), w2, packed),
    )


def _every_expert(matrix: str, config: LfmConfig) -> list[str]:
    return [f"experts.{expert}.{matrix}.weight" for expert in range(config.num_experts)]


def _expert(
    graph: StaticGraph, x: Value, chosen: Value, matrices: tuple[_ExpertMatrix, _ExpertMatrix, _ExpertMatrix]
) -> Value:
    """w2(silu(w1 x) * w3 x) of the chosen experts."""
    w1, w3, w2 = matrices
    return w2.product(graph, gated(graph, w1.product(graph, x, chosen), w3.product(graph, x, chosen)), chosen)


def _extremes(rows: Rows, shape: tuple[int, int, int], packed: bool) -> Callable[[int, int], Array]:
    """What the largest code of every column of every expert stands for, [E, 1, N]."""

    @lru_cache(maxsize=1)
    def read(first: int, last: int) -> Array:
        experts, _, columns = shape
        extremes = np.empty((experts, 1, columns), np.float32)
        for expert in range(experts):
            extremes[expert, 0] = column_extremes(rows(expert, expert + 1), packed=packed)
        return extremes

    return read


def _scaled(read: Callable[[int, int], Array], columns: slice, factor: float) -> Rows:
    return Rows(lambda first, last: read(first, last)[:, :, columns] * np.float32(factor))
