"""Ranges of every tensor, from running the float graphs on texts: layer by layer, so that one layer is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.expected_tensors import EMBEDDING
from ...errors import InputError
from ...hardware.cores import thread_count
from ...quantize.blas_threads import single_threaded_blas
from .expert_ranges import Routed, observe_experts
from .float_runner import FloatGraph, FloatPart, Ranges
from .float_weights import row_pieces
from .ordered_work import in_order
from .part_graph import MoeForm, PartShape, Phase, declare_part, residual_name
from .quantization import Range
from .static_graph import Array
from .weight_sources import WeightSources

Ids = npt.NDArray[np.int64] | Sequence[int]


@dataclass(frozen=True)
class CalibrationOptions:
    """chunk: tokens of a prefill call; padding never enters the ranges, since what does not fill a chunk is decoded.

    decoded: tokens at the end of each sequence that go through the decode graph, as far as a first chunk leaves them.
    head_tokens: positions whose logits are looked at.
    """

    chunk: int = 48
    decoded: int = 8
    head_tokens: int = 256


def calibrate(
    checkpoint: Checkpoint,
    sequences: Sequence[Ids],
    decode: MoeForm,
    prefill: MoeForm = MoeForm.WIDE,
    options: CalibrationOptions | None = None,
    on_layer: Callable[[int], None] = lambda layer: None,
    threads: int | None = None,
) -> dict[str, Range]:
    """Smallest and largest value by tensor name over both graphs, all layers and all ``sequences`` of token ids.

    The embeddings' range is that of the whole table. An expert's tensors are seen for the tokens that choose it. The
    ranges do not depend on ``threads`` (None: one for each processor). InputError without a token.
    """
    options = options or CalibrationOptions()
    if not any(len(sequence) for sequence in sequences):
        raise InputError("calibration needs at least one sequence of tokens; give a text with `calibration`")
    with single_threaded_blas(), ThreadPoolExecutor(thread_count(threads)) as pool:
        calibration = _Calibration(checkpoint, decode, prefill, options, pool)
        calibration.begin(sequences)
        for layer in range(checkpoint.config.num_hidden_layers):
            calibration.observe_layer(layer)
            on_layer(layer)
        calibration.observe_head()
    return calibration.ranges.by_tensor


class _Calibration:
    """The residual streams [T, H] of all sequences on their way through the layers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        decode: MoeForm,
        prefill: MoeForm,
        options: CalibrationOptions,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.ranges = Ranges()
        self._checkpoint, self._decode, self._prefill, self._options = checkpoint, decode, prefill, options
        self._pool = pool
        self._streams: list[Array] = []

    def begin(self, sequences: Sequence[Ids]) -> None:
        self.ranges.merge({residual_name(-1): _table_range(self._checkpoint)})
        self._streams = [_embed(self._checkpoint, np.asarray(ids, np.int64)) for ids in sequences if len(ids)]

    def observe_layer(self, layer: int) -> None:
        config = self._checkpoint.config
        if not config.is_moe_layer(layer):
            outputs = self._outputs(layer)
            self._streams = [found["hidden_states_next"] for found in outputs]
            return
        block, feed_forward = f"layers.{layer}.", f"layers.{layer}.feed_forward."
        router = feed_forward + ("router.weights" if config.norm_topk_prob else "router.picked")
        names = (f"{block}operator_sum", f"{block}ffn_norm", f"{feed_forward}router.chosen", router)
        outputs = self._outputs(layer, names)
        residual, x, chosen, weights = (np.concatenate([found[name] for found in outputs]) for name in names)
        residual += observe_experts(
            self._pool,
            WeightSources(self._checkpoint, f"model.{feed_forward}"),
            config,
            Routed(x, chosen, weights),
            (self._prefill, self._decode),
            in_turn=self._prefill is not MoeForm.WIDE,
            ranges=self.ranges,
            scope=feed_forward,
        )
        self._observe(residual_name(layer), residual)
        self._streams = np.split(residual, np.cumsum([len(stream) for stream in self._streams])[:-1])

    def observe_head(self) -> None:
        """Of evenly spread positions, the table read in pieces."""
        rows = np.concatenate(self._streams)
        chosen = np.linspace(0, len(rows) - 1, min(len(rows), self._options.head_tokens)).astype(int)
        last = self._checkpoint.config.num_hidden_layers
        graph = declare_part(self._checkpoint, PartShape(last, last, True, 1), Phase.DECODE, len(chosen))
        norm = FloatGraph(graph.ending_at(["embedding_norm"]), {}, ranges=self.ranges)
        x = norm.run({"hidden_states": rows[chosen][None]})["embedding_norm"][0]
        head = graph.weights["lm_head.weight"]

        def logits(piece: tuple[int, int]) -> Array:
            result: Array = x @ head.rows(*piece).T
            return result

        for _, found in in_order(self._pool, logits, row_pieces(head)):
            self._observe("logits", found)

    def _outputs(self, layer: int, until: Sequence[str] = ()) -> list[dict[str, Array]]:
        """What the layer's graphs give for each sequence: [T, …] by name."""
        columns = max(len(stream) for stream in self._streams)
        part = FloatPart(
            self._checkpoint,
            PartShape(layer, layer + 1, False, columns),
            min(self._options.chunk, max(columns - 1, 1)),
            decode=self._decode,
            prefill=self._prefill,
            ranges=self.ranges,
            until=until,
        )
        return list(self._pool.map(lambda stream: _through(part, stream, self._options), self._streams))

    def _observe(self, name: str, values: Array) -> None:
        self.ranges.add(name, float(values.min()), float(values.max()))


def _through(part: FloatPart, stream: Array, options: CalibrationOptions) -> dict[str, Array]:
    """The part's outputs for all tokens of a residual stream [T, H]."""
    state, outputs, position = part.new_state(), [], 0
    while position + part.chunk <= len(stream) - (options.decoded if position else 1):
        outputs.append(part.feed(stream[position : position + part.chunk], state, prefill=True))
        position += part.chunk
    for token in range(position, len(stream)):
        outputs.append(part.feed(stream[token : token + 1], state, prefill=False))
    return {name: np.concatenate([found[name] for found in outputs]) for name in outputs[0]}


def _embed(checkpoint: Checkpoint, ids: npt.NDArray[np.int64]) -> Array:
    if ids.min() < 0 or ids.max() >= checkpoint.config.vocab_size:
        raise InputError(
            f"calibration tokens must be 0 to {checkpoint.config.vocab_size - 1}; use the model's tokenizer"
        )
    return checkpoint.gather(EMBEDDING, ids)


def _table_range(checkpoint: Checkpoint) -> Range:
    """Smallest and largest number in the embedding table, read in pieces."""
    name, rows = EMBEDDING, checkpoint.config.vocab_size
    step = max(1, (4 << 20) // checkpoint.config.hidden_size)
    low = high = 0.0
    for first in range(0, rows, step):
        piece = checkpoint.float32(name, slice(first, min(first + step, rows)))
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
    return low, high
