"""The quantized ops compute their formula on the dequantized weights, whichever body and runtime runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from lfm_onnx.artifact.formats import BlockFormat, dequantize
from lfm_onnx.export.ops import (
    DOMAIN,
    DOMAIN_VERSION,
    OpsProfile,
    gather_dequantize_function,
    qlinear_function,
    sparse_moe_function,
    split_qkv_norm_function,
    swiglu_function,
)
from lfm_onnx.quantize.round_to_nearest import quantize_round_to_nearest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[np.generic] | None]

RUNNERS = ["standard-reference", "standard-ort", "custom-ort"]
runners = pytest.mark.parametrize("runner", RUNNERS)
FORMATS = [
    BlockFormat(4),
    BlockFormat(8),
    BlockFormat(4, 64, False, "float32"),
    BlockFormat(8, 64, False, "float16"),
    BlockFormat(4, 128, True, "float32"),
    BlockFormat(8, 128, False, "float32"),
]
formats = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


class Weight:
    """Random weights [.., rows, columns] in a format: the op's tensors, and the values that they stand for."""

    def __init__(self, fmt: BlockFormat, *shape: int, seed: int = 0) -> None:
        *rows, columns = shape
        weights = np.random.default_rng(seed).standard_normal(shape, np.float32) / np.float32(columns**0.5)
        stored = quantize_round_to_nearest(weights.reshape(-1, columns), fmt)
        self.values = dequantize(stored, fmt, columns).reshape(shape)
        as_matrix = len(rows) == 1
        self.data = stored.data if as_matrix else stored.data.reshape(*rows, -1)
        self.scales = stored.scales.reshape(*rows, -1)
        self.zero_points = None if stored.zero_points is None else stored.zero_points.reshape(*rows, -1)


def activations(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run(
    runner: str,
    function: ir.Function,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    inputs: Arrays,
    **attributes: object,
) -> list[Array]:
    """One node: ``feeds`` are the graph's inputs, the other ``inputs`` constants, None an absent one. In call order."""
    model = one_node_model(function, feeds, inputs, attributes)
    if runner.endswith("reference"):
        return ReferenceEvaluator(model).run(None, dict(feeds))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def one_node_model(
    function: ir.Function,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    inputs: Arrays,
    attributes: Mapping[str, object],
) -> onnx.ModelProto:
    names = [name if value is not None else "" for name, value in inputs.items()]
    outputs = [f"y{i}" for i in range(len(function.outputs))]
    graph = helper.make_graph(
        [helper.make_node(function.name, names, outputs, domain=DOMAIN, **attributes)],
        "one_node",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), [f"{name}_{axis}" for axis in range(value.ndim)]
            )
            for name, value in feeds.items()
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in inputs.items()
            if value is not None and name not in feeds
        ],
    )
    imports = {**function.opset_imports, DOMAIN: DOMAIN_VERSION}
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*item) for item in imports.items()],
        functions=[ir.to_proto(function)],
        ir_version=10,
    )


def ops_profile_of(runner: str) -> OpsProfile:
    return OpsProfile(runner.partition("-")[0])


def attributes_of(fmt: BlockFormat, activation_bits: int) -> dict[str, int]:
    return {"bits": fmt.bits, "block_size": fmt.block_size, "activation_bits": activation_bits}


def relative_error(found: Array, expected: npt.NDArray[np.float64]) -> float:
    """Root mean square of the difference over that of what was expected."""
    assert found.dtype == np.float32 and found.shape == expected.shape
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def product(x: Array, weight: Array) -> npt.NDArray[np.float64]:
    return x.astype(np.float64) @ weight.T.astype(np.float64)


