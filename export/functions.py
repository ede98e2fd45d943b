"""The model-local functions of one model: which definitions its nodes of domain ``ai.liquid`` call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from ..artifact.graph_weights import GraphWeight, TensorKind
from ..checkpoint.config import LfmConfig
from .ops import (
    OpsProfile,
    gated_short_conv_function,
    gather_dequantize_function,
    group_query_attention_function,
    qlinear_function,
    sparse_moe_function,
    split_qkv_norm_function,
    swiglu_function,
)
from .weight_parameters import ACTIVATION_BITS, FLOAT, UINT8, WeightFormats


@dataclass(frozen=True)
class QuantizedFunctions:
    """Those that only models with block formats call."""

    qlinear: ir.Function
    swiglu: ir.Function
    split_qkv_norm: ir.Function
    gather_dequantize: ir.Function


@dataclass(frozen=True)
class Functions:
    """The local functions that a model may call, by the op that each defines."""

    gated_short_conv: ir.Function
    sparse_moe: ir.Function
    group_query_attention: ir.Function
    """Called in the custom profile alone."""
    quantized: QuantizedFunctions | None


def declare_functions(
    config: LfmConfig,
    ops_profile: OpsProfile,
    weights: Iterable[GraphWeight],
    formats: WeightFormats,
    activations: ir.DataType = FLOAT,
) -> Functions:
    """The functions with bodies that suit a model of this config, ops profile, weights and activation type.

    weights: the model's table. formats: of those weights.
    """
    gated_short_conv = gated_short_conv_function(
        config.conv_L_cache, bias=config.conv_bias, ops_profile=ops_profile, activations=activations
    )
    group_query_attention = group_query_attention_function(activations=activations)
    if formats.blocks is None:
        sparse_moe = sparse_moe_function(ops_profile=ops_profile, weight_dtype=formats.floats)
        return Functions(gated_short_conv, sparse_moe, group_query_attention, None)
    # All blocks have zero points of their own, or none.
    zero_points = any(not fmt.symmetric for fmt in formats.blocks.values())
    # ONNX Runtime 1.24's QMoE misreads experts of a single block a row.
    rows_of_several_blocks = all(
        weight.columns > formats.blocks[weight.group].block_size
        for weight in weights
        if weight.kind is TensorKind.EXPERTS and weight.group is not None
    )
    return Functions(
        gated_short_conv,
        sparse_moe_function(
            ops_profile=ops_profile,
            weight_dtype=UINT8,
            zero_points=zero_points,
            contrib_experts=rows_of_several_blocks,
            activations=activations,
        ),
        group_query_attention,
        QuantizedFunctions(
            qlinear_function(
                ops_profile=ops_profile,
                zero_points=zero_points,
                activation_bits=ACTIVATION_BITS,
                activations=activations,
            ),
            swiglu_function(
                ops_profile=ops_profile,
                columns=config.hidden_size,
                width=config.ff_dim,
                zero_points=zero_points,
                activation_bits=ACTIVATION_BITS,
                activations=activations,
            ),
            split_qkv_norm_function(ops_profile=ops_profile, activations=activations),
            gather_dequantize_function(ops_profile=ops_profile, zero_points=zero_points, activations=activations),
        ),
    )
