"""The parameters that a weight becomes in the graph: floats, or codes with scales and zero points; and its entry in the
table of graph weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import onnx_ir as ir
from onnxscript import nn

from ..artifact.formats import BlockFormat
from ..artifact.graph_weights import SCALES, ZERO_POINTS, GraphWeight, Layout, tensor_kind
from ..checkpoint.config import LfmConfig
from ..errors import InputError
from ..quantize.tensor_groups import TensorGroup

FLOAT, UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8

WeightFormat: TypeAlias = ir.DataType | BlockFormat
"""How linear, expert and embedding weights are stored: float32, float16, or a block format."""


@dataclass(frozen=True)
class WeightFormats:
    """The format of each weight of a model: the same float type for all, or a block format by tensor group."""

    floats: ir.DataType = FLOAT
    blocks: Mapping[str, BlockFormat] | None = None
    """By group (see quantize/tensor_groups.py); None in models of float weights."""

    def of(self, group: str) -> WeightFormat:
        """The format of the group of that name."""
        return self.floats if self.blocks is None else self.blocks[group]


ACTIVATION_BITS = 8
"""Passed to the quantized ops: activations may be rounded to int8 by block."""


class WeightParameter(nn.Parameter):
    """A parameter that is filled from the checkpoint as ``weight`` says."""

    def __init__(self, weight: GraphWeight, name: str, dtype: ir.DataType, shape: Sequence[int] | None = None) -> None:
        """shape: as it is stored; None: the weight's."""
        super().__init__(weight.shape if shape is None else shape, dtype=dtype, name=name)
        self.weight = weight


@dataclass(frozen=True)
class WeightScope:
    """Where a module's weights stand: under ``path``, in the graph as in the checkpoint; in ``layer``, or in none."""

    formats: WeightFormats
    path: str = ""
    layer: int | None = None

    def scope(self, name: str, layer: int | None = None) -> WeightScope:
        """The scope of the part ``name`` of this module, in ``layer``; None: in the same layer as this one."""
        return replace(self, path=self.name(name), layer=self.layer if layer is None else layer)

    def name(self, name: str) -> str:
        """The full name of what is ``name`` here."""
        return f"{self.path}.{name}" if self.path else name

    def format(self, group: str = "") -> WeightFormat:
        """Of the group ``group`` here, or of the one that this scope itself is."""
        return self.formats.of(self.name(group) if group else self.path)

    def weight(
        self,
        name: str,
        shape: Sequence[int],
        *,
        sources: Sequence[str] | None = None,
        layout: Layout = Layout.ROWS,
        group: str | None = None,
        common_input: str | None = None,
    ) -> GraphWeight:
        """The table's entry of a weight; full names, but for its own. sources None: the tensor of the same name."""
        full = self.name(name)
        kind = tensor_kind(full)
        assert kind is not None, f"{full}: artifact/graph_weights.py does not say what kind of weight this is"
        made_of = (full,) if sources is None else tuple(sources)
        return GraphWeight(full, kind, tuple(shape), made_of, layout, group, self.layer, common_input)

    def vector(self, name: str, size: int, dtype: ir.DataType = FLOAT) -> WeightParameter:
        """A parameter [size] that is the checkpoint's tensor of the same name."""
        return WeightParameter(self.weight(name, (size,)), name, dtype)


def declared_weights(module: nn.Module, *, recurse: bool = True) -> Iterator[GraphWeight]:
    """The table's entries of a module's weights, in the order of their declaration; recurse: with its modules' own."""
    return (parameter.weight for parameter in module.parameters(recurse) if isinstance(parameter, WeightParameter))


@dataclass(frozen=True)
class WeightParameters:
    """A weight [.., rows, columns] as parameters of the module that declared it."""

    values: nn.Parameter
    """The floats, or uint8 codes."""
    scales: nn.Parameter | None = None
    zero_points: nn.Parameter | None = None


def declare_weight(module: nn.Module, name: str, weight: GraphWeight, fmt: WeightFormat) -> WeightParameters:
    """Parameters ``name``, and in block formats ``name``_scales and ``name``_zero_points, registered with ``module``.

    Matrices [N, K] have codes [N, blocks, block_bytes]; experts [E, N, K] have [E, N, row_bytes], as QMoE wants them.
    """
    if not isinstance(fmt, BlockFormat):
        return WeightParameters(_register(module, WeightParameter(weight, name, fmt)))
    *rows, columns = weight.shape
    code_shape = [fmt.blocks(columns), fmt.block_bytes] if len(rows) == 1 else [fmt.row_bytes(columns)]
    scale_dtype = ir.DataType.from_numpy(fmt.scale_numpy)
    return WeightParameters(
        _register(module, WeightParameter(weight, name, UINT8, [*rows, *code_shape])),
        _register(module, nn.Parameter([*rows, fmt.blocks(columns)], scale_dtype, name + SCALES)),
        None
        if fmt.symmetric
        else _register(module, nn.Parameter([*rows, fmt.zero_point_bytes(columns)], UINT8, name + ZERO_POINTS)),
    )


def check_block_formats(config: LfmConfig, groups: Sequence[TensorGroup], formats: Mapping[str, BlockFormat]) -> None:
    """InputError where experts cannot be cut into blocks of the size that is asked for."""
    for group in groups:
        fmt = formats[group.name]
        if group.takes(fmt):
            continue
        names = ("hidden_size", "moe_intermediate_size")
        name, size = next((name, size) for name in names if (size := getattr(config, name)) % fmt.block_size)
        raise InputError(
            f"block size {fmt.block_size} does not divide {name}, which is {size}: choose a smaller block size, or "
            'export with `precision="fp16"`'
        )


def format_attributes(fmt: WeightFormat) -> dict[str, int]:
    """The attributes ``bits``, ``block_size`` and ``activation_bits`` of an op with weights of this format."""
    if isinstance(fmt, BlockFormat):
        return {"bits": fmt.bits, "block_size": fmt.block_size, "activation_bits": ACTIVATION_BITS}
    return {"bits": 16 if fmt == ir.DataType.FLOAT16 else 32, "block_size": 0, "activation_bits": 0}


def _register(module: nn.Module, parameter: nn.Parameter) -> nn.Parameter:
    assert parameter.name is not None
    setattr(module, parameter.name, parameter)
    return parameter
