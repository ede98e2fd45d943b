"""One-node models of the ai.liquid ops, random quantized weights, and sessions on the native kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from lfm_onnx.export.ops import DOMAIN, DOMAIN_VERSION
from lfm_onnx.runtime.native_library import native_status, ops_library_path
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[np.generic] | None]

ISAS = native_status().available
needs_library = pytest.mark.skipif(ops_library_path() is None, reason=native_status().note or "no native library")


FLOAT_TOLERANCE = 2e-6
"""Of the result's largest magnitude: float32 sums in another order."""


@dataclass(frozen=True)
class Format:
    """A weight format as the ops' attributes and tensors state it."""

    bits: int
    block_size: int = 32
    zero_points: bool = False
    scales: str = "float16"

    def attributes(self, activation_bits: int) -> dict[str, int]:
        return {"bits": self.bits, "block_size": self.block_size, "activation_bits": activation_bits}


FORMATS = [
    Format(4),
    Format(8),
    Format(4, 32, True, "float32"),
    Format(8, 64, True),
    Format(4, 64, True),
    Format(4, 128),
    Format(8, 128, False, "float32"),
]


class Weight:
    """Random codes of a matrix or a stack of them [.., rows, columns]: the op's tensors and their float64 values."""

    def __init__(self, fmt: Format, *shape: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        *rows, columns = shape
        blocks = -(-columns // fmt.block_size)
        codes = rng.integers(0, 2**fmt.bits, (*rows, blocks, fmt.block_size), np.uint8)
        zeros = np.full((*rows, blocks), 2 ** (fmt.bits - 1), np.uint8)
        if fmt.zero_points:
            zeros = rng.integers(0, 2**fmt.bits, (*rows, blocks), np.uint8)
        # Padding is the zero point, as in every exported file.
        padding = np.arange(blocks * fmt.block_size).reshape(blocks, fmt.block_size) >= columns
        codes = np.where(padding, zeros[..., None], codes)
        size = 1.0 / (2 ** (fmt.bits - 1) * columns**0.5)
        self.scales = (size * rng.uniform(0.5, 1.5, (*rows, blocks))).astype(fmt.scales)
        packed = _packed(codes, fmt.bits)
        self.data = packed if len(rows) == 1 else packed.reshape(*rows, -1)
        self.zero_points = _packed(zeros, fmt.bits) if fmt.zero_points else None
        values = (codes.astype(np.float64) - zeros[..., None]) * self.scales.astype(np.float64)[..., None]
        self.values = values.reshape(*rows, -1)[..., :columns]


def _packed(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    return codes[..., ::2] | codes[..., 1::2] << 4


def quantized_activations(x: Array, block_size: int) -> npt.NDArray[np.float64]:
    """What the integer path sees of x [.., K]: int8 by block, as kernel_table.h defines it."""
    columns = x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -columns % block_size)])
    blocks = padded.reshape(*x.shape[:-1], -1, block_size)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(largest < 2.0**-120, 0, np.float32(127) / largest).astype(np.float32)
    codes = np.rint(blocks * inverse)
    values = codes.astype(np.float64) * (largest / np.float32(127))
    return values.reshape(*x.shape[:-1], -1)[..., :columns]


def one_node_model(
    op: str,
    feeds: Tensors,
    tensors: Tensors,
    attributes: Mapping[str, int | float],
    outputs: int = 1,
    function: ir.Function | None = None,
) -> onnx.ModelProto:
    """One node with ``tensors`` as inputs in order: those in ``feeds`` are the graph's, None an absent one."""
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(
        op, [name if value is not None else "" for name, value in tensors.items()], names, domain=DOMAIN, **attributes
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), [f"{name}_{axis}" for axis in range(value.ndim)]
            )
            for name, value in feeds.items()
            if value is not None
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in tensors.items()
            if value is not None and name not in feeds
        ],
    )
    imports = {"": 21, DOMAIN: DOMAIN_VERSION, **(function.opset_imports if function else {})}
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*item) for item in imports.items()],
        functions=[ir.to_proto(function)] if function else [],
        ir_version=10,
    )


def native_session(model: onnx.ModelProto, *, threads: int = 1, isa: str = "") -> ort.InferenceSession:
    """A session on the library's kernels; ``isa`` names their instruction set."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.inter_op_num_threads = 1
    with environment("LFM_OPS_ISA", isa):
        options.register_custom_ops_library(str(ops_library_path()))
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_native(
    op: str,
    feeds: Tensors,
    tensors: Tensors,
    attributes: Mapping[str, int | float],
    *,
    outputs: int = 1,
    threads: int = 1,
    isa: str = "",
) -> list[Array]:
    """The outputs of one node on the native kernels; the model has no function, so nothing else could run it."""
    model = one_node_model(op, feeds, tensors, attributes, outputs)
    return native_session(model, threads=threads, isa=isa).run(None, dict(feeds))


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """The environment variable set for the time of a block; the library reads it when a session is made."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def assert_close(
    found: Array, expected: npt.NDArray[np.floating], tolerance: float = FLOAT_TOLERANCE, *, terms: float = 0
) -> None:
    """terms: sum of the magnitudes that the results are sums of, which bounds rounding where results nearly cancel."""
    assert found.dtype == np.float32 and found.shape == expected.shape
    limit = tolerance * max(1e-3, float(np.abs(expected).max(initial=0)), terms / 8)
    assert np.abs(found - expected).max(initial=0) <= limit


def activations(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def function_result(
    function: ir.Function, feeds: Tensors, tensors: Tensors, attributes: Mapping[str, int | float]
) -> Any:
    """What onnx's evaluator makes of the function's ai.onnx body."""
    model = one_node_model(function.name, feeds, tensors, attributes, len(function.outputs), function)
    return ReferenceEvaluator(model).run(None, dict(feeds))


def silu(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    x = x.astype(np.float64)
    return x / (1 + np.exp(-x))


def gated(pairs: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return silu(pairs[..., ::2]) * pairs[..., 1::2]


def qlinear_tensors(x: Array, weight: Weight, bias: Array | None = None) -> dict[str, npt.NDArray[np.generic] | None]:
    return {"x": x, "weight": weight.data, "scales": weight.scales, "zero_points": weight.zero_points, "bias": bias}


def qlinear_attributes(fmt: Format, weight: Weight, activation_bits: int) -> dict[str, int]:
    rows, columns = weight.values.shape
    return {"K": columns, "N": rows, **fmt.attributes(activation_bits)}
