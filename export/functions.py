"""The model-local functions of one model: which definitions its nodes of domain ``ai.liquid`` call."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..config import LfmConfig
from ..quantize.formats import BlockFormat
from .ops import (
    BodyStyle,
    gated_short_conv_function,
    gather_dequantize_function,
    qlinear_function,
    sparse_moe_function,
    split_qkv_norm_function,
    swiglu_function,
)
from .weight_parameters import ACTIVATION_BITS, UINT8, WeightFormat


@dataclass(frozen=True)
class QuantizedFunctions:
    """Those that only models with block formats call."""

    qlinear: ir.Function
    swiglu: ir.Function
    split_qkv_norm: ir.Function
    gather_dequantize: ir.Function


@dataclass(frozen=True)
class Functions:
    """All of them."""

    gated_short_conv: ir.Function
    sparse_moe: ir.Function
    quantized: QuantizedFunctions | None


def declare_functions(config: LfmConfig, style: BodyStyle, weights: WeightFormat) -> Functions:
    """The functions with the bodies that suit a model of this config, style and weight format."""
    gated_short_conv = gated_short_conv_function(config.conv_L_cache, bias=config.conv_bias, style=style)
    if not isinstance(weights, BlockFormat):
        return Functions(gated_short_conv, sparse_moe_function(style=style, weight_dtype=weights), None)
    zero_points = not weights.symmetric
    # ONNX Runtime 1.24's QMoE misreads experts of a single block a row.
    rows_of_several_blocks = min(config.hidden_size, config.moe_intermediate_size) > weights.block_size
    return Functions(
        gated_short_conv,
        sparse_moe_function(
            style=style, weight_dtype=UINT8, zero_points=zero_points, contrib_experts=rows_of_several_blocks
        ),
        QuantizedFunctions(
            qlinear_function(style=style, zero_points=zero_points, activation_bits=ACTIVATION_BITS),
            swiglu_function(
                style=style,
                columns=config.hidden_size,
                width=config.ff_dim,
                zero_points=zero_points,
                activation_bits=ACTIVATION_BITS,
            ),
            split_qkv_norm_function(style=style),
            gather_dequantize_function(style=style, zero_points=zero_points),
        ),
    )
