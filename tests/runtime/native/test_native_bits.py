"""The native kernels give the same bits on every number of threads and every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_experts import Experts
from native_models import (
    FORMATS,
    ISAS,
    Format,
    Weight,
    activations,
    needs_library,
    qlinear_attributes,
    qlinear_tensors,
    run_native,
)

pytestmark = needs_library
examples = settings(max_examples=30, deadline=None)

formats = st.sampled_from(FORMATS)
EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS, ids=repr)


def cases(fmt: Format, tokens: int, activation_bits: int) -> Any:
    """(op, x, tensors, attributes, outputs) of every op with weights, at sizes that fill several tasks."""
    weight, x = Weight(fmt, 500, 300), activations(1, tokens, 300)
    yield "QLinear", x, qlinear_tensors(x, weight), qlinear_attributes(fmt, weight, activation_bits)
    mixture, x = Experts(fmt, 8, 256, 128), activations(2, tokens, 256)
    yield "SparseMoE", x, mixture.tensors(x), mixture.attributes(3, 1, activation_bits)


@EVERY_FORMAT
@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("tokens", [1, 3, 140])
def test_results_do_not_depend_on_the_number_of_threads(fmt: Format, tokens: int, activation_bits: int) -> None:
    for op, x, tensors, attributes in cases(fmt, tokens, activation_bits):
        one, two, four = (run_native(op, {"x": x}, tensors, attributes, threads=n)[0] for n in (1, 2, 4))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, four)


@EVERY_FORMAT
@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_every_instruction_set_gives_the_bits_of_the_definition(fmt: Format, activation_bits: int, isa: str) -> None:
    for tokens in (1, 2, 3, 4, 7, 40):
        for op, x, tensors, attributes in cases(fmt, tokens, activation_bits):
            expected = run_native(op, {"x": x}, tensors, attributes, isa="scalar")[0]
            np.testing.assert_array_equal(run_native(op, {"x": x}, tensors, attributes, isa=isa)[0], expected)


@examples
@given(
    fmt=formats,
    rows=st.integers(1, 40),
    columns=st.integers(1, 400),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_odd_sizes_give_the_same_bits_on_every_instruction_set(
    fmt: Format, rows: int, columns: int, tokens: int, seed: int
) -> None:
    weight, x = Weight(fmt, rows, columns, seed=seed), activations(seed, tokens, columns)
    x[np.random.default_rng(seed).random(x.shape) < 0.01] = np.float32(1e-39)
    if seed % 3 == 0:
        x[0, 0] = np.nan
    for activation_bits in (0, 8):
        attributes = qlinear_attributes(fmt, weight, activation_bits)
        tensors = qlinear_tensors(x, weight)
        expected = run_native("QLinear", {"x": x}, tensors, attributes, isa="scalar")[0]
        for isa in ISAS:
            found = run_native("QLinear", {"x": x}, tensors, attributes, isa=isa)[0]
            np.testing.assert_array_equal(found, expected, err_msg=isa)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_float_weights_give_the_same_bits_too(dtype: type[np.floating], isa: str) -> None:
    for tokens, columns in [(1, 1), (1, 300), (3, 65), (9, 200)]:
        weight, x = activations(1, 50, columns).astype(dtype), activations(2, tokens, columns)
        tensors = {"x": x, "weight": weight}
        expected = run_native("QLinear", {"x": x}, tensors, {}, isa="scalar")[0]
        np.testing.assert_array_equal(run_native("QLinear", {"x": x}, tensors, {}, isa=isa)[0], expected)
