"""What each weight of the static graphs is multiplied by on the calibration text: what rounding errors are fed back by.

The graphs lay out weights in their own way (experts side by side in the wide form). The table of the CPU graphs, whose
inputs ``quantize`` records, says which of its weights the same tensors of the checkpoint are in, and so have the same
input.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt

from ...artifact.graph_weights import GraphWeight, weights_by_source
from ...artifact.method import Method
from ...checkpoint.checkpoint import Checkpoint
from ...quantize.hessian import HessianFactor
from ...quantize.methods import Quantizer
from ..decoder import model_weights
from .static_graph import Weight


@dataclass(frozen=True)
class Share:
    """Rows (outputs) and columns (inputs) of a matrix [N, K] whose rounding errors add up: those of one expert.

    expert: None where the matrix is that of no expert.
    """

    rows: slice
    columns: slice
    expert: int | None = None


class WeightInputs:
    """Second moments of the weights' inputs on ``sequences`` of token ids, factored. Safe to call from several threads.

    Nothing is computed before it is asked for; then the reference goes through the layers, forwards only: weights are
    best asked for layer by layer.
    """

    def __init__(
        self, checkpoint: Checkpoint, sequences: Sequence[npt.ArrayLike], *, threads: int | None = None
    ) -> None:
        table = model_weights(checkpoint.config, blocks=True)
        self._layers = checkpoint.config.num_hidden_layers
        self._by_source = weights_by_source(table)
        self._quantizer = Quantizer(Method.GPTQ, checkpoint, sequences, weights=table, threads=threads)
        self._lock = threading.Lock()
        self._factors: dict[tuple[int, str, int | None], HessianFactor | None] = {}
        """By layer, or what is behind them, weight and expert."""

    def shares(self, weight: Weight) -> list[Share]:
        """The parts of a LINEAR weight [K, N] that are rounded on their own."""
        columns, rows = weight.value.shape
        experts = self._same_input(weight).experts
        if not experts:
            return [Share(slice(0, rows), slice(0, columns))]
        width = (columns if weight.rows.beside else rows) // experts
        parts = [slice(expert * width, (expert + 1) * width) for expert in range(experts)]
        if weight.rows.beside:
            return [Share(slice(0, rows), part, expert) for expert, part in enumerate(parts)]
        return [Share(part, slice(0, columns), expert) for expert, part in enumerate(parts)]

    def factor(self, weight: Weight, expert: int | None = None) -> HessianFactor | None:
        """For the weight, or its part that is one expert's; None where the calibration says too little.

        Kept as long as weights of the same layer and its neighbours are asked for: the graphs have the same experts in
        several forms.
        """
        same = self._same_input(weight)
        layer = self._layers if same.layer is None else same.layer
        key = (layer, same.name, expert)
        with self._lock:
            if key in self._factors:
                return self._factors[key]
        factor = self._quantizer.factor(same, expert)
        with self._lock:
            for other in [other for other in self._factors if abs(other[0] - layer) > 1]:
                del self._factors[other]
            self._factors[key] = factor
        return factor

    def _same_input(self, weight: Weight) -> GraphWeight:
        """The weight of the CPU graphs that is multiplied by the same."""
        return self._by_source[weight.rows.sources[0]]
