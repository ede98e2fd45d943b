"""The reference of LFM2 and LFM2-MoE: the model in float32 numpy, layer by layer over a checkpoint of any size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .layers import LayerStates, Step, embed, final_norm, head_logits, walk
from .weights import CACHE_BYTES, ConvertedWeights, WeightReader, Weights

Array = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64] | Sequence[int]
State = TypeVar("State")


class Reference:
    """The model of a checkpoint in float32 on one sequence at a time.

    Weights are read from the files and converted one matrix (of one expert) at a time; at most ``cache_bytes`` of
    converted weights stay for the next call, which keeps token-by-token decoding of small models quick.
    """

    def __init__(self, reader: WeightReader, *, cache_bytes: int = CACHE_BYTES) -> None:
        """reader: a Checkpoint, or whatever else reads its tensors."""
        self.config = reader.config
        self.weights = Weights(reader, ConvertedWeights(budget=cache_bytes))

    def forward(
        self,
        input_ids: TokenIds,
        state: LayerStates | None = None,
        *,
        hidden: list[Array] | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> tuple[Array, LayerStates]:
        """Logits of the tokens ``input_ids [T]`` that follow what ``state`` has seen, and the state after them.

        ``x = embed(ids)``; for each layer ``x += operator(norm(x)); x += feed_forward(norm(x))``;
        ``logits = norm(x) W_head^T``. Returns float32 ``[T, V]``, or ``[1, V]`` of the last token if logits is "last".
        To ``hidden`` are appended the embeddings, the residual stream after each layer and the final norm's output,
        ``[T, H]`` each: num_hidden_layers + 2 arrays. Raises InputError for ids that are no tokens of this model.
        """
        config, weights = self.config, self.weights
        ids = token_ids(input_ids, config.vocab_size)
        step = Step.of(len(ids), state)
        entered = embed(weights, [ids])
        if hidden is None:
            x = final_norm(config, weights, walk(config, weights, entered, [step]))
        else:
            hidden.extend(entered)
            x = final_norm(config, weights, walk(config, weights, entered, [step], hidden.extend))
            hidden.append(x)
        return head_logits(config, weights, x if logits == "all" else x[-1:]), step.after

    def greedy(self, input_ids: TokenIds, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """The most likely continuation token by token; ends after max_new_tokens or with an end token."""
        return greedy_tokens(
            lambda ids, state: self.forward(ids, state, logits="last"), input_ids, max_new_tokens, eos_token_ids
        )


def greedy_tokens(
    step: Callable[[TokenIds, State | None], tuple[Array, State]],
    input_ids: TokenIds,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
) -> list[int]:
    """The token of the highest logit, fed back by ``step``, until max_new_tokens or an end token, which is included."""
    ids, state = input_ids, None
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in eos_token_ids):
        logits, state = step(ids, state)
        tokens.append(int(logits[-1].argmax()))
        ids = tokens[-1:]
    return tokens


def token_ids(input_ids: TokenIds, vocab_size: int) -> npt.NDArray[np.int64]:
    """``input_ids`` as int64 ``[T]``; InputError unless T > 0 and all ids lie in 0 … vocab_size - 1."""
    ids = np.asarray(input_ids)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"expected a non-empty list of token ids, found shape {list(ids.shape)} of {ids.dtype}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        worst = ids.min() if ids.min() < 0 else ids.max()
        raise InputError(
            f"token id {worst} is outside of this model's vocabulary (0 to {vocab_size - 1}); "
            "use the tokenizer that came with the checkpoint"
        )
    return ids.astype(np.int64)
