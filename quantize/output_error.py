"""How far quantization moves a tensor's outputs, on a sample of its rows: what the report tells of every tensor."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from ..artifact.formats import BlockFormat, Float32, QuantizedRows, dequantize
from .hessian import HessianFactor
from .round_to_nearest import quantize_round_to_nearest

_SAMPLE = 16
"""Rows of each piece that are measured: a hundredth of what quantizing the piece takes."""


@dataclass
class _Sums:
    outputs: float = 0.0
    round_to_nearest: float = 0.0
    quantized: float = 0.0


class OutputErrors:
    """Sums over pieces of |E x|^2, E = weights - quantized, for inputs x as a HessianFactor knows them; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, dict[bytes, _Sums]] = {}

    def add(
        self, name: str, weights: Float32, quantized: QuantizedRows, fmt: BlockFormat, factor: HessianFactor
    ) -> None:
        """Measure rows at even distances of a piece of tensor ``name``: weights [n, K] and the blocks made of them."""
        count, columns = weights.shape
        rows = np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64)
        sample = np.ascontiguousarray(weights[rows])
        zeros = None if quantized.zero_points is None else quantized.zero_points[rows]
        stored = QuantizedRows(quantized.data[rows], quantized.scales[rows], zeros)
        plain = dequantize(quantize_round_to_nearest(sample, fmt), fmt, columns)
        errors = np.concatenate([sample, sample - plain, sample - dequantize(stored, fmt, columns)])
        squares = np.square(errors @ factor.unit) @ factor.pivots
        sums = _Sums(*squares.reshape(3, -1).sum(axis=1, dtype=np.float64).tolist())
        # Keyed by content: a piece quantized again, after the codes for the scales, counts once, in any order.
        with self._lock:
            self._sums.setdefault(name, {})[sample[:1].tobytes()[:64] + bytes(str(count), "ascii")] = sums

    def by_tensor(self) -> dict[str, dict[str, float]]:
        """name -> squared error over squared output: ``round_to_nearest`` and ``quantized``."""
        result = {}
        with self._lock:
            for name, pieces in sorted(self._sums.items()):
                ordered = [pieces[key] for key in sorted(pieces)]
                outputs = sum(piece.outputs for piece in ordered) or 1.0
                result[name] = {
                    "round_to_nearest": sum(piece.round_to_nearest for piece in ordered) / outputs,
                    "quantized": sum(piece.quantized for piece in ordered) / outputs,
                }
        return result
