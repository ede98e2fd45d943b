"""GPTQ: the factor is that of the Hessian, feedback is that of the published algorithm, outputs change less."""

from __future__ import annotations

import numpy as np
import pytest
from lfm_onnx.artifact.formats import BlockFormat, dequantize
from lfm_onnx.quantize.gptq import quantize_gptq
from lfm_onnx.quantize.hessian import DAMPING, HessianFactor, shrunk
from lfm_onnx.quantize.round_to_nearest import quantize_round_to_nearest
from lfm_onnx.quantize.scale_search import quantize_scale_search

FORMATS = [BlockFormat(4), BlockFormat(4, 64, False), BlockFormat(8, 128), BlockFormat(4, 128, False, "float32")]
some_formats = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def correlated_inputs(tokens: int, columns: int, seed: int = 1) -> np.ndarray:
    """Inputs of a few strong directions, as those of language models are."""
    strong = normal(tokens, 16, seed) @ normal(16, columns, seed + 1)
    return strong + normal(tokens, columns, seed + 2)


def moment_of(x: np.ndarray) -> np.ndarray:
    return x.T @ x / np.float32(len(x))


def output_error(weights: np.ndarray, stored: np.ndarray, x: np.ndarray) -> float:
    return float(np.square(x @ (weights - stored).T).mean())


@pytest.mark.parametrize("columns", [1, 5, 128, 300])
def test_the_factor_multiplies_back_to_the_damped_moment(columns: int) -> None:
    moment = moment_of(correlated_inputs(400, columns))
    factor = HessianFactor.from_second_moment(moment)
    assert (np.diagonal(factor.unit) == 1).all() and (np.tril(factor.unit, -1) == 0).all()
    damped = moment + DAMPING * np.diagonal(moment).mean() * np.identity(columns)
    unit = factor.unit.astype(np.float64)
    np.testing.assert_allclose(unit * factor.pivots @ unit.T, damped, atol=1e-5 * np.abs(damped).max())


def test_fewer_tokens_than_columns_can_still_be_factored() -> None:
    factor = HessianFactor.from_second_moment(moment_of(normal(3, 200)))
    assert np.isfinite(factor.unit).all() and (factor.pivots > 0).all()


def test_a_moment_that_rounding_made_indefinite_is_damped_more() -> None:
    moment = moment_of(normal(400, 64))
    moment[3, 3] = -0.2
    assert (HessianFactor.from_second_moment(moment).pivots > 0).all()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_moment_that_says_nothing_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        HessianFactor.from_second_moment(np.full((8, 8), value, np.float32))


def test_few_tokens_are_drawn_towards_all_tokens() -> None:
    own, all_tokens = np.full((2, 2), 4, np.float32), np.full((2, 2), 8, np.float32)
    np.testing.assert_allclose(shrunk(own, 100, all_tokens, 300.0), np.full((2, 2), 7))
    np.testing.assert_array_equal(shrunk(own, 0, all_tokens, 300.0), all_tokens)


def published_gptq(weights: np.ndarray, scales: np.ndarray, hessian: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    """Algorithm 1 of Frantar et al. 2022, column by column in float64, for symmetric blocks of given scales."""
    left = weights.astype(np.float64)
    stored = np.zeros_like(left)
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for k in range(left.shape[1]):
        scale = scales[:, k // fmt.block_size].astype(np.float64)
        levels = np.clip(np.rint(left[:, k] / scale), -fmt.zero_point, fmt.zero_point - 1)
        stored[:, k] = levels * scale
        error = (left[:, k] - stored[:, k]) / inverse[k, k]
        left[:, k:] -= np.outer(error, inverse[k, k:])
    return stored


def test_feedback_is_that_of_the_published_algorithm() -> None:
    """On the scales that were stored, the levels are those of GPTQ with the inverse's Cholesky factor."""
    fmt = BlockFormat(4)
    weights, moment = normal(24, 320), moment_of(correlated_inputs(600, 320))
    rows = quantize_gptq(weights, fmt, HessianFactor.from_second_moment(moment))
    damped = moment.astype(np.float64) + DAMPING * np.diagonal(moment).mean() * np.identity(320)
    expected = published_gptq(weights, rows.scales, damped, fmt)
    # Where float32 and float64 round a tie differently, the rest of that row goes another way.
    same = (np.abs(dequantize(rows, fmt, 320) - expected) < 1e-5).all(axis=1)
    assert same.mean() > 0.9


@some_formats
@pytest.mark.parametrize("columns", [256, 300, 40])
def test_outputs_change_less_than_with_the_search_alone(fmt: BlockFormat, columns: int) -> None:
    weights, x = normal(48, columns), correlated_inputs(512, columns)
    factor = HessianFactor.from_second_moment(moment_of(x))
    ways = (
        quantize_gptq(weights, fmt, factor),
        quantize_scale_search(weights, fmt, np.square(x).mean(axis=0)),
        quantize_round_to_nearest(weights, fmt),
    )
    gptq, search, plain = (output_error(weights, dequantize(rows, fmt, columns), x) for rows in ways)
    assert gptq < 0.8 * search < 0.8 * plain


def test_outputs_on_other_inputs_of_the_same_kind_change_less_too() -> None:
    fmt = BlockFormat(4)
    x = correlated_inputs(1024, 256)
    weights, seen, unseen = normal(48, 256), x[:512], x[512:]
    rows = quantize_gptq(weights, fmt, HessianFactor.from_second_moment(moment_of(seen)))
    plain = quantize_round_to_nearest(weights, fmt)
    after, before = (output_error(weights, dequantize(r, fmt, 256), unseen) for r in (rows, plain))
    assert after < 0.7 * before


@some_formats
def test_inputs_without_correlation_need_no_feedback(fmt: BlockFormat) -> None:
    weights = normal(16, 192)
    rows = quantize_gptq(weights, fmt, HessianFactor.from_second_moment(np.identity(192, dtype=np.float32)))
    gptq, search = (
        float(np.square(dequantize(r, fmt, 192) - weights).sum()) for r in (rows, quantize_scale_search(weights, fmt))
    )
    assert gptq == pytest.approx(search, rel=0.02)


@some_formats
def test_padding_is_the_zero_point_and_shapes_are_the_format_s(fmt: BlockFormat) -> None:
    columns = 2 * fmt.block_size + 5
    weights = normal(6, columns)
    rows = quantize_gptq(weights, fmt, HessianFactor.from_second_moment(moment_of(correlated_inputs(300, columns))))
    plain = quantize_round_to_nearest(weights, fmt)
    assert rows.data.shape == plain.data.shape and rows.scales.dtype == plain.scales.dtype
    whole = dequantize(rows, fmt, 3 * fmt.block_size)
    assert (whole[:, columns:] == 0).all()


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = normal(4, 64)
    weights[1, 40] = np.nan
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize_gptq(weights, BlockFormat(4), HessianFactor.from_second_moment(np.identity(64, dtype=np.float32)))
