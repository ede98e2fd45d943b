"""Block formats of quantized weights: how a matrix is cut into blocks, and which bytes stand for its values.

A row-major matrix W [N, K] (out, in) is stored as

- data uint8 [N, blocks, block_bytes]: the codes. int4: byte j of a block holds element 2j in its low nibble and
  element 2j+1 in its high one; int8: byte j is element j. Codes are unsigned.
- scales float16 or float32 [N, blocks].
- zero_points uint8 [N, zero_point_bytes], one code a block, packed along the blocks like data; only in formats that are
  not symmetric.

value = (code - zero_point) * scale. K need not be a multiple of the block size: the last block of a row is padded with
the zero point. This is what com.microsoft.MatMulNBits and, with the last two axes of data as one, QMoE read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .int4 import pack_int4, unpack_int4

Codes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

BITS = (4, 8)
BLOCK_SIZES = (32, 64, 128)
SCALE_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class BlockFormat:
    """Integers of ``bits`` bits in blocks of ``block_size`` elements along the input axis, each with its own scale.

    symmetric: every zero point is 2**(bits-1) and none is stored. scale_dtype: "float16" or "float32".
    Raises ValueError for values that no runtime reads.
    """

    bits: int
    block_size: int = 32
    symmetric: bool = True
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        for name, allowed in (("bits", BITS), ("block_size", BLOCK_SIZES), ("scale_dtype", SCALE_DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, allowed))}")

    @property
    def name(self) -> str:
        """Such as ``int4-block32-symmetric-float16``."""
        kind = "symmetric" if self.symmetric else "zero-points"
        return f"int{self.bits}-block{self.block_size}-{kind}-{self.scale_dtype}"

    @property
    def zero_point(self) -> int:
        """The code of 0 in symmetric formats."""
        return 1 << (self.bits - 1)

    @property
    def max_code(self) -> int:
        """The largest code: 15 at 4 bits, 255 at 8."""
        return (1 << self.bits) - 1

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's codes."""
        return self.block_size * self.bits // 8

    @property
    def scale_numpy(self) -> np.dtype[np.generic]:
        """The scales' dtype as numpy's."""
        return np.dtype(self.scale_dtype)

    @property
    def bits_per_weight(self) -> float:
        """Storage with scales and zero points, where the block size divides K."""
        zero_point_bits = 0 if self.symmetric else self.bits
        return self.bits + (8 * self.scale_numpy.itemsize + zero_point_bits) / self.block_size

    def blocks(self, columns: int) -> int:
        """Blocks in a row of ``columns`` elements."""
        return -(-columns // self.block_size)

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row's codes."""
        return self.blocks(columns) * self.block_bytes

    def zero_point_bytes(self, columns: int) -> int:
        """Bytes of a row's zero points; 0 in symmetric formats."""
        return 0 if self.symmetric else -(-self.blocks(columns) * self.bits // 8)

    def pack(self, codes: Codes, axis: int = -1) -> Codes:
        """Codes one a byte → packed along ``axis``, n to ceil(n * bits / 8); an odd last nibble stands beside a 0."""
        return codes if self.bits == 8 else pack_int4(codes, axis)

    def unpack(self, packed: Codes, count: int) -> Codes:
        """The first ``count`` codes of each row of packed [..., bytes], one a byte: the inverse of ``pack``."""
        return packed[..., :count] if self.bits == 8 else unpack_int4(packed, count)

    def to_dict(self) -> dict[str, Any]:
        """The format as the manifest states it."""
        return {
            "dtype": f"int{self.bits}",
            "bits": self.bits,
            "block_size": self.block_size,
            "symmetric": self.symmetric,
            "scale_dtype": self.scale_dtype,
            "bits_per_weight": self.bits_per_weight,
        }


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of a matrix [N, K] in a block format, as the arrays that the file stores (see the module's text)."""

    data: Codes
    """[N, blocks, block_bytes]"""
    scales: npt.NDArray[np.generic]
    """[N, blocks]"""
    zero_points: Codes | None
    """[N, zero_point_bytes], None in symmetric formats"""


def dequantize(rows: QuantizedRows, fmt: BlockFormat, columns: int) -> Float32:
    """The values [N, columns] that the blocks stand for: the definition that every kernel and body is tested by."""
    count, blocks = rows.scales.shape
    codes = fmt.unpack(rows.data, fmt.block_size).astype(np.int32)
    if rows.zero_points is None:
        zero_points = np.full((count, blocks), fmt.zero_point, np.int32)
    else:
        zero_points = fmt.unpack(rows.zero_points, blocks).astype(np.int32)
    values = (codes - zero_points[..., None]).astype(np.float32) * rows.scales.astype(np.float32)[..., None]
    return values.reshape(count, -1)[:, :columns]
