"""The native SparseMoE routes and mixes as its formula and its function say."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.export.ops import OpsProfile, sparse_moe_function
from native_experts import Experts
from native_models import (
    FLOAT_TOLERANCE,
    FORMATS,
    Format,
    activations,
    assert_close,
    function_result,
    native_session,
    needs_library,
    one_node_model,
    run_native,
)

pytestmark = needs_library
examples = settings(max_examples=30, deadline=None)
fewer_examples = settings(max_examples=12, deadline=None)

formats = st.sampled_from(FORMATS)


@examples
@given(
    fmt=st.sampled_from(
        [Format(4), Format(8), Format(4, 32, True, "float32"), Format(8, 64, True), Format(4, 128, True)]
    ),
    experts=st.integers(2, 12),
    top_k=st.integers(1, 4),
    norm=st.integers(0, 1),
    leading=st.lists(st.integers(1, 6), max_size=2),
    activation_bits=st.sampled_from([0, 8]),
    seed=st.integers(0, 99),
)
def test_sparse_moe_with_quantized_experts_is_its_formula(
    fmt: Format, experts: int, top_k: int, norm: int, leading: list[int], activation_bits: int, seed: int
) -> None:
    mixture = Experts(fmt, experts, 2 * fmt.block_size, fmt.block_size, seed=seed)
    x = activations(seed, *leading, 2 * fmt.block_size)
    top_k = min(top_k, experts)
    (found,) = run_native("SparseMoE", {"x": x}, mixture.tensors(x), mixture.attributes(top_k, norm, activation_bits))
    expected = mixture.formula(x.reshape(-1, x.shape[-1]), top_k, norm, activation_bits).reshape(x.shape)
    # An activation on the edge between two int8 codes may fall to either side.
    assert_close(found, expected, 3e-3 if activation_bits else 4 * FLOAT_TOLERANCE)


@fewer_examples
@given(fmt=formats, tokens=st.integers(1, 9), seed=st.integers(0, 99))
def test_sparse_moe_is_its_function(fmt: Format, tokens: int, seed: int) -> None:
    mixture = Experts(fmt, 5, 128, 128, seed=seed)
    x = activations(seed, tokens, 128)
    function = sparse_moe_function(
        ops_profile=OpsProfile.STANDARD, weight_dtype=ir.DataType.UINT8, zero_points=fmt.zero_points
    )
    attributes, tensors = mixture.attributes(2, 1), mixture.tensors(x)
    (found,) = run_native("SparseMoE", {"x": x}, tensors, attributes)
    assert_close(found, function_result(function, {"x": x}, tensors, attributes)[0], 4 * FLOAT_TOLERANCE)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tokens", [1, 2, 7, 150])
def test_sparse_moe_takes_float_experts(dtype: type[np.floating], tokens: int) -> None:
    mixture = Experts(np.dtype(dtype), 6, 24, 10)
    x = activations(5, tokens, 24)
    (found,) = run_native("SparseMoE", {"x": x}, mixture.tensors(x), mixture.attributes(3, 1))
    assert_close(found, mixture.formula(x, 3, 1), 4 * FLOAT_TOLERANCE)


@pytest.mark.parametrize("tokens", [1, 6])
def test_of_equal_experts_the_first_are_chosen(tokens: int) -> None:
    mixture = Experts(Format(4), 8, 64, 32, equal=True)
    x = activations(3, tokens, 64)
    (found,) = run_native("SparseMoE", {"x": x}, mixture.tensors(x), mixture.attributes(3, 1))
    assert_close(found, mixture.formula(x, 3, 1), 4 * FLOAT_TOLERANCE)


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_token_that_is_not_a_number_spoils_no_other(tokens: int) -> None:
    mixture = Experts(Format(4), 8, 64, 32)
    x = activations(3, tokens, 64)
    clean = run_native("SparseMoE", {"x": x}, mixture.tensors(x), mixture.attributes(3, 1, 0))[0]
    x[0, 7] = np.nan
    (found,) = run_native("SparseMoE", {"x": x}, mixture.tensors(x), mixture.attributes(3, 1, 0))
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1:], clean[1:])


def test_a_long_prompt_gives_what_its_tokens_give_alone() -> None:
    # More tokens than are held at once, and more of one expert than a chunk takes.
    mixture = Experts(Format(8), 3, 64, 32)
    x = activations(3, 1300, 64)
    session = native_session(one_node_model("SparseMoE", {"x": x}, mixture.tensors(x), mixture.attributes(2, 1)))
    together = session.run(None, {"x": x})[0]
    for token in (0, 1, 600, 1023, 1024, 1299):
        alone = session.run(None, {"x": x[token : token + 1]})[0]
        assert_close(together[token : token + 1], alone)
