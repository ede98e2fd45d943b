"""Calibration text that the model itself writes: what a small model was trained on, found without knowing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..checkpoint.expected_tensors import parameter_count
from ..reference.layers import LayerStates
from ..reference.model import Reference
from .blas_threads import single_threaded_blas

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

LARGEST_PARAMETERS = 64 << 20
"""Above it token by token takes minutes; and a large model knows the languages of any text that it is given."""

_SEQUENCE_TOKENS = 256


def writes_own_text(checkpoint: Checkpoint) -> bool:
    """Whether the model is small enough, and has the token that its texts begin with."""
    config = checkpoint.config
    return parameter_count(config) <= LARGEST_PARAMETERS and config.bos_token_id is not None


def own_text(checkpoint: Checkpoint, tokens: int, seed: int = 0) -> list[npt.NDArray[np.int64]]:
    """Sequences of up to 256 tokens, ``tokens`` in all, drawn from the model's own distribution after its bos token.

    The same checkpoint and seed give the same text. A model tuned on chats goes on after the end of a turn with the
    next one. Raises ValueError where config.json names no bos token.
    """
    config = checkpoint.config
    if config.bos_token_id is None:
        raise ValueError("config.json names no bos_token_id to begin a text with")
    reference = Reference(checkpoint)
    random = np.random.default_rng(seed)
    sequences = []
    with single_threaded_blas():
        for start in range(0, tokens, _SEQUENCE_TOKENS):
            length = min(_SEQUENCE_TOKENS, tokens - start, config.max_position_embeddings)
            sequences.append(_sequence(reference, config.bos_token_id, length, random))
    return sequences


def _sequence(reference: Reference, first: int, length: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    ids = [first]
    state: LayerStates | None = None
    while len(ids) < length:
        logits, state = reference.forward(ids[-1:], state, logits="last")
        likelihood = np.exp(logits[-1].astype(np.float64) - logits[-1].max())
        cumulated = np.cumsum(likelihood)
        drawn = int(np.searchsorted(cumulated, random.random() * cumulated[-1], side="right"))
        ids.append(min(drawn, len(cumulated) - 1))
    return np.array(ids, np.int64)
