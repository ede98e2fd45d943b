"""Ranges within a layer's experts, from the tokens that the router sends to each: the others' results meet a 0.

The experts are computed here matrix by matrix, each read once, instead of by the graphs, which would compute all of
them for every token. Ranges get the names that ``moe.py`` gives the same values.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ...checkpoint.config import LfmConfig
from ...reference.blocks import ExpertShare, expert_shares
from .float_runner import Ranges
from .float_weights import PACKED_STEPS, column_extremes
from .ordered_work import in_order
from .part_graph import MoeForm
from .static_graph import Array
from .weight_sources import WeightSources

FORM_SCOPES = {MoeForm.WIDE: "wide.", MoeForm.GATHERED: "gathered.", MoeForm.PACKED: "gathered."}


@dataclass(frozen=True)
class Routed:
    """Tokens [T, H] behind the feed-forward's norm, the experts chosen for each [T, k], and their weights [T, k]."""

    x: Array
    chosen: npt.NDArray[np.int64]
    weights: Array


def observe_experts(
    pool: Executor,
    weights: WeightSources,
    config: LfmConfig,
    routed: Routed,
    forms: Iterable[MoeForm],
    *,
    in_turn: bool,
    ranges: Ranges,
    scope: str,
) -> Array:
    """The experts' sum [T, H]; adds the ranges of all tensors on the way to ``ranges``, names begin with ``scope``.

    forms: those that the graphs are declared in; in_turn: prefill takes one expert after another. The result does not
    depend on how many threads ``pool`` has, as far as BLAS has one.
    """
    forms = set(forms)
    turns = [f"expert{expert}." for expert in range(config.num_experts)] if in_turn else []
    total = np.zeros_like(routed.x)
    seen = Ranges()
    shares = expert_shares(routed.chosen, routed.weights, range(config.num_experts))
    compute = partial(_expert, weights, config, routed.x, forms)
    for share, (y, found) in in_order(pool, compute, shares):
        total[share.tokens] += y
        seen.merge(found)
        if turns and share.expert:  # what has been added up so far
            ranges.add(f"{scope}gathered.{turns[share.expert]}total", float(total.min()), float(total.max()))
    # An expert of few tokens says little of those to come: where each has tensors of its own, all have one range.
    for name, (low, high) in seen.by_tensor.items():
        ranges.add(scope + name, low, high)
        for turn in turns if name.startswith("gathered.") else ():
            ranges.add(scope + name.replace("gathered.", f"gathered.{turn}", 1), low, high)
    for name in ("experts", "gathered.total"):
        ranges.add(scope + name, float(total.min()), float(total.max()))
    return total


def _expert(
    weights: WeightSources, config: LfmConfig, x: Array, forms: set[MoeForm], share: ExpertShare
) -> tuple[Array, dict[str, tuple[float, float]]]:
    """The expert's weighted results, and the ranges by name."""
    ranges = Ranges()
    if not len(share.tokens):
        return x[:0], {}

    def add(form: MoeForm, name: str, values: Array) -> None:
        ranges.add(FORM_SCOPES[form] + name, float(values.min()), float(values.max()))

    def product(matrix: str, inputs: Array, factor: float = 1.0) -> Array:
        rows = weights.matrix(f"experts.{share.expert}.{matrix}.weight")(0, _rows(config, matrix))
        result: Array = inputs @ rows.T * np.float32(factor)
        for form in forms - {MoeForm.WIDE}:
            largest = column_extremes(rows, packed=form.is_packed) * np.float32(factor)
            for part, columns, unit in _columns(len(rows), form):
                own, divisor = result[:, columns], largest[columns] * np.float32(unit)
                add(form, f"{matrix}.{part}.scaled", own)
                relative = np.divide(own, divisor, out=np.zeros_like(own), where=divisor > 0)
                add(form, f"{matrix}.{part}.normalized", relative)
            if form.is_packed:
                add(form, f"{matrix}.out", result)
        return result

    inputs = x[share.tokens]
    gate, up = product("w1", inputs), product("w3", inputs)
    with np.errstate(over="ignore"):
        silu = gate / (1 + np.exp(-gate))
    gated = silu * up
    y = product("w2", gated, config.routed_scaling_factor) * share.weights
    for form in forms:
        add(form, "silu", silu)
        add(form, "gated", gated)
        add(form, "weighted", gated * share.weights if form is MoeForm.WIDE else y)
        if form is MoeForm.WIDE:
            add(form, "w1.out", gate)
            add(form, "w3.out", up)
    return y, ranges.by_tensor


def _rows(config: LfmConfig, matrix: str) -> int:
    return config.hidden_size if matrix == "w2" else config.moe_intermediate_size


def _columns(outputs: int, form: MoeForm) -> list[tuple[str, slice, float]]:
    """Name, columns and the unit of their codes relative to the column's extreme, as in ``moe.py``."""
    if not form.is_packed:
        return [("all", slice(0, outputs), 1.0)]
    half = outputs // 2
    return [("high", slice(0, half), 1 / PACKED_STEPS), ("low", slice(half, outputs), 16 / PACKED_STEPS)]
