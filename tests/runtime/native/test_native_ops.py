"""The native kernels compute what the ops' functions define."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lfm_onnx.export.ops import (
    OpsProfile,
    gated_short_conv_function,
    gather_dequantize_function,
    qlinear_function,
    split_qkv_norm_function,
    swiglu_function,
)
from native_models import (
    FLOAT_TOLERANCE,
    FORMATS,
    ISAS,
    Format,
    Weight,
    activations,
    assert_close,
    function_result,
    gated,
    native_session,
    needs_library,
    one_node_model,
    qlinear_attributes,
    qlinear_tensors,
    quantized_activations,
    run_native,
)

pytestmark = needs_library
examples = settings(max_examples=30, deadline=None)

formats = st.sampled_from(FORMATS)
EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS, ids=repr)


# --- QLinear ----------------------------------------------------------------------------------------------------------


@examples
@given(
    fmt=formats,
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    leading=st.lists(st.integers(0, 5), max_size=3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_qlinear_on_float_activations_is_its_function(
    fmt: Format, rows: int, columns: int, leading: list[int], bias: bool, seed: int
) -> None:
    weight = Weight(fmt, rows, columns, seed=seed)
    x = activations(seed, *leading, columns)
    tensors = qlinear_tensors(x, weight, activations(seed, rows) if bias else None)
    attributes = qlinear_attributes(fmt, weight, 0)
    (found,) = run_native("QLinear", {"x": x}, tensors, attributes)
    # onnx's evaluator cannot multiply empty matrices; the formula can.
    expected = x.astype(np.float64) @ weight.values.T + (tensors["bias"] if bias else 0)
    terms = float((np.abs(x) @ np.abs(weight.values).T).max(initial=0))
    assert_close(found, expected, terms=terms)
    if x.size and columns % fmt.block_size == 0:
        function = qlinear_function(
            ops_profile=OpsProfile.STANDARD, zero_points=fmt.zero_points, activation_bits=0, bias=bias
        )
        given_tensors = {name: value for name, value in tensors.items() if value is not None}
        assert_close(found, function_result(function, {"x": x}, given_tensors, attributes)[0], terms=terms)


@examples
@example(fmt=Format(8), rows=1, columns=194, tokens=1, seed=10)
@given(
    fmt=formats,
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    tokens=st.integers(1, 140),
    seed=st.integers(0, 99),
)
def test_qlinear_on_int8_activations_rounds_them_by_block(
    fmt: Format, rows: int, columns: int, tokens: int, seed: int
) -> None:
    weight = Weight(fmt, rows, columns, seed=seed)
    x = activations(seed, tokens, columns)
    (found,) = run_native("QLinear", {"x": x}, qlinear_tensors(x, weight), qlinear_attributes(fmt, weight, 8))
    rounded = quantized_activations(x, fmt.block_size)
    # A single output may be next to nothing: what is rounded are the terms that cancel in it.
    terms = float((np.abs(rounded) @ np.abs(weight.values).T).max())
    assert_close(found, rounded @ weight.values.T, terms=terms)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tokens", [1, 3, 130])
def test_qlinear_takes_float_weights(dtype: type[np.floating], tokens: int) -> None:
    weight = activations(1, 37, 70).astype(dtype)
    x = activations(2, tokens, 70)
    tensors = {"x": x, "weight": weight, "scales": None, "zero_points": None, "bias": activations(3, 37)}
    (found,) = run_native("QLinear", {"x": x}, tensors, {})
    assert_close(found, x.astype(np.float64) @ weight.astype(np.float64).T + tensors["bias"])


def test_qlinear_takes_weights_that_are_inputs_of_the_graph() -> None:
    weight, x = Weight(Format(4), 20, 64), activations(0, 2, 64)
    attributes = qlinear_attributes(Format(4), weight, 8)
    tensors = qlinear_tensors(x, weight)
    feeds = {"x": x, "weight": weight.data, "scales": weight.scales}
    constant = run_native("QLinear", {"x": x}, tensors, attributes)
    np.testing.assert_array_equal(run_native("QLinear", feeds, tensors, attributes), constant)


@EVERY_FORMAT
def test_a_token_gives_the_same_whatever_stands_beside_it(fmt: Format) -> None:
    weight, x = Weight(fmt, 33, 200), activations(0, 300, 200)
    attributes = qlinear_attributes(fmt, weight, 8)
    session = native_session(one_node_model("QLinear", {"x": x}, qlinear_tensors(x, weight), attributes))
    together = session.run(None, {"x": x})[0]
    few = [session.run(None, {"x": x[i : i + 5]})[0] for i in range(0, 300, 5)]
    np.testing.assert_array_equal(np.concatenate(few), together)
    pairs = [session.run(None, {"x": x[i : i + 2]})[0] for i in range(0, 10, 2)]
    single = [session.run(None, {"x": x[i : i + 1]})[0] for i in range(10)]
    np.testing.assert_array_equal(np.concatenate(pairs), np.concatenate(single))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_token_alone(value: float, activation_bits: int, tokens: int) -> None:
    weight, x = Weight(Format(4), 20, 100), activations(0, tokens, 100)
    x[-1, 50] = value
    attributes = qlinear_attributes(Format(4), weight, activation_bits)
    for isa in ISAS:
        (found,) = run_native("QLinear", {"x": x}, qlinear_tensors(x, weight), attributes, isa=isa)
        # A code that is the zero point makes inf * 0 = NaN; every other product stays infinite.
        assert not np.isfinite(found[-1]).any()
        assert np.isfinite(found[:-1]).all()


# --- SwiGLU, SplitQKVNorm, GatherDequantize ---------------------------------------------------------------------------


@examples
@given(
    fmt=formats,
    columns=st.integers(1, 150),
    width=st.integers(1, 150),
    leading=st.lists(st.integers(1, 6), max_size=2),
    activation_bits=st.sampled_from([0, 8]),
    seed=st.integers(0, 99),
)
def test_swiglu_is_its_formula_and_its_function(
    fmt: Format, columns: int, width: int, leading: list[int], activation_bits: int, seed: int
) -> None:
    gate_up, down = Weight(fmt, 2 * width, columns, seed=seed), Weight(fmt, columns, width, seed=seed + 1)
    x = activations(seed, *leading, columns)
    tensors = {
        "x": x,
        "gate_up": gate_up.data,
        "down": down.data,
        "gate_up_scales": gate_up.scales,
        "down_scales": down.scales,
    }
    if fmt.zero_points:
        tensors |= {"gate_up_zero_points": gate_up.zero_points, "down_zero_points": down.zero_points}
    attributes = {"K": columns, "F": width, **fmt.attributes(activation_bits)}
    (found,) = run_native("SwiGLU", {"x": x}, tensors, attributes)
    if activation_bits == 8:
        hidden = gated(quantized_activations(x, fmt.block_size) @ gate_up.values.T).astype(np.float32)
        assert_close(found, quantized_activations(hidden, fmt.block_size) @ down.values.T, 2e-2)
        return
    assert_close(found, gated(x @ gate_up.values.T) @ down.values.T, 4 * FLOAT_TOLERANCE)
    function = swiglu_function(
        ops_profile=OpsProfile.STANDARD, columns=columns, width=width, zero_points=fmt.zero_points, activation_bits=0
    )
    assert_close(found, function_result(function, {"x": x}, tensors, attributes)[0], 8 * FLOAT_TOLERANCE)


def test_swiglu_of_a_long_prompt_gives_what_its_tokens_give_alone() -> None:
    gate_up, down, x = Weight(Format(8), 64, 64), Weight(Format(8), 64, 32), activations(0, 1100, 64)
    tensors = {
        "x": x,
        "gate_up": gate_up.data,
        "down": down.data,
        "gate_up_scales": gate_up.scales,
        "down_scales": down.scales,
    }
    (found,) = run_native("SwiGLU", {"x": x}, tensors, {"K": 64, "F": 32, **Format(8).attributes(0)})
    assert_close(found, gated(x @ gate_up.values.T) @ down.values.T, 4 * FLOAT_TOLERANCE)


@examples
@given(
    heads=st.integers(1, 6),
    kv_heads=st.integers(1, 3),
    size=st.integers(1, 70),
    leading=st.lists(st.integers(1, 9), max_size=2),
    seed=st.integers(0, 99),
)
def test_split_qkv_norm_is_its_function(heads: int, kv_heads: int, size: int, leading: list[int], seed: int) -> None:
    qkv = activations(seed, *leading, (heads + 2 * kv_heads) * size)
    tensors = {"qkv": qkv, "q_weight": activations(1, size), "k_weight": activations(2, size)}
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "epsilon": 1e-5}
    found = run_native("SplitQKVNorm", {"qkv": qkv}, tensors, attributes, outputs=3)
    expected = function_result(
        split_qkv_norm_function(ops_profile=OpsProfile.STANDARD), {"qkv": qkv}, tensors, attributes
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    np.testing.assert_array_equal(found[2], qkv[..., (heads + kv_heads) * size :])


@examples
@given(fmt=formats, columns=st.integers(1, 200), ids=st.lists(st.integers(-9, 8), max_size=40))
def test_gather_dequantize_gives_the_rows_exactly(fmt: Format, columns: int, ids: list[int]) -> None:
    table, rows = Weight(fmt, 9, columns), np.array(ids, np.int64)
    tensors = {"table": table.data, "scales": table.scales, "zero_points": table.zero_points, "ids": rows}
    attributes = {"K": columns, "bits": fmt.bits, "block_size": fmt.block_size}
    (found,) = run_native("GatherDequantize", {"ids": rows}, tensors, attributes)
    np.testing.assert_array_equal(found, table.values[rows].astype(np.float32))
    if ids and fmt.zero_points:
        function = gather_dequantize_function(ops_profile=OpsProfile.STANDARD, zero_points=True)
        np.testing.assert_array_equal(found, function_result(function, {"ids": rows}, tensors, attributes)[0])


# --- GatedShortConv ---------------------------------------------------------------------------------------------------


@examples
@given(
    batch=st.integers(1, 3),
    sequence=st.integers(1, 12),
    hidden=st.sampled_from([1, 5, 64, 300]),
    taps=st.integers(1, 5),
    bias=st.booleans(),
    padding=st.data(),
    seed=st.integers(0, 99),
)
def test_gated_short_conv_is_its_function(
    batch: int, sequence: int, hidden: int, taps: int, bias: bool, padding: st.DataObject, seed: int
) -> None:
    mask = np.zeros((batch, sequence), np.float32)
    for row in mask:
        first = padding.draw(st.integers(0, sequence))
        row[first : padding.draw(st.integers(first, sequence))] = 1
    feeds = {
        "BCx": activations(seed, batch, sequence, 3 * hidden),
        "mask": mask,
        "past_conv": activations(seed + 1, batch, hidden, taps),
    }
    tensors = {
        "BCx": feeds["BCx"],
        "weight": activations(seed + 2, taps, hidden),
        "mask": mask,
        "past_conv": feeds["past_conv"],
    }
    if bias:
        tensors["bias"] = activations(seed + 3, hidden)
    y, present = run_native("GatedShortConv", feeds, tensors, {}, outputs=2)
    function = gated_short_conv_function(taps, bias=bias, ops_profile=OpsProfile.STANDARD)
    expected_y, expected_present = function_result(function, feeds, tensors, {})
    assert_close(y[mask == 1], expected_y[mask == 1])
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(present, expected_present)


def test_padding_that_is_not_a_number_reaches_nothing() -> None:
    bcx, mask = activations(0, 1, 6, 30), np.array([[0, 1, 1, 1, 0, 0]], np.float32)
    feeds = {"BCx": bcx, "mask": mask, "past_conv": activations(1, 1, 10, 3)}
    tensors = {"BCx": bcx, "weight": activations(2, 3, 10), "mask": mask, "past_conv": feeds["past_conv"]}
    clean = run_native("GatedShortConv", feeds, tensors, {}, outputs=2)
    bcx[mask == 0] = np.nan
    for found, expected in zip(run_native("GatedShortConv", feeds, tensors, {}, outputs=2), clean, strict=True):
        np.testing.assert_array_equal(found, expected)
