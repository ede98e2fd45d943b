"""Block formats: what is written is what is read, no value moves further than its step allows, runtimes agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lfm_onnx.artifact.formats import BLOCK_SIZES, SCALE_DTYPES, BlockFormat, QuantizedRows, dequantize
from lfm_onnx.artifact.int4 import pack_int4, unpack_int4
from lfm_onnx.artifact.precision import FP16, PRECISIONS, Q4, Q8
from lfm_onnx.quantize.round_to_nearest import quantize_round_to_nearest
from lfm_onnx.quantize.scale_search import quantize_scale_search
from onnx import TensorProto, helper, numpy_helper

FORMATS = [
    BlockFormat(bits, block_size, symmetric, scale_dtype)
    for bits, block_size, symmetric, scale_dtype in itertools.product((4, 8), BLOCK_SIZES, (True, False), SCALE_DTYPES)
]
formats = st.sampled_from(FORMATS)
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def matrix(rows: int, columns: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32) * np.float32(scale)


def steps(weights: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    """|scale| of the block that each weight lies in."""
    scales = quantize_round_to_nearest(weights, fmt).scales.astype(np.float32)
    return np.abs(np.repeat(scales, fmt.block_size, axis=1)[:, : weights.shape[1]])


# --- packing ----------------------------------------------------------------------------------------------------------


@given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 4), count=st.integers(1, 67), seed=st.integers(0, 2**32 - 1))
def test_unpacking_gives_back_what_was_packed(bits: int, rows: int, count: int, seed: int) -> None:
    fmt = BlockFormat(bits)
    codes = np.random.default_rng(seed).integers(0, fmt.max_code + 1, (rows, count), np.uint8)
    packed = fmt.pack(codes)
    assert packed.shape == (rows, -(-count * bits // 8))
    np.testing.assert_array_equal(fmt.unpack(packed, count), codes)


@pytest.mark.parametrize("shape, axis", [((6, 5), 0), ((5, 3), 0), ((4, 3, 2), 1), ((7,), -1)])
def test_int4_codes_are_packed_along_any_axis(shape: tuple[int, ...], axis: int) -> None:
    codes = np.random.default_rng(0).integers(0, 16, shape, np.uint8)
    along_last = pack_int4(np.moveaxis(codes, axis, -1))
    np.testing.assert_array_equal(pack_int4(codes, axis), np.moveaxis(along_last, -1, axis))
    np.testing.assert_array_equal(unpack_int4(along_last, shape[axis]), np.moveaxis(codes, axis, -1))


def test_negative_int4_codes_are_two_s_complement() -> None:
    assert pack_int4(np.array([-8, 7, -1], np.int8)).tolist() == [0x78, 0x0F]


def test_an_int4_byte_holds_the_even_element_in_its_low_nibble() -> None:
    assert BlockFormat(4).pack(np.array([[1, 2, 15, 0, 7]], np.uint8)).tolist() == [[0x21, 0x0F, 0x07]]


@every_format
def test_shapes_are_those_that_the_format_declares(fmt: BlockFormat) -> None:
    columns = 2 * fmt.block_size + 5
    rows = quantize_round_to_nearest(matrix(3, columns), fmt)
    assert rows.data.shape == (3, 3, fmt.block_bytes) and rows.data.dtype == np.uint8
    assert rows.data[0].nbytes == fmt.row_bytes(columns)
    assert rows.scales.shape == (3, fmt.blocks(columns)) and rows.scales.dtype == fmt.scale_dtype
    if fmt.symmetric:
        assert rows.zero_points is None and fmt.zero_point_bytes(columns) == 0
    else:
        assert rows.zero_points is not None and rows.zero_points.shape == (3, fmt.zero_point_bytes(columns))


def test_bits_per_weight_count_scales_and_zero_points() -> None:
    assert BlockFormat(4).bits_per_weight == 4.5
    assert BlockFormat(8, 64, True, "float32").bits_per_weight == 8.5
    assert BlockFormat(4, 128, False).bits_per_weight == 4 + 20 / 128


@pytest.mark.parametrize("wrong", [{"bits": 3}, {"block_size": 48}, {"scale_dtype": "bfloat16"}])
def test_a_format_that_no_runtime_reads_cannot_be_declared(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BlockFormat(**{"bits": 4, **wrong})


# --- rounding ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    fmt=formats,
    rows=st.integers(1, 5),
    columns=st.integers(1, 300),
    exponent=st.integers(-4, 3),
    seed=st.integers(0, 2**32 - 1),
)
@example(fmt=BlockFormat(4), rows=1, columns=32, exponent=0, seed=0)
def test_no_weight_moves_further_than_its_step_allows(
    fmt: BlockFormat, rows: int, columns: int, exponent: int, seed: int
) -> None:
    """Half a step, or one where a symmetric block clips; more by what rounding the scale itself takes off the range."""
    weights = matrix(rows, columns, seed, 10.0**exponent)
    found = dequantize(quantize_round_to_nearest(weights, fmt), fmt, columns)
    step = steps(weights, fmt)
    limit = (1.0 if fmt.symmetric else 0.5) * step
    # float16 keeps 11 bits of the scale, in the subnormal range an absolute 2**-25.
    range_lost = fmt.max_code * (step * 2**-11 + 2**-25) if fmt.scale_dtype == "float16" else 1e-5 * step
    assert (np.abs(found - weights) <= limit + range_lost).all()


@settings(max_examples=100, deadline=None)
@given(
    fmt=formats,
    values=st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e4, -1e4, 3e-5, -6e-8, 1e-8, -1e-38, 1e-45]), min_size=1),
    seed=st.integers(0, 2**32 - 1),
)
def test_extreme_blocks_give_finite_values_of_their_own_range(fmt: BlockFormat, values: list[float], seed: int) -> None:
    weights = np.random.default_rng(seed).choice(np.array(values, np.float32), (2, 70))
    found = dequantize(quantize_round_to_nearest(weights, fmt), fmt, 70)
    assert np.isfinite(found).all()
    beyond = (
        1e-3 * np.abs(weights).max() + fmt.max_code * 2**-25 + (0 if fmt.symmetric else steps(weights, fmt).max() / 2)
    )
    assert np.abs(found).max() <= np.abs(weights).max() + beyond


@every_format
def test_zeros_stay_zeros_and_padding_is_the_zero_point(fmt: BlockFormat) -> None:
    weights = matrix(2, fmt.block_size + 3)
    weights[0] = 0
    weights[1, ::2] = 0
    rows = quantize_round_to_nearest(weights, fmt)
    whole = dequantize(rows, fmt, 2 * fmt.block_size)
    assert (whole[0] == 0).all()
    assert (whole[1, : weights.shape[1] : 2] == 0).all()
    assert (whole[:, weights.shape[1] :] == 0).all()


@every_format
def test_the_largest_weight_of_a_block_is_kept(fmt: BlockFormat) -> None:
    """To the precision of the scale; symmetric formats give it a code of its own, whichever its sign."""
    weights = matrix(40, fmt.block_size)
    found = dequantize(quantize_round_to_nearest(weights, fmt), fmt, fmt.block_size)
    at = np.arange(40), np.abs(weights).argmax(1)
    tolerance = 1e-3 if fmt.symmetric else 0.5 / fmt.max_code * 2.01
    np.testing.assert_allclose(found[at], weights[at], rtol=tolerance)


@pytest.mark.parametrize("quantize", [quantize_round_to_nearest, quantize_scale_search])
@every_format
def test_what_the_codes_can_say_exactly_is_said_exactly(
    fmt: BlockFormat, quantize: Callable[[np.ndarray, BlockFormat], QuantizedRows]
) -> None:
    """Quantizing values that are already codes times a power of two changes nothing."""
    codes = np.random.default_rng(0).integers(0, fmt.max_code + 1, (4, 2 * fmt.block_size))
    codes[:, :: fmt.block_size] = 0
    codes[:, 1 :: fmt.block_size] = fmt.max_code
    weights = ((codes - fmt.zero_point) * 0.125).astype(np.float32)
    np.testing.assert_array_equal(dequantize(quantize(weights, fmt), fmt, weights.shape[1]), weights)


@every_format
def test_pieces_of_a_matrix_give_the_bytes_of_the_whole(fmt: BlockFormat) -> None:
    weights = matrix(37, 4500)
    whole = quantize_round_to_nearest(weights, fmt)
    again = quantize_round_to_nearest(weights.copy(order="F"), fmt)
    part = quantize_round_to_nearest(weights[5:6], fmt)
    assert whole.data.tobytes() == again.data.tobytes() and whole.scales.tobytes() == again.scales.tobytes()
    np.testing.assert_array_equal(part.data[0], whole.data[5])
    np.testing.assert_array_equal(part.scales[0], whole.scales[5])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fmt", [BlockFormat(4), BlockFormat(8, symmetric=False)], ids=lambda fmt: fmt.name)
def test_weights_that_are_not_finite_are_refused(fmt: BlockFormat, value: float) -> None:
    weights = matrix(2, 64)
    weights[1, 40] = value
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize_round_to_nearest(weights, fmt)


def test_a_scale_beyond_float16_is_refused_and_fits_float32() -> None:
    weights = matrix(2, 64, scale=1e7)
    with pytest.raises(ValueError, match="beyond float16"):
        quantize_round_to_nearest(weights, BlockFormat(4))
    fmt = BlockFormat(4, scale_dtype="float32")
    assert np.abs(dequantize(quantize_round_to_nearest(weights, fmt), fmt, 64) - weights).max() < 5e6


@pytest.mark.parametrize("bits", [4, 8])
def test_finer_formats_are_nearer(bits: int) -> None:
    weights = matrix(64, 1024)

    def error(fmt: BlockFormat) -> float:
        return float(np.square(dequantize(quantize_round_to_nearest(weights, fmt), fmt, 1024) - weights).mean())

    errors = [error(BlockFormat(bits, block_size)) for block_size in BLOCK_SIZES]
    assert errors == sorted(errors)
    assert error(BlockFormat(bits, symmetric=False)) < errors[0]
    assert error(BlockFormat(8)) < error(BlockFormat(4)) / 100


# --- what ONNX Runtime reads ------------------------------------------------------------------------------------------


def session(node: onnx.NodeProto, initializers: dict[str, np.ndarray], inputs: dict[str, int]) -> ort.InferenceSession:
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@every_format
@pytest.mark.parametrize("size", [(48, 256), (33, 70), (16, 17)], ids=str)
def test_matmul_nbits_reads_the_layout(fmt: BlockFormat, size: tuple[int, int]) -> None:
    rows, columns = size
    stored = quantize_round_to_nearest(matrix(rows, columns), fmt)
    arrays = {"w": stored.data, "scales": stored.scales.astype(np.float32)}
    if stored.zero_points is not None:
        arrays["zero_points"] = stored.zero_points
    node = helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=columns, N=rows, bits=fmt.bits,
        block_size=fmt.block_size, accuracy_level=0,
    )  # fmt: skip
    run = session(node, arrays, {"x": columns})
    for tokens in (1, 7):
        x = matrix(tokens, columns, seed=1)
        expected = x.astype(np.float64) @ dequantize(stored, fmt, columns).T.astype(np.float64)
        np.testing.assert_allclose(run.run(None, {"x": x})[0], expected, atol=2e-5 * columns**0.5)


@every_format
def test_qmoe_reads_the_layout(fmt: BlockFormat) -> None:
    """Two experts of which each token takes one, so that the result is one expert's SwiGLU."""
    hidden, width = 256, 384
    weights = [matrix(2 * 2 * width, hidden, 1, hidden**-0.5), matrix(2 * hidden, width, 2, width**-0.5)]
    stored = [quantize_round_to_nearest(weight, fmt) for weight in weights]
    w13, w2 = (
        dequantize(rows, fmt, weight.shape[1]).reshape(2, -1, weight.shape[1])
        for rows, weight in zip(stored, weights, strict=True)
    )
    arrays: dict[str, np.ndarray] = {}
    for name, rows in zip(("w13", "w2"), stored, strict=True):
        arrays[name] = rows.data.reshape(2, rows.data.shape[0] // 2, -1)
        arrays[name + "_scales"] = rows.scales.reshape(2, rows.data.shape[0] // 2, -1)
        if rows.zero_points is not None:
            arrays[name + "_zeros"] = rows.zero_points.reshape(2, rows.data.shape[0] // 2, -1)
    inputs = ["x", "logits", "w13", "w13_scales", "", "w2", "w2_scales"]
    if not fmt.symmetric:
        inputs += ["", "", "", "", "w13_zeros", "w2_zeros"]
    node = helper.make_node(
        "QMoE", inputs, ["y"], domain="com.microsoft", k=1, activation_type="swiglu", swiglu_fusion=1,
        activation_alpha=1.0, activation_beta=0.0, normalize_routing_weights=1, expert_weight_bits=fmt.bits,
        block_size=fmt.block_size,
    )  # fmt: skip
    x = matrix(6, hidden, 3)
    expert = np.arange(6) % 2
    logits = np.where(np.arange(2) == expert[:, None], 0, -60000).astype(np.float32)
    found = session(node, arrays, {"x": hidden, "logits": 2}).run(None, {"x": x, "logits": logits})[0]

    for token in range(6):
        pairs = w13[expert[token]].astype(np.float64) @ x[token]
        expected = w2[expert[token]].astype(np.float64) @ (pairs[::2] / (1 + np.exp(-pairs[::2])) * pairs[1::2])
        # With int8 weights some versions round the activations to int8, too.
        tolerance = 1e-4 if fmt.bits == 4 else 0.15
        assert np.abs(found[token] - expected).max() <= tolerance * expected.std()


# --- precisions -------------------------------------------------------------------------------------------------------


def test_files_are_called_as_clients_expect_them() -> None:
    names = {name: precision.model_file for name, precision in PRECISIONS.items()}
    assert names == {
        "fp32": "model.onnx",
        "fp16": "model_fp16.onnx",
        "q8": "model_quantized.onnx",
        "q4": "model_q4.onnx",
        "q4f16": "model_q4f16.onnx",
    }
    assert Q4.data_file(1) == "model_q4.onnx_data_1"


def test_the_default_formats_are_symmetric_blocks_of_32_with_float16_scales() -> None:
    assert Q4.weights == BlockFormat(4, 32, True, "float16")
    assert Q8.weights == BlockFormat(8, 32, True, "float16")


def test_a_precision_takes_another_block_format() -> None:
    other = Q4.with_blocks(64, "float32", zero_points=True)
    assert other.weights == BlockFormat(4, 64, False, "float32") and other.model_file == Q4.model_file
    assert Q8.with_blocks(None, None, zero_points=False) is Q8
    assert FP16.with_blocks(None, None, zero_points=False) is FP16
    with pytest.raises(ValueError, match="fp16 stores no blocks"):
        FP16.with_blocks(64, None, zero_points=False)
