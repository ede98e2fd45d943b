"""Scale search: never worse than rounding to nearest, clearly better on the whole, weighted where asked to be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.artifact.formats import BLOCK_SIZES, SCALE_DTYPES, BlockFormat, dequantize
from lfm_onnx.quantize.round_to_nearest import quantize_round_to_nearest
from lfm_onnx.quantize.scale_search import quantize_scale_search

FORMATS = [
    BlockFormat(bits, block_size, symmetric, scale_dtype)
    for bits, block_size, symmetric, scale_dtype in itertools.product((4, 8), BLOCK_SIZES, (True, False), SCALE_DTYPES)
]
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def importance_of(columns: int, seed: int = 1) -> np.ndarray:
    return np.square(normal(1, columns, seed))[0] + np.float32(0.05)


def block_errors(weights: np.ndarray, rows: object, fmt: BlockFormat, importance: np.ndarray) -> np.ndarray:
    """Weighted squared error of each block, [N, blocks]."""
    squares = np.square(dequantize(rows, fmt, weights.shape[1]).astype(np.float64) - weights) * importance
    squares = np.pad(squares, ((0, 0), (0, -squares.shape[1] % fmt.block_size)))
    return squares.reshape(len(weights), -1, fmt.block_size).sum(axis=2)


@settings(max_examples=120, deadline=None)
@given(
    fmt=st.sampled_from(FORMATS),
    rows=st.integers(1, 4),
    columns=st.integers(1, 200),
    exponent=st.integers(-5, 3),
    tail=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
    weighted=st.booleans(),
)
def test_no_block_is_worse_than_rounded_to_nearest(
    fmt: BlockFormat, rows: int, columns: int, exponent: int, tail: int, seed: int, weighted: bool
) -> None:
    weights = normal(rows, columns, seed) ** tail * np.float32(10.0**exponent)
    importance = importance_of(columns, seed) if weighted else np.ones(columns, np.float32)
    searched = quantize_scale_search(weights, fmt, importance if weighted else None)
    plain = block_errors(weights, quantize_round_to_nearest(weights, fmt), fmt, importance)
    assert (block_errors(weights, searched, fmt, importance) <= plain * (1 + 1e-4) + 1e-30).all()


@pytest.mark.parametrize(
    ("fmt", "share"),
    [
        (BlockFormat(4), 0.90),
        (BlockFormat(4, 128), 0.90),
        (BlockFormat(4, symmetric=False), 0.94),
        (BlockFormat(8), 0.95),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_error_of_normal_weights_falls_by_a_tenth(fmt: BlockFormat, share: float) -> None:
    weights = normal(64, 2048)
    ones = np.ones(2048)
    plain = block_errors(weights, quantize_round_to_nearest(weights, fmt), fmt, ones).sum()
    assert block_errors(weights, quantize_scale_search(weights, fmt), fmt, ones).sum() < share * plain


def test_importance_moves_the_error_to_the_columns_that_matter_less() -> None:
    weights, importance, fmt = normal(64, 512), importance_of(512), BlockFormat(4)
    even, weighted = (quantize_scale_search(weights, fmt, i) for i in (None, importance))
    assert (
        block_errors(weights, weighted, fmt, importance).sum()
        < 0.93 * block_errors(weights, even, fmt, importance).sum()
    )
    ones = np.ones(512)
    assert block_errors(weights, even, fmt, ones).sum() < block_errors(weights, weighted, fmt, ones).sum()


def test_importance_is_relative() -> None:
    weights, importance, fmt = normal(8, 96), importance_of(96), BlockFormat(4)
    found = [quantize_scale_search(weights, fmt, importance * np.float32(2.0**e)) for e in (0, -40, 40)]
    assert len({rows.data.tobytes() for rows in found}) == 1


@pytest.mark.parametrize("fmt", [BlockFormat(4), BlockFormat(8, 64, False)], ids=lambda fmt: fmt.name)
def test_columns_without_importance_are_still_rounded_to_nearest(fmt: BlockFormat) -> None:
    weights = normal(4, 128)
    none = quantize_scale_search(weights, fmt, np.zeros(128, np.float32))
    plain = quantize_round_to_nearest(weights, fmt)
    np.testing.assert_array_equal(dequantize(none, fmt, 128), dequantize(plain, fmt, 128))


@every_format
def test_zeros_stay_zeros_and_padding_is_the_zero_point(fmt: BlockFormat) -> None:
    weights = normal(2, fmt.block_size + 3)
    weights[0] = 0
    whole = dequantize(quantize_scale_search(weights, fmt), fmt, 2 * fmt.block_size)
    assert (whole[0] == 0).all() and (whole[:, weights.shape[1] :] == 0).all()


@every_format
def test_pieces_of_a_matrix_give_the_bytes_of_the_whole(fmt: BlockFormat) -> None:
    weights = normal(1100, 130)
    whole = quantize_scale_search(weights, fmt)
    for rows in (slice(0, 1000), slice(1000, 1100), slice(37, 38)):
        part = quantize_scale_search(weights[rows], fmt)
        assert part.data.tobytes() == whole.data[rows].tobytes()
        assert part.scales.tobytes() == whole.scales[rows].tobytes()
        if whole.zero_points is not None and part.zero_points is not None:
            assert part.zero_points.tobytes() == whole.zero_points[rows].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fmt", [BlockFormat(4), BlockFormat(8, symmetric=False)], ids=lambda fmt: fmt.name)
def test_weights_that_are_not_finite_are_refused(fmt: BlockFormat, value: float) -> None:
    weights = normal(2, 64)
    weights[1, 40] = value
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize_scale_search(weights, fmt)


def test_a_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond float16"):
        quantize_scale_search(normal(2, 64) * np.float32(1e7), BlockFormat(4))
