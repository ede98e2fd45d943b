"""What each tensor group's format costs: KLD on text with that group alone rounded, or an estimate of it.

Small models are measured: with only group g in format f, effect(g, f) = KLD(original || rounded), in nats per token.

In large ones, where a pass of the model for each group and format would take hours, the error that a group leaves in
the residual stream of its own layer stands for it:

    effect(g, f) = c * sum |d|^2 / sum |h|^2,    c = 1/2 * mean over tokens of var(logits)

h is the residual stream after the block, d what rounding changes of it. The final norm makes the stream's direction
alone matter, later layers read it normed, too, and a relative change r of the normed stream changes the logits by about
r times their own deviation; KLD is half the variance of that. The head is measured in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifact.formats import BlockFormat
from ..artifact.graph_weights import TensorKind
from ..artifact.method import Method
from ..errors import InputError
from ..hardware.cores import thread_count
from ..reference.layers import Streams, embed, feed_forward, operator
from ..reference.weights import ConvertedWeights, Weights
from .blas_threads import single_threaded_blas
from .divergence import divergence, logits
from .quantization import Quantization
from .quantized_weights import QuantizedWeights
from .tensor_groups import TensorGroup

MEASURED_OPERATIONS = 2e13
"""Multiplications and additions that measuring may take: some minutes on two cores. Beyond it, the estimate."""

_CACHE_BYTES = 512 << 20

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Option:
    """One way to store a group: its bytes, and its effect in nats of KLD."""

    fmt: BlockFormat
    nbytes: int
    effect: float


@dataclass(frozen=True)
class GroupOptions:
    """The ways to store one group, fewest bytes first."""

    group: TensorGroup
    options: tuple[Option, ...]


def measure_sensitivity(
    quantization: Quantization,
    candidates: Sequence[BlockFormat],
    sequences: Sequence[npt.NDArray[np.int64]],
    progress: Progress = lambda line: None,
) -> list[GroupOptions]:
    """The effect of every candidate format on every group; see the module's text for the formulas.

    The groups and formats of one layer are tried at the same time, and BLAS keeps to one thread for each: what is
    found, and so what is chosen, does not depend on the number of threads.
    """
    with single_threaded_blas(), ThreadPoolExecutor(thread_count(quantization.threads)) as pool:
        return _Sensitivity(quantization, candidates, sequences, progress, pool).run()


class _Sensitivity:
    def __init__(
        self,
        quantization: Quantization,
        candidates: Sequence[BlockFormat],
        sequences: Sequence[npt.NDArray[np.int64]],
        progress: Progress,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.pool = pool
        self.quantization, self.candidates, self.sequences = quantization, candidates, sequences
        self.progress = progress
        self.config = quantization.checkpoint.config
        self.plain = Weights(quantization.checkpoint, ConvertedWeights(_CACHE_BYTES))
        self.groups = quantization.groups
        self.measures = _operations(self.groups, sequences, len(candidates)) <= MEASURED_OPERATIONS
        if not self.measures:
            # The order of the formats is the same by any method, and this one takes a fraction of the time.
            self.quantization = quantization.with_formats(quantization.recipe.formats, Method.RTN)

    def run(self) -> list[GroupOptions]:
        by_layer: dict[int | None, list[TensorGroup]] = {}
        for group in self.groups:
            by_layer.setdefault(group.layer, []).append(group)
        streams = embed(self.plain, self.sequences)
        entered = [streams]
        options_by_group: dict[str, list[Option]] = {}
        after_operator: list[Streams] = []
        # The reference's own run first: its last streams and logits are what everything is compared with.
        for index in range(self.config.num_hidden_layers):
            middle = operator(self.config, self.plain, index, streams)
            if not self.measures:
                options_by_group |= self._try_all(by_layer[index], partial(self._estimate, index, streams, middle))
            streams = feed_forward(self.config, self.plain, index, middle)
            if self.measures:
                after_operator.append(middle)
                entered.append(streams)
            self.progress(f"layer {index + 1} of {self.config.num_hidden_layers}: reference")
        final = streams
        original = logits(self.config, self.plain, final)
        factor = 0.5 * float(original.var(axis=1).mean())
        for name, options in options_by_group.items():
            options_by_group[name] = [Option(o.fmt, o.nbytes, factor * o.effect) for o in options]
        if self.measures:
            for index in range(self.config.num_hidden_layers):
                attempt = partial(self._measure, index, entered[index], after_operator[index], original)
                options_by_group |= self._try_all(by_layer[index], attempt)
                self.progress(f"layer {index + 1} of {self.config.num_hidden_layers}: measured")
        options_by_group |= self._try_all(by_layer[None], partial(self._table, final, original, factor))
        self.progress("embedding and head: measured")
        return [
            GroupOptions(group, tuple(sorted(options_by_group[group.name], key=lambda option: option.nbytes)))
            for group in self.groups
        ]

    def _try_all(
        self, groups: Sequence[TensorGroup], attempt: Callable[[TensorGroup, BlockFormat], Option]
    ) -> dict[str, list[Option]]:
        """The options of each group by its name."""
        pairs = [(group, fmt) for group in groups for fmt in self._formats(group)]
        options = list(self.pool.map(lambda pair: attempt(*pair), pairs))
        by_group: dict[str, list[Option]] = {}
        for (group, _), option in zip(pairs, options, strict=True):
            by_group.setdefault(group.name, []).append(option)
        return by_group

    def _formats(self, group: TensorGroup) -> list[BlockFormat]:
        fits = [fmt for fmt in self.candidates if group.takes(fmt)]
        if not fits:
            raise InputError(f"no block size of {', '.join(f.name for f in self.candidates)} divides {group.name}")
        return fits

    def _weights(self, group: TensorGroup, fmt: BlockFormat) -> Any:
        return QuantizedWeights.of(self.quantization, self.plain, {group.name: fmt}, rounds_activations=False)

    def _measure(
        self, index: int, entered: Streams, middle: Streams, original: Any, group: TensorGroup, fmt: BlockFormat
    ) -> Option:
        weights = self._weights(group, fmt)
        if not group.is_feed_forward:
            middle = operator(self.config, weights, index, entered)
        streams = feed_forward(self.config, weights, index, middle)
        for later in range(index + 1, self.config.num_hidden_layers):
            streams = feed_forward(self.config, self.plain, later, operator(self.config, self.plain, later, streams))
        kld = divergence(original, logits(self.config, self.plain, streams)).kld
        return Option(fmt, group.nbytes(fmt), kld)

    def _estimate(self, index: int, entered: Streams, middle: Streams, group: TensorGroup, fmt: BlockFormat) -> Option:
        """The effect without the factor c."""
        block, start = (feed_forward, middle) if group.is_feed_forward else (operator, entered)
        expected = block(self.config, self.plain, index, start)
        rounded = block(self.config, self._weights(group, fmt), index, start)
        return Option(fmt, group.nbytes(fmt), _relative_error(expected, rounded))

    def _table(self, final: Streams, original: Any, factor: float, group: TensorGroup, fmt: BlockFormat) -> Option:
        """Of the embedding, the head, or the table that is both."""
        weights = self._weights(group, fmt)
        effect = 0.0
        is_head = group.kind is TensorKind.LM_HEAD or self.config.tie_word_embeddings
        if self.measures and group.kind is TensorKind.EMBEDDING:
            streams = embed(weights, self.sequences)
            for index in range(self.config.num_hidden_layers):
                middle = operator(self.config, self.plain, index, streams)
                streams = feed_forward(self.config, self.plain, index, middle)
            head = weights if is_head else self.plain
            effect = divergence(original, logits(self.config, head, streams)).kld
        else:
            if group.kind is TensorKind.EMBEDDING:
                effect += factor * _relative_error(embed(self.plain, self.sequences), embed(weights, self.sequences))
            if is_head:
                effect += divergence(original, logits(self.config, weights, final)).kld
        return Option(fmt, group.nbytes(fmt), effect)


def _relative_error(expected: Streams, rounded: Streams) -> float:
    """sum |rounded - expected|^2 / sum |expected|^2."""
    error = sum(float(np.square(b - a).sum(dtype=np.float64)) for a, b in zip(expected, rounded, strict=True))
    energy = sum(float(np.square(a).sum(dtype=np.float64)) for a in expected)
    return error / energy if energy else 0.0


def _operations(groups: Sequence[TensorGroup], sequences: Sequence[npt.NDArray[np.int64]], candidates: int) -> float:
    """Of a pass from each group to the head for each candidate: half the model on average."""
    tokens = sum(map(len, sequences))
    return len(groups) * candidates * 0.5 * 2 * tokens * sum(group.parameters for group in groups)
