"""What the host gives a graph besides tokens and states: mask, rotary angles, and where the valid tokens end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...checkpoint.config import LfmConfig
from ..graph_context import rotary_cache
from .blocks import HIDDEN

Array = npt.NDArray[np.float32]


def attention_mask(filled: int, tokens: int, context_length: int) -> Array:
    """float32 [1, 1, tokens, context_length + tokens]: the first ``filled`` cache columns are seen, and new ones up to
    a query's own; the rest is ``HIDDEN``.
    """
    mask = np.full((tokens, context_length + tokens), HIDDEN, np.float32)
    mask[:, :filled] = 0
    mask[:, context_length:][np.tril_indices(tokens)] = 0
    return mask[None, None]


def rotary_inputs(config: LfmConfig, filled: int, tokens: int) -> tuple[Array, Array]:
    """cos and sin of positions filled … filled + tokens - 1, float32 [1, tokens, 1, head_dim/2]."""
    cos, sin = rotary_cache(config, np.arange(filled, filled + tokens))
    return cos[None, :, None], sin[None, :, None]


def state_columns(valid: int, conv_length: int) -> npt.NDArray[np.int32]:
    """int32 [L-1]: among L-1 past columns and the new ones, those of the last valid tokens."""
    return np.arange(valid, valid + conv_length - 1, dtype=np.int32)
