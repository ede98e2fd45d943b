"""The custom ops of domain ``ai.liquid``, version 1, each declared once and defined by a model-local function.

A runtime with a kernel for an op runs the kernel; every other runtime runs the function's body, which travels inside
the model file.
"""

from __future__ import annotations

from .domain import (
    DOMAIN,
    DOMAIN_VERSION,
    HALF_DOMAIN,
    OPSET_VERSION,
    OpsProfile,
    domain_of,
)
from .gated_short_conv import gated_short_conv_function
from .gather_dequantize import gather_dequantize_function
from .group_query_attention import group_query_attention_function
from .qlinear import qlinear_function
from .sparse_moe import sparse_moe_function
from .split_qkv_norm import split_qkv_norm_function
from .swiglu import swiglu_function

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "HALF_DOMAIN",
    "OPSET_VERSION",
    "OpsProfile",
    "domain_of",
    "gated_short_conv_function",
    "gather_dequantize_function",
    "group_query_attention_function",
    "qlinear_function",
    "sparse_moe_function",
    "split_qkv_norm_function",
    "swiglu_function",
]
