"""The largest activation of a short text, layer by layer: whether float16 can hold what lies between the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..reference.layers import Streams, embed, walk
from ..reference.weights import ConvertedWeights, WeightReader, Weights

FLOAT16_LARGEST = 65504.0
_TOKENS = 32

Array = npt.NDArray[np.float32]


@dataclass
class ActivationRange:
    """The largest magnitude so far, and where it was: a matrix's name for what goes into it or comes out."""

    largest: float = 0.0
    where: str = ""

    def see(self, where: str, values: Array) -> None:
        """Largest magnitude of ``values`` (not empty), kept with ``where`` if it exceeds what was kept or is NaN."""
        largest = float(np.abs(values).max())
        if not largest <= self.largest:  # NaN too: a float32 that overflowed
            self.largest, self.where = largest, where

    @property
    def fits_float16(self) -> bool:
        """Whether float16 holds the largest magnitude; False for NaN."""
        return self.largest <= FLOAT16_LARGEST


def activation_range(reader: WeightReader, sequences: Sequence[npt.NDArray[np.int64]]) -> ActivationRange:
    """Of the beginning of the first of ``sequences``; without any, of tokens from all over the vocabulary."""
    config = reader.config
    ids = sequences[0][:_TOKENS] if sequences else np.linspace(0, config.vocab_size - 1, _TOKENS).astype(np.int64)
    seen = ActivationRange()
    weights = Weights(reader, ConvertedWeights(budget=0))
    layer = -1

    def after_layer(streams: Streams) -> None:
        nonlocal layer
        layer += 1
        seen.see(f"the residual stream after layer {layer}", streams[0])

    with np.errstate(all="ignore"):
        walk(config, _RangedWeights(weights, seen), embed(weights, [ids]), after_layer=after_layer)
    return seen


@dataclass(frozen=True)
class _RangedWeights:
    """Weights for the walk whose matrices look at what they are multiplied by and at the product."""

    weights: Weights
    seen: ActivationRange
    prefix: str = ""

    def scope(self, prefix: str) -> _RangedWeights:
        return _RangedWeights(self.weights, self.seen, self.prefix + prefix)

    def __call__(self, name: str) -> Any:
        full = self.prefix + name
        values = self.weights(full)
        return _RangedMatrix(values, full.removesuffix(".weight"), self.seen) if values.ndim == 2 else values


@dataclass(frozen=True)
class _RangedMatrix:
    """W in ``x @ W.T``."""

    values: Array
    name: str
    seen: ActivationRange
    __array_ufunc__: None = field(default=None, init=False)  # numpy then leaves x @ self to __rmatmul__

    @property
    def T(self) -> _RangedMatrix:
        return self

    def __rmatmul__(self, x: Array) -> Array:
        y: Array = x @ self.values.T
        self.seen.see(f"the input of {self.name}", x)
        self.seen.see(f"the output of {self.name}", y)
        return y
