"""How far a model with other weights stands from the original: KLD on text, layer by layer over all of it at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..artifact.formats import Float32
from ..checkpoint.config import LfmConfig
from ..reference.layers import ModelWeights, Streams, embed, final_norm, head_logits, walk
from .blas_threads import single_threaded_blas

_TOKENS = 64
"""Tokens compared at a time: their probabilities are taken in float64."""


@dataclass(frozen=True)
class Divergence:
    """Mean KLD(original || other) in nats per token, its standard error over ``tokens``, and top-1 agreement."""

    kld: float
    standard_error: float
    top1: float
    tokens: int

    @property
    def upper(self) -> float:
        """What the mean over all text of this kind hardly exceeds: two standard errors more."""
        return self.kld + 2 * self.standard_error


def model_logits(config: LfmConfig, weights: ModelWeights, sequences: Sequence[npt.NDArray[np.int64]]) -> Float32:
    """[T, V] of all tokens of all sequences; the same whatever the number of threads."""
    with single_threaded_blas():
        return logits(config, weights, walk(config, weights, embed(weights, sequences)))


def logits(config: LfmConfig, weights: ModelWeights, streams: Streams) -> Float32:
    """[T, V] of all tokens from the streams after the last layer."""
    return head_logits(config, weights, final_norm(config, weights, streams))


def divergence(original: Float32, other: Float32) -> Divergence:
    """Of logits [T, V] each."""
    terms = np.concatenate(list(_terms(original, other)))
    error = float(terms.std(ddof=1) / np.sqrt(len(terms))) if len(terms) > 1 else 0.0
    top1 = float((original.argmax(axis=1) == other.argmax(axis=1)).mean())
    return Divergence(float(terms.mean()), error, top1, len(terms))


def _terms(original: Float32, other: Float32) -> Iterator[npt.NDArray[np.float64]]:
    for start in range(0, len(original), _TOKENS):
        p, q = (_log_softmax(part[start : start + _TOKENS]) for part in (original, other))
        yield (np.exp(p) * (p - q)).sum(axis=1)


def _log_softmax(values: Float32) -> npt.NDArray[np.float64]:
    wide = values.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result
