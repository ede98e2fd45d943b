"""Two 4-bit codes a byte, the first in the low nibble: as blocks hold them, and as ONNX stores INT4."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pack_int4(codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8], axis: int = -1) -> npt.NDArray[np.uint8]:
    """Codes one a byte → two a byte along ``axis``; an odd last one stands beside a 0.

    uint8 codes are 0 … 15; int8 ones -8 … 7, stored as two's complement.
    """
    nibbles = codes.view(np.uint8) & 15 if codes.dtype == np.int8 else codes
    axis %= nibbles.ndim
    if nibbles.shape[axis] % 2:
        nibbles = np.pad(nibbles, [(0, int(i == axis)) for i in range(nibbles.ndim)])
    if axis == nibbles.ndim - 1:
        # Two codes as one little-endian number: low + 256 * high, and the byte is low + 16 * high.
        pairs = np.ascontiguousarray(nibbles).view("<u2")
        result: npt.NDArray[np.uint8] = (pairs | (pairs >> 4)).astype(np.uint8)
        return result
    before = (slice(None),) * axis
    even, odd = (*before, slice(0, None, 2)), (*before, slice(1, None, 2))
    result = np.bitwise_or(nibbles[even], nibbles[odd] << 4, dtype=np.uint8)
    return result


def unpack_int4(packed: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """The first ``count`` codes 0 … 15 of each row of packed [..., bytes], one a byte."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :count]
