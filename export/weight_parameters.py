"""The parameters that one weight matrix becomes in the graph: floats, or codes with scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir
from onnxscript import nn

from ..artifact.formats import BlockFormat
from ..checkpoint.config import LfmConfig
from ..errors import InputError
from ..quantize.tensor_groups import tensor_groups

FLOAT, UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8

WeightFormat: TypeAlias = ir.DataType | BlockFormat
"""How linear, expert and embedding weights are stored: float32, float16, or a block format."""


@dataclass(frozen=True)
class WeightFormats:
    """The format of each weight of a model: the same float type for all, or a block format by tensor group."""

    floats: ir.DataType = FLOAT
    blocks: Mapping[str, BlockFormat] = field(default_factory=dict)
    """By group (see quantize/tensor_groups.py); empty in models of float weights."""

    @property
    def quantized(self) -> bool:
        return bool(self.blocks)

    @property
    def zero_points(self) -> bool:
        """Whether the blocks have zero points of their own: all or none of them."""
        return any(not fmt.symmetric for fmt in self.blocks.values())

    def of(self, group: str) -> WeightFormat:
        """The format of the group of that name."""
        return self.blocks[group] if self.blocks else self.floats


SCALES, ZERO_POINTS = "_scales", "_zero_points"
"""What follows a weight's name in the names of its other parameters."""

ACTIVATION_BITS = 8
"""Passed to the quantized ops: activations may be rounded to int8 by block."""


@dataclass(frozen=True)
class WeightParameters:
    """A weight [.., rows, columns] as parameters of the module that declared it."""

    values: nn.Parameter
    """The floats, or uint8 codes."""
    scales: nn.Parameter | None = None
    zero_points: nn.Parameter | None = None


def declare_weight(module: nn.Module, name: str, shape: list[int], fmt: WeightFormat) -> WeightParameters:
    """Parameters ``name``, and in block formats ``name``_scales and ``name``_zero_points, registered with ``module``.

    Matrices [N, K] have codes [N, blocks, block_bytes]; experts [E, N, K] have [E, N, row_bytes], as QMoE wants them.
    """
    if not isinstance(fmt, BlockFormat):
        return WeightParameters(_register(module, name, shape, fmt))
    *rows, columns = shape
    code_shape = [fmt.blocks(columns), fmt.block_bytes] if len(rows) == 1 else [fmt.row_bytes(columns)]
    scale_dtype = ir.DataType.from_numpy(fmt.scale_numpy)
    return WeightParameters(
        _register(module, name, [*rows, *code_shape], UINT8),
        _register(module, name + SCALES, [*rows, fmt.blocks(columns)], scale_dtype),
        None if fmt.symmetric else _register(module, name + ZERO_POINTS, [*rows, fmt.zero_point_bytes(columns)], UINT8),
    )


def check_block_formats(config: LfmConfig, formats: Mapping[str, BlockFormat]) -> None:
    """InputError where experts cannot be cut into blocks of the size that is asked for."""
    for group in tensor_groups(config):
        fmt = formats[group.name]
        if group.takes(fmt):
            continue
        names = ("hidden_size", "moe_intermediate_size")
        name, size = next((name, size) for name in names if (size := getattr(config, name)) % fmt.block_size)
        raise InputError(
            f"block size {fmt.block_size} does not divide {name}, which is {size}: choose a smaller block size, or "
            "export with --precision fp16"
        )


def format_attributes(fmt: WeightFormat) -> dict[str, int]:
    """The attributes ``bits``, ``block_size`` and ``activation_bits`` of an op with weights of this format."""
    if isinstance(fmt, BlockFormat):
        return {"bits": fmt.bits, "block_size": fmt.block_size, "activation_bits": ACTIVATION_BITS}
    return {"bits": 16 if fmt == ir.DataType.FLOAT16 else 32, "block_size": 0, "activation_bits": 0}


def _register(module: nn.Module, name: str, shape: list[int], dtype: ir.DataType) -> nn.Parameter:
    parameter = nn.Parameter(shape, dtype=dtype, name=name)
    setattr(module, name, parameter)
    return parameter
