"""Quantization methods behind one call: rows of a named tensor in, blocks out, whatever the method needs to know."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ..artifact.formats import BlockFormat, Float32, QuantizedRows
from ..artifact.graph_weights import GraphWeight, TensorKind
from ..artifact.method import Method
from .blas_threads import single_threaded_blas
from .gptq import quantize_gptq
from .hessian import HessianFactor, shrunk
from .layer_inputs import LayerInputs
from .output_error import OutputErrors
from .round_to_nearest import quantize_round_to_nearest
from .scale_search import quantize_scale_search

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

LEAST_EXPERT_TOKENS = 16
"""An expert that the calibration text chooses less often is left to the search."""

SHRINKAGE_TOKENS = 256.0
"""An expert's second moment is mixed with that of all experts' tokens as if it had seen so many more of those."""

HEAD_DAMPING = 0.3
"""The tied table is looked up as well, where every element counts the same: more of the identity than elsewhere."""

_KEPT_STATISTICS = 6
_TABLES = (TensorKind.EMBEDDING, TensorKind.LM_HEAD)


@dataclass
class _Statistics:
    """What pieces are quantized by, made once by the first thread that needs it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    ready: bool = False
    factor: HessianFactor | None = None
    importance: Float32 | None = None
    moment: Float32 | None = None
    """Of an expert tensor: that of all experts' tokens, which every expert's is drawn towards."""


class Quantizer:
    """Quantizes pieces of a graph's weights by one method.

    sequences: calibration text as token ids; weights: the table of a graph with block formats. Method rtn needs none of
    these nor the checkpoint, search without them weighs all columns the same, gptq needs all. Safe to call from several
    threads; the bytes of a piece depend on nothing but the piece, the format and the calibration text. Weights are best
    asked for in the model's order, the tied table last.
    """

    def __init__(
        self,
        method: Method,
        checkpoint: Checkpoint | None = None,
        sequences: Sequence[npt.ArrayLike] | None = None,
        *,
        weights: Sequence[GraphWeight] = (),
        threads: int | None = None,
    ) -> None:
        self.method = method
        if self.method is Method.GPTQ and (checkpoint is None or sequences is None):
            raise ValueError("gptq needs the checkpoint and calibration text")
        self._inputs = None
        if self.method is not Method.RTN and checkpoint is not None and sequences is not None:
            self._inputs = LayerInputs(checkpoint, weights, sequences, threads=threads)
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._statistics: OrderedDict[tuple[str, int | None], _Statistics] = OrderedDict()
        self._errors = OutputErrors()
        self._expert_tokens: dict[str, list[int]] = {}
        self._fallbacks: dict[tuple[str, int | None], str] = {}

    def quantize(self, weight: GraphWeight, rows: Float32, first_row: int, fmt: BlockFormat) -> QuantizedRows:
        """Quantize ``rows`` [n, K] of a weight.

        first_row: index of the first of them among all rows of the weight, those of experts counted expert by expert;
        the rows must all be of one expert. Raises ValueError as quantize_round_to_nearest does.
        """
        if self.method is Method.RTN:
            return quantize_round_to_nearest(rows, fmt)
        if self._inputs is None:
            return quantize_scale_search(rows, fmt)
        with single_threaded_blas():
            known = self._known(weight, weight.expert_of_row(first_row))
            if known.factor is not None:
                blocks = quantize_gptq(rows, fmt, known.factor)
                self._errors.add(weight.name, rows, blocks, fmt, known.factor)
            else:
                blocks = quantize_scale_search(rows, fmt, known.importance)
            return blocks

    def factor(self, weight: GraphWeight, expert: int | None = None) -> HessianFactor | None:
        """Of method gptq: by what rounding errors of the weight, or of one expert of it, are fed back.

        None where the calibration text says too little; ``report`` then says why.
        """
        with single_threaded_blas():
            return self._known(weight, expert).factor

    def report(self) -> dict[str, Any]:
        """What was done, by tensor name.

        tensors: relative squared error of the outputs, ``round_to_nearest`` and as made, on a sample of rows;
        expert_tokens: calibration tokens of each expert; fallbacks: tensor, expert and reason of each that was left to
        the search.
        """
        with self._lock:
            return {
                "method": self.method.value,
                "tensors": self._errors.by_tensor(),
                "expert_tokens": dict(sorted(self._expert_tokens.items())),
                "fallbacks": [
                    {"tensor": name, "expert": expert, "reason": reason}
                    for (name, expert), reason in sorted(self._fallbacks.items(), key=str)
                ],
            }

    def _known(self, weight: GraphWeight, expert: int | None) -> _Statistics:
        with self._lock:
            known = self._statistics.setdefault((weight.name, expert), _Statistics())
            self._statistics.move_to_end((weight.name, expert))
            while len(self._statistics) > _KEPT_STATISTICS:
                self._statistics.popitem(last=False)
        with known.lock:
            if not known.ready:
                self._learn(known, weight, expert)
                known.ready = True
        return known

    def _learn(self, known: _Statistics, weight: GraphWeight, expert: int | None) -> None:
        assert self._inputs is not None
        if self._is_lookup_alone(weight):
            return
        if self.method is Method.SEARCH:
            known.importance = _tempered(self._inputs.importance(weight, expert))
            return
        try:
            if weight.kind in _TABLES:
                known.factor = HessianFactor.from_second_moment(self._inputs.head_moment(), HEAD_DAMPING)
            elif not weight.experts:
                known.factor = HessianFactor.from_second_moment(self._inputs.second_moment(weight)[0])
            elif expert is None:
                known.moment = self._inputs.second_moment(weight)[0]
                if self._shares_factor(weight):
                    known.factor = HessianFactor.from_second_moment(known.moment)
            else:
                known.factor = self._expert_factor(weight, expert)
        except ValueError as error:
            known.importance = _tempered(self._inputs.importance(weight))
            with self._lock:
                self._fallbacks[weight.name, expert] = str(error)

    def _is_lookup_alone(self, weight: GraphWeight) -> bool:
        """Whether the tensor is an embedding that no input is multiplied by: all its elements count the same."""
        tied = self._checkpoint is None or self._checkpoint.config.tie_word_embeddings
        return weight.kind is TensorKind.EMBEDDING and not tied

    def _expert_factor(self, weight: GraphWeight, expert: int) -> HessianFactor:
        assert self._inputs is not None
        counts = self._inputs.expert_tokens(weight).tolist()
        with self._lock:
            self._expert_tokens[weight.name] = counts
        if counts[expert] < LEAST_EXPERT_TOKENS:
            raise ValueError(f"{counts[expert]} calibration tokens, expected at least {LEAST_EXPERT_TOKENS}")
        layer = self._known(weight, None)
        if layer.factor is not None:
            return layer.factor
        if layer.moment is None:
            raise ValueError("the inputs of the layer's experts are zero or not finite")
        own, tokens = self._inputs.second_moment(weight, expert)
        return HessianFactor.from_second_moment(shrunk(own, tokens, layer.moment, SHRINKAGE_TOKENS))

    def _shares_factor(self, weight: GraphWeight) -> bool:
        """Whether experts share one factor: their input is the same, and the tokens of one alone say too little."""
        assert self._inputs is not None and self._checkpoint is not None
        config = self._checkpoint.config
        by_expert = self._inputs.tokens * config.num_experts_per_tok / config.num_experts
        return weight.common_input is not None and by_expert < weight.columns


def _tempered(importance: Float32) -> Float32 | None:
    """Half the mean squares of the inputs and half their mean: alone they follow the calibration text too closely."""
    mean = importance.mean()
    return importance + mean if mean > 0 else None
