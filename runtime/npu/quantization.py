"""Affine quantization at the border between host and graph, on whole arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...artifact.npu_parts import NpuPort


def quantize(values: np.ndarray, value: NpuPort) -> np.ndarray:
    """``values`` (float) in the storage of ``value``: round to nearest even, clipped to its dtype."""
    if value.scale is None:
        return values.astype(value.dtype, copy=False)
    limits = np.iinfo(value.dtype)
    scaled = np.rint(values.astype(np.float32, copy=False) * np.float32(1 / value.scale))
    scaled += np.float32(value.zero_point)
    result: np.ndarray = np.clip(scaled, limits.min, limits.max, out=scaled).astype(value.dtype)
    return result


def dequantize(stored: np.ndarray, value: NpuPort) -> np.ndarray:
    """What ``stored`` means, float32."""
    if value.scale is None:
        return stored.astype(np.float32, copy=False)
    real = stored.astype(np.float32)
    real -= np.float32(value.zero_point)
    real *= np.float32(value.scale)
    return real


def empty(value: NpuPort, shape: Sequence[int] | None = None) -> np.ndarray:
    """An array of ``value``'s storage that means zero everywhere."""
    return np.full(value.shape if shape is None else tuple(shape), value.zero_point, value.dtype)