def gated(pairs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    gate, up = pairs[..., ::2], pairs[..., 1::2]
    return gate / (1 + np.exp(-gate)) * up


# --- QLinear ----------------------------------------------------------------------------------------------------------


def qlinear(
    runner: str, fmt: BlockFormat, weight: Weight, x: Array, *, activation_bits: int = 0, bias: Array | None = None
) -> Array:
    rows, columns = weight.values.shape
    function = qlinear_function(
        ops_profile=ops_profile_of(runner),
        zero_points=not fmt.symmetric,
        activation_bits=activation_bits,
        bias=bias is not None,
    )
    inputs = {"x": x, "weight": weight.data, "scales": weight.scales}
    if weight.zero_points is not None:
        inputs["zero_points"] = weight.zero_points
    if bias is not None:
        inputs["bias"] = bias
    (y,) = run(runner, function, {"x": x}, inputs, K=columns, N=rows, **attributes_of(fmt, activation_bits))
    return y


@formats
@runners
@pytest.mark.parametrize("size", [(24, 256), (7, 200), (33, 17)], ids=str)
def test_qlinear_is_a_product_with_the_dequantized_weight(runner: str, fmt: BlockFormat, size: tuple[int, int]) -> None:
    weight = Weight(fmt, *size)
    for shape in ((1, 1), (6,)):
        x = activations(*shape, size[1])
        assert relative_error(qlinear(runner, fmt, weight, x), product(x, weight.values)) < 2e-6


@formats
def test_int8_activations_add_less_than_one_per_cent(fmt: BlockFormat) -> None:
    weight, x = Weight(fmt, 64, 512), activations(2, 8, 512)
    error = relative_error(qlinear("custom-ort", fmt, weight, x, activation_bits=8), product(x, weight.values))
    assert 1e-4 < error < 0.01


@runners
def test_qlinear_adds_a_bias(runner: str) -> None:
    fmt = BlockFormat(4, symmetric=False)
    weight, x, bias = Weight(fmt, 12, 64), activations(3, 64), activations(12, seed=8)
    expected = product(x, weight.values) + bias
    assert relative_error(qlinear(runner, fmt, weight, x, bias=bias), expected) < 2e-6


# --- SwiGLU -----------------------------------------------------------------------------------------------------------


@formats
@runners
@pytest.mark.parametrize("size", [(256, 384), (48, 80)], ids=str)
def test_swiglu_is_the_feed_forward_block(runner: str, fmt: BlockFormat, size: tuple[int, int]) -> None:
    columns, width = size
    w13, w2 = Weight(fmt, 2 * width, columns, seed=1), Weight(fmt, columns, width, seed=2)
    function = swiglu_function(
        ops_profile=ops_profile_of(runner),
        columns=columns,
        width=width,
        zero_points=not fmt.symmetric,
        activation_bits=0,
    )
    x = activations(2, 3, columns)
    inputs = {"x": x, "w13": w13.data, "w2": w2.data, "w13_scales": w13.scales, "w2_scales": w2.scales}
    if w13.zero_points is not None:
        inputs |= {"w13_zeros": w13.zero_points, "w2_zeros": w2.zero_points}
    (y,) = run(runner, function, {"x": x}, inputs, K=columns, F=width, **attributes_of(fmt, 0))
    expected = gated(product(x, w13.values)) @ w2.values.T.astype(np.float64)
    assert relative_error(y, expected) < 3e-6


# --- GatherDequantize -------------------------------------------------------------------------------------------------


@formats
@runners
@pytest.mark.parametrize("columns", [256, 200, 17])
def test_gather_dequantize_gives_rows_of_the_table_exactly(runner: str, fmt: BlockFormat, columns: int) -> None:
    table = Weight(fmt, 50, columns)
    function = gather_dequantize_function(ops_profile=ops_profile_of(runner), zero_points=not fmt.symmetric)
    for ids in (np.array([[3, 49, 0], [3, 1, 7]]), np.array([5]), np.zeros((1, 0), np.int64)):
        inputs = {"table": table.data, "scales": table.scales, "zero_points": table.zero_points, "ids": ids}
        attributes = {"K": columns, "bits": fmt.bits, "block_size": fmt.block_size}
        (y,) = run(runner, function, {"ids": ids}, inputs, **attributes)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, table.values[ids])


# --- SplitQKVNorm -----------------------------------------------------------------------------------------------------


@runners
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 8), (3, 3, 16), (6, 1, 2)])
@pytest.mark.parametrize("leading", [(2, 5), (7,)], ids=str)
def test_split_qkv_norm_normalizes_each_head_of_queries_and_keys(
    runner: str, heads: int, kv_heads: int, size: int, leading: tuple[int, ...]
) -> None:
    qkv = activations(*leading, (heads + 2 * kv_heads) * size)
    q_weight, k_weight = activations(size, seed=1), activations(size, seed=2)
    found = run(
        runner,
        split_qkv_norm_function(ops_profile=ops_profile_of(runner)),
        {"qkv": qkv},
        {"qkv": qkv, "q_weight": q_weight, "k_weight": k_weight},
        num_heads=heads,
        kv_num_heads=kv_heads,
        epsilon=1e-3,
    )

    def normed(x: Array, weight: Array) -> npt.NDArray[np.float64]:
        by_head = x.reshape(*leading, -1, size).astype(np.float64)
        y = by_head / np.sqrt(np.square(by_head).mean(-1, keepdims=True) + 1e-3) * weight
        return y.reshape(x.shape)

    q, k, v = np.split(qkv, [heads * size, (heads + kv_heads) * size], axis=-1)
    assert relative_error(found[0], normed(q, q_weight)) < 1e-6
    assert relative_error(found[1], normed(k, k_weight)) < 1e-6
    np.testing.assert_array_equal(found[2], v)


