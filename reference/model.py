"""The reference of LFM2 and LFM2-MoE: the model in float32 numpy, layer by layer over a checkpoint of any size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .blocks import (
    KeyValue,
    attention,
    rms_norm,
    rotary_angles,
    short_conv,
    sparse_moe,
    swiglu,
)
from .weights import CACHE_BYTES, ConvertedWeights, Weights

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

Array = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64] | Sequence[int]
State = TypeVar("State")


@dataclass(frozen=True)
class ReferenceState:
    """What a sequence leaves behind after ``length`` tokens; never altered, so that it can be continued twice.

    conv: layer -> last conv_L_cache - 1 columns of B * x, ``[L-1, H]``.
    key_value: layer -> rotated keys and values, ``[length, kv_heads, head_dim]`` each.
    """

    length: int = 0
    conv: dict[int, Array] = field(default_factory=dict)
    key_value: dict[int, KeyValue] = field(default_factory=dict)


class Reference:
    """The model of a checkpoint in float32 on one sequence at a time.

    Weights are read from the mapped files and converted one matrix (of one expert) at a time; at most ``cache_bytes``
    of converted weights stay for the next call, which keeps token-by-token decoding of small models quick.
    """

    def __init__(self, checkpoint: Checkpoint, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.config = checkpoint.config
        self.weights = Weights(checkpoint, ConvertedWeights(budget=cache_bytes))
        self._head = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"

    def forward(
        self,
        input_ids: TokenIds,
        state: ReferenceState | None = None,
        *,
        hidden: list[Array] | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> tuple[Array, ReferenceState]:
        """Logits of the tokens ``input_ids [T]`` that follow what ``state`` has seen, and the state after them.

        ``x = embed(ids)``; for each layer ``x += operator(norm(x)); x += feed_forward(norm(x))``;
        ``logits = norm(x) W_head^T``. Returns float32 ``[T, V]``, or ``[1, V]`` of the last token if logits is "last".
        To ``hidden`` are appended the embeddings, the residual stream after each layer and the final norm's output,
        ``[T, H]`` each: num_hidden_layers + 2 arrays. Raises InputError for ids that are no tokens of this model.
        """
        config, weights = self.config, self.weights
        ids = token_ids(input_ids, config.vocab_size)
        before = state or ReferenceState()
        after = ReferenceState(before.length + len(ids))
        cos, sin = rotary_angles(before.length, len(ids), config.head_dim, config.rope_theta)

        x = weights.gather("model.embed_tokens.weight", ids)
        seen = [x]
        for i, kind in enumerate(config.layer_types):
            layer = weights.scope(f"model.layers.{i}.")
            y = rms_norm(x, layer("operator_norm.weight"), config.norm_eps)
            if kind == "conv":
                y, after.conv[i] = short_conv(y, layer.scope("conv."), config, before.conv.get(i))
            else:
                past = before.key_value.get(i)
                y, after.key_value[i] = attention(y, layer.scope("self_attn."), config, cos, sin, past)
            x = x + y
            y = rms_norm(x, layer("ffn_norm.weight"), config.norm_eps)
            feed_forward = layer.scope("feed_forward.")
            x = x + (sparse_moe(y, feed_forward, config) if config.is_moe_layer(i) else swiglu(y, feed_forward))
            if hidden is not None:
                seen.append(x)

        x = rms_norm(x, weights("model.embedding_norm.weight"), config.norm_eps)
        if hidden is not None:
            hidden.extend([*seen, x])
        return self._logits(x if logits == "all" else x[-1:]), after

    def greedy(self, input_ids: TokenIds, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """The most likely continuation token by token; ends after max_new_tokens or with an end token."""
        return greedy_tokens(
            lambda ids, state: self.forward(ids, state, logits="last"), input_ids, max_new_tokens, eos_token_ids
        )

    def _logits(self, x: Array) -> Array:
        logits = np.empty((x.shape[0], self.config.vocab_size), np.float32)
        for rows, matrix in self.weights.row_chunks(self._head):
            logits[:, rows] = x @ matrix.T
        return logits


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
