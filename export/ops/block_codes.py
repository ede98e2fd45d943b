"""ai.onnx nodes that turn packed codes into float32 values: the part that the bodies of all quantized ops share."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

FLOAT, UINT8, INT64 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT64


def float_input(name: str, dtype: ir.DataType = FLOAT) -> ir.Value:
    """An input of a function."""
    return ir.Value(name=name, type=ir.TensorType(dtype))


def in_float32(op: OpBuilder, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """x of type ``dtype`` as float32."""
    return x if dtype == FLOAT else op.Cast(x, to=FLOAT)


def from_float32(op: OpBuilder, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """float32 x as ``dtype``."""
    return x if dtype == FLOAT else op.Cast(x, to=dtype)


def weight_inputs(name: str, scales: str, zero_points: str | None) -> list[ir.Value]:
    """Formal inputs of a quantized weight: codes, scales (float16 or float32) and, if named, zero points."""
    # The scales' type is left open: one function serves both.
    inputs = [ir.Value(name=name, type=ir.TensorType(UINT8)), ir.Value(name=scales)]
    return inputs if zero_points is None else [*inputs, ir.Value(name=zero_points, type=ir.TensorType(UINT8))]


def int_attributes(*names: str) -> list[ir.Attr]:
    """Declarations of integer attributes without defaults: a call must pass every one."""
    return [ir.Attr(name, ir.AttributeType.INT, None) for name in names]


def attribute(op: OpBuilder, name: str) -> ir.Value:
    """The function's integer attribute as an int64 scalar."""
    result: ir.Value = op.Constant(value_int=ir.RefAttr("value_int", name, ir.AttributeType.INT))
    return result


@dataclass(frozen=True)
class BlockSize:
    """The attributes ``bits`` and ``block_size`` of a function as int64 scalars."""

    bits: ir.Value
    block_size: ir.Value

    @classmethod
    def of_function(cls, op: OpBuilder) -> BlockSize:
        """Both, read from the attributes of the function whose body ``op`` builds."""
        return cls(attribute(op, "bits"), attribute(op, "block_size"))


def dequantize(
    op: OpBuilder, data: ir.Value, scales: ir.Value, zero_points: ir.Value | None, size: BlockSize
) -> ir.Value:
    """(code - zero_point) * scale, float32 [.., blocks * block_size].

    data uint8 [.., blocks, block_bytes] or [.., blocks * block_bytes], scales [.., blocks], zero_points uint8
    [.., bytes] or None where every zero point is 2**(bits-1).
    """
    # Sizes are spelled out: a tensor without elements cannot be reshaped with a -1.
    block_size = op.Unsqueeze(size.block_size, [0])
    by_block = op.Concat(op.Shape(scales), block_size, axis=0)
    codes = op.Cast(op.Reshape(_unpack(op, data, size.bits), by_block), to=FLOAT)
    if zero_points is None:
        # Half the range of codes, 2**(bits-1).
        unused = op.Cast(op.Sub(8, size.bits), to=UINT8)
        zeros = op.Cast(op.BitShift(_uint8(op, 128), unused, direction="RIGHT"), to=FLOAT)
    else:
        count = op.Mul(op.Shape(zero_points, start=-1), op.Div(8, size.bits))
        by_row = op.Concat(op.Shape(zero_points, start=0, end=-1), count, axis=0)
        unpacked = op.Reshape(_unpack(op, zero_points, size.bits), by_row)
        zeros = op.Cast(op.Unsqueeze(op.Slice(unpacked, [0], op.Shape(scales, start=-1), [-1]), [-1]), to=FLOAT)
    values = op.Mul(op.Sub(codes, zeros), op.Unsqueeze(op.Cast(scales, to=FLOAT), [-1]))
    columns = op.Mul(op.Shape(scales, start=-1), block_size)
    result: ir.Value = op.Reshape(values, op.Concat(op.Shape(scales, start=0, end=-1), columns, axis=0))
    return result


def first_columns(op: OpBuilder, values: ir.Value, count: str) -> ir.Value:
    """values [.., n] without the padding of a row's last block; ``count`` is an attribute."""
    result: ir.Value = op.Slice(values, [0], op.Unsqueeze(attribute(op, count), [0]), [-1])
    return result


def _unpack(op: OpBuilder, packed: ir.Value, bits: ir.Value) -> ir.Value:
    """Bytes [.., n] → codes uint8 [.., n, codes per byte], low bits first."""
    shifts = op.Cast(op.Range(0, 8, bits), to=UINT8)
    mask = op.BitShift(_uint8(op, 255), op.Cast(op.Sub(8, bits), to=UINT8), direction="RIGHT")
    result: ir.Value = op.BitwiseAnd(op.BitShift(op.Unsqueeze(packed, [-1]), shifts, direction="RIGHT"), mask)
    return result


def _uint8(op: OpBuilder, value: int) -> ir.Value:
    result: ir.Value = op.Constant(value=ir.tensor(value, dtype=UINT8))
    return result