# --- SparseMoE --------------------------------------------------------------------------------------------------------


def sparse_moe(
    runner: str, fmt: BlockFormat, x: Array, *, contrib: bool = True, hidden: int = 256, width: int = 128
) -> Any:
    """(y, what the formula gives): 8 experts, 2 a token, a bias that changes choices, scaled by 1.5."""
    router, bias = activations(8, hidden, seed=3) / np.float32(hidden**0.5), activations(8, seed=4)
    w13, w2 = Weight(fmt, 8, 2 * width, hidden, seed=5), Weight(fmt, 8, hidden, width, seed=6)
    function = sparse_moe_function(
        ops_profile=ops_profile_of(runner),
        weight_dtype=ir.DataType.UINT8,
        zero_points=not fmt.symmetric,
        contrib_experts=contrib,
    )
    inputs = {"x": x, "router": router, "bias": bias, "w13": w13.data, "w2": w2.data}
    inputs |= {"w13_scales": w13.scales, "w2_scales": w2.scales}
    if w13.zero_points is not None:
        inputs |= {"w13_zeros": w13.zero_points, "w2_zeros": w2.zero_points}
    attributes = {"top_k": 2, "norm_topk_prob": 1, "routed_scaling_factor": 1.5, **attributes_of(fmt, 8)}
    (y,) = run(runner, function, {"x": x}, inputs, **attributes)

    tokens = x.reshape(-1, hidden)
    scores = 1 / (1 + np.exp(-product(tokens, router)))
    expected = np.zeros(tokens.shape)
    for token in range(len(tokens)):
        chosen = np.argsort(-(scores[token] + bias), kind="stable")[:2]
        for expert in chosen:
            share = 1.5 * scores[token, expert] / (scores[token, chosen].sum() + 1e-6)
            inner = gated(product(tokens[token], w13.values[expert]))
            expected[token] += share * (w2.values[expert].astype(np.float64) @ inner)
    return y, expected.reshape(x.shape)


@formats
@runners
@pytest.mark.parametrize("leading", [(2, 3), (1,)], ids=str)
def test_sparse_moe_is_its_formula_on_the_dequantized_experts(
    runner: str, fmt: BlockFormat, leading: tuple[int, ...]
) -> None:
    # Blocks of 128 leave one block in a row of w2, which the loop alone reads on every runtime.
    y, expected = sparse_moe(runner, fmt, activations(*leading, 256), contrib=fmt.block_size < 128)
    # QMoE of some versions rounds activations to int8 where weights are int8.
    limit = 0.03 if runner == "custom-ort" and fmt.bits == 8 else 1e-5
    assert relative_error(y, expected) < limit


@pytest.mark.parametrize("fmt", FORMATS[4:], ids=lambda fmt: fmt.name)
def test_blocks_of_128_reach_the_contrib_op_where_rows_have_several(fmt: BlockFormat) -> None:
    y, expected = sparse_moe("custom-ort", fmt, activations(3, 256), width=256)
    assert relative_error(y, expected) < (0.03 if fmt.bits == 8 else 1e-5)


# --- all of them ------------------------------------------------------------------------------------------------------


def functions(ops_profile: OpsProfile, zero_points: bool) -> list[ir.Function]:
    return [
        qlinear_function(ops_profile=ops_profile, zero_points=zero_points, activation_bits=8),
        swiglu_function(ops_profile=ops_profile, columns=64, width=96, zero_points=zero_points, activation_bits=8),
        split_qkv_norm_function(ops_profile=ops_profile),
        gather_dequantize_function(ops_profile=ops_profile, zero_points=zero_points),
        sparse_moe_function(ops_profile=ops_profile, weight_dtype=ir.DataType.UINT8, zero_points=zero_points),
    ]


@pytest.mark.parametrize("zero_points", [False, True])
def test_standard_bodies_use_nothing_but_ai_onnx(zero_points: bool) -> None:
    for function in functions(OpsProfile.STANDARD, zero_points):
        assert set(function.opset_imports) == {""}
        assert {node.domain for node in function} == {""}


@pytest.mark.parametrize("ops_profile", OpsProfile)
def test_no_attribute_has_a_default(ops_profile: OpsProfile) -> None:
    """Inliners drop defaults: a call that leaves an attribute out must fail, not mean something."""
    for function in functions(ops_profile, True):
        assert all(attribute.value is None for attribute in function.attributes.values())
