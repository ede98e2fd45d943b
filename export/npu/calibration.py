"""Ranges of every tensor, from running the float graphs on texts: layer by layer, so that one layer is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...checkpoint import Checkpoint
from ...errors import InputError
from .float_runner import FloatPart, Ranges
from .part_graph import MoeForm, PartShape, residual_name
from .quantization import Range
from .static_graph import Array

Ids = npt.NDArray[np.int64] | Sequence[int]


@dataclass(frozen=True)
class CalibrationOptions:
    """chunk: tokens of a prefill call; padding never enters the ranges, since what does not fill a chunk is decoded.

    decoded: tokens at the end of each sequence that go through the decode graph, as far as a first chunk leaves them.
    head_tokens: positions whose logits are looked at.
    """

    chunk: int = 32
    decoded: int = 24
    head_tokens: int = 256


def calibrate(
    checkpoint: Checkpoint,
    sequences: Sequence[Ids],
    decode: MoeForm,
    prefill: MoeForm = MoeForm.WIDE,
    options: CalibrationOptions | None = None,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> dict[str, Range]:
    """Smallest and largest value by tensor name over both graphs, all layers and all ``sequences`` of token ids.

    The embeddings' range is that of the whole table. InputError without a token.
    """
    options = options or CalibrationOptions()
    if not any(len(sequence) for sequence in sequences):
        raise InputError("calibration needs at least one sequence of tokens; give a text with --calibration")
    config = checkpoint.config
    ranges = Ranges()
    ranges.merge({residual_name(-1): _table_range(checkpoint)})
    streams = [_embed(checkpoint, np.asarray(ids, np.int64)) for ids in sequences if len(ids)]
    columns = max(len(stream) for stream in streams)
    chunk = min(options.chunk, max(columns - 1, 1))
    for i in range(config.num_hidden_layers):
        part = FloatPart(
            checkpoint,
            PartShape(i, i + 1, False, columns),
            chunk,
            decode=decode,
            prefill=prefill,
            ranges=ranges,
        )
        streams = [_through(part, stream, options) for stream in streams]
        del part  # before the next layer's weights are made
        on_layer(i)
    head = FloatPart(
        checkpoint, PartShape(config.num_hidden_layers, config.num_hidden_layers, True, columns), 2, ranges=ranges
    )
    rows = np.concatenate(streams)
    for position in np.linspace(0, len(rows) - 1, min(len(rows), options.head_tokens)).astype(int):
        head.feed(rows[position : position + 1], head.new_state(), prefill=False)
    head.feed(rows[:2], head.new_state(), prefill=True)
    return ranges.seen


def _through(part: FloatPart, stream: Array, options: CalibrationOptions) -> Array:
    """The residual stream [T, H] behind the layer."""
    state, outputs, position = part.new_state(), [], 0
    while position + part.chunk <= len(stream) - (options.decoded if position else 1):
        outputs.append(part.feed(stream[position : position + part.chunk], state, prefill=True))
        position += part.chunk
    for token in range(position, len(stream)):
        outputs.append(part.feed(stream[token : token + 1], state, prefill=False))
    return np.concatenate(outputs)


def _embed(checkpoint: Checkpoint, ids: npt.NDArray[np.int64]) -> Array:
    name = "model.embed_tokens.weight"
    if ids.min() < 0 or ids.max() >= checkpoint.config.vocab_size:
        raise InputError(
            f"calibration tokens must be 0 to {checkpoint.config.vocab_size - 1}; use the model's tokenizer"
        )
    return checkpoint.raw(name)[ids].astype(np.float32)


def _table_range(checkpoint: Checkpoint) -> Range:
    """Smallest and largest number in the embedding table, read in pieces."""
    name, rows = "model.embed_tokens.weight", checkpoint.config.vocab_size
    step = max(1, (4 << 20) // checkpoint.config.hidden_size)
    low = high = 0.0
    for first in range(0, rows, step):
        piece = checkpoint.float32(name, slice(first, min(first + step, rows)))
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
    return low, high
