"""Inputs of every linear and expert on calibration text: the reference's blocks layer by layer, its matrices watched.

Bounded memory: the residual stream of all tokens, what went into the matrices of the last three layers reached, and a
few rows of one weight matrix at a time are all that is held.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..artifact.formats import Float32
from ..artifact.graph_weights import GraphWeight, TensorKind
from ..checkpoint.expected_tensors import head_tensor
from ..errors import InputError
from ..hardware.cores import thread_count
from ..reference.layers import Streams, embed, feed_forward, final_norm, operator
from ..reference.weights import ConvertedWeights, Weights
from .blas_threads import single_threaded_blas
from .watched_weights import RecordedInputs, WatchedMatrices, WatchedWeights

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

_HEAD_ROWS = 4096

_KEPT_LAYERS = 3
"""Threads that quantize may still be at the last matrices of a layer when another starts with the next layer; the one
after that is made ready meanwhile."""

KEPT_BYTES = 256 << 20
"""Up to this size more layers are kept: small models are then visited in any order without starting again."""


class LayerInputs:
    """Second moments of the inputs of each weight that has blocks, over the tokens of ``sequences`` (int64 ids each).

    Moves through the layers forwards only, with several ``threads`` one ahead of the layer asked for: asking for one
    before the last three reached starts again. Results do not depend on ``threads``. Safe to call from several threads.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Sequence[GraphWeight],
        sequences: Sequence[npt.ArrayLike],
        *,
        threads: int | None = None,
    ) -> None:
        """weights: the table of a graph with block formats."""
        self._checkpoint = checkpoint
        self._matrices = WatchedMatrices.of(weights)
        self._config = checkpoint.config
        self._ids = [np.asarray(ids, np.int64) for ids in sequences if len(np.asarray(ids))]
        if not self._ids:
            raise InputError("the calibration text has no tokens: give a longer text")
        for ids in self._ids:
            if ids.ndim != 1 or ids.min() < 0 or ids.max() >= self._config.vocab_size:
                raise InputError(
                    f"the calibration text has token ids outside of 0 to {self._config.vocab_size - 1}; "
                    "use the tokenizer that came with the checkpoint"
                )
        self._threads = thread_count(threads)
        self._stepping = threading.RLock()
        self._lock = threading.Lock()
        self._head: Float32 | None = None
        self._head_moment: Float32 | None = None
        self._restart()

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences together."""
        return sum(len(ids) for ids in self._ids)

    @property
    def held_layers(self) -> int:
        """Layers whose inputs are in memory now."""
        with self._lock:
            return len(self._kept)

    def second_moment(self, weight: GraphWeight, expert: int | None = None) -> tuple[Float32, int]:
        """H = X^T X / tokens [K, K] of the weight's input X, and the number of tokens in X.

        expert: of a weight of experts the tokens routed to that expert, None for those of all experts. H is 0 where
        there are none.
        """
        pieces = self.rows_into(weight, expert)
        moment = np.zeros((weight.columns,) * 2, np.float32)
        tokens = sum(len(piece) for piece in pieces)
        with single_threaded_blas():
            for piece in pieces:
                moment += piece.T @ piece
        moment /= np.float32(max(tokens, 1))
        return moment, tokens

    def head_moment(self) -> Float32:
        """[H, H]: second moment of the head's input over the tokens, each weighed by how much its logits matter.

        The weight is 1 - sum_v p_v^2 + 0.02, p the distribution that the token predicts: where one next token is all
        but certain an error of the logits changes nothing, and the divergence stays 0.
        """
        x = self._head_input()
        with self._stepping:
            if self._head_moment is None:
                with single_threaded_blas():
                    weights = self._uncertainty(x) + np.float32(0.02)
                    self._head_moment = (x * weights[:, None]).T @ x / weights.sum()
            return self._head_moment

    def _uncertainty(self, x: Float32) -> Float32:
        """1 - sum_v p_v^2 of each token, [T], the vocabulary read a few rows at a time."""
        head = head_tensor(self._config)
        count = self._config.vocab_size

        def sums(first: int) -> Float32:
            rows = slice(first, min(first + _HEAD_ROWS, count))
            logits = x @ self._checkpoint.float32(head, rows).T
            top = logits.max(axis=1)
            logits -= top[:, None]
            np.exp(logits, out=logits)
            return np.stack([top, logits.sum(axis=1), np.square(logits, out=logits).sum(axis=1)])

        with ThreadPoolExecutor(self._threads) as pool:
            top, total, squares = np.stack(list(pool.map(sums, range(0, count, _HEAD_ROWS))), axis=1)
        share = np.exp(top - top.max(axis=0))
        result: Float32 = 1 - (squares * share * share).sum(axis=0) / np.square((total * share).sum(axis=0))
        return result

    def importance(self, weight: GraphWeight, expert: int | None = None) -> Float32:
        """[K]: mean square of each column of the weight's input, the diagonal of ``second_moment``; 0 if no tokens."""
        pieces = self.rows_into(weight, expert)
        tokens = sum(len(piece) for piece in pieces)
        total = sum((np.square(piece).sum(axis=0) for piece in pieces), np.zeros(weight.columns, np.float32))
        result: Float32 = total / np.float32(max(tokens, 1))
        return result

    def expert_tokens(self, weight: GraphWeight) -> npt.NDArray[np.int64]:
        """[E]: tokens that the router sends to each expert of a weight."""
        counts = [sum(map(len, self.rows_into(weight, expert))) for expert in range(weight.experts)]
        return np.array(counts, np.int64)

    def rows_into(self, weight: GraphWeight, expert: int | None = None) -> list[Float32]:
        """Rows [n, K] that the weight is multiplied with, in pieces; ``expert`` as for ``second_moment``."""
        if weight.kind in (TensorKind.EMBEDDING, TensorKind.LM_HEAD):
            return [self._head_input()]
        if weight.group is None or weight.layer is None:
            raise KeyError(f"{weight.name} is no weight whose inputs are recorded")
        inputs = self._reach(weight.layer).inputs
        if expert is None and weight.common_input is not None:
            return inputs[weight.common_input]  # every token counts top-k times, and so none more than another
        if not weight.experts:
            return inputs[weight.sources[0]]
        experts = range(weight.experts) if expert is None else (expert,)
        return [piece for index in experts for piece in inputs.get(weight.sources_of(index)[0], ())]

    # --- the forward pass ---------------------------------------------------------------------------------------------

    def _restart(self) -> None:
        self._weights = Weights(self._checkpoint, ConvertedWeights(budget=0))
        self._streams: Streams = embed(self._weights, self._ids)
        self._next = 0
        with self._lock:
            self._kept: dict[int, RecordedInputs] = {}
            self._ahead = 0

    def _reach(self, layer: int) -> RecordedInputs:
        """The inputs within ``layer``, after as many steps of the forward pass as that takes."""
        reached = self._at(layer)
        if reached is None:
            with self._stepping:
                if self._at(layer) is None and layer < self._next:
                    self._restart()
                reached = self._advance(layer)
        self._go_ahead(layer + 1)
        return reached

    def _at(self, layer: int) -> RecordedInputs | None:
        with self._lock:
            return self._kept.get(layer)

    def _advance(self, layer: int) -> RecordedInputs:
        with self._stepping:
            if self._next <= layer:
                with single_threaded_blas(), ThreadPoolExecutor(self._threads) as pool:
                    while self._next <= layer:
                        self._step(pool)
            with self._lock:
                return self._kept[layer]

    def _go_ahead(self, layer: int) -> None:
        """Make the layer ready while the one before it is quantized, once; what fails here fails again when asked."""
        with self._lock:
            if self._threads == 1 or layer <= self._ahead or layer >= self._config.num_hidden_layers:
                return
            self._ahead = layer
        threading.Thread(target=self._advance_quietly, args=(layer,), name="next-layer", daemon=True).start()

    def _advance_quietly(self, layer: int) -> None:
        with suppress(Exception):
            if self._next == layer:
                self._advance(layer)

    def _head_input(self) -> Float32:
        """The final norm's output [T, H]. Asked for before the layers, it costs a pass of its own."""
        with self._stepping:
            if self._head is None:
                self._reach(self._config.num_hidden_layers - 1)
                self._head = final_norm(self._config, self._weights, self._streams)
            return self._head

    def _step(self, pool: ThreadPoolExecutor) -> None:
        """Take the residual streams through the next layer."""
        config, index = self._config, self._next
        layer = RecordedInputs()
        weights = WatchedWeights(self._checkpoint, self._matrices, layer, pool)
        self._streams = feed_forward(config, weights, index, operator(config, weights, index, self._streams))
        self._next += 1
        with self._lock:
            self._kept[index] = layer
            while len(self._kept) > _KEPT_LAYERS and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                del self._kept[min(self._kept)]
