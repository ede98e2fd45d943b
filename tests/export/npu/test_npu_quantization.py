"""The NPU's integers: packed experts, exact block scales, tensors that share parameters, and forbidden forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from lfm_onnx.artifact.int4 import pack_int4
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.errors import InputError
from lfm_onnx.export.npu import (
    MoeForm,
    NpuOptions,
    NpuWeights,
    Phase,
    check_graph,
    export_npu,
    plan_parts,
)
from lfm_onnx.export.npu.calibration import calibrate
from lfm_onnx.export.npu.float_model import IR_VERSION, OPSET
from lfm_onnx.export.npu.part_graph import PartShape, declare_part
from lfm_onnx.export.npu.quantization import DATA_MOVEMENT, HEADROOM, QuantizationParameters, assign
from lfm_onnx.export.npu.static_graph import WeightKind
from lfm_onnx.export.npu.weight_codes import StoredAs, quantize_blocks, quantize_weight
from lfm_onnx.reference.model import Reference
from npu_graphs import unpacking_model
from npu_models import FULL_SIZE
from onnx import TensorProto, helper


def test_packed_experts_unpack_to_the_bit() -> None:
    """The graph's own arithmetic on ONNX Runtime gives back every pair of 4-bit codes, of each expert."""
    model, steps = unpacking_model()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options)
    for expert in (0, 1):
        high, low = session.run(["high", "low"], {"chosen": np.array([expert], np.int32)})
        assert np.array_equal(high[0, 0].astype(int) - 8, steps[expert, :225])
        assert np.array_equal(low[0, 0].astype(int) - 128, steps[expert, 225:])  # sixteenths: b / 16 in steps of 1/16


def test_packed_experts_take_half_the_bytes_of_int8(variant_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe"))
    graph = declare_part(checkpoint, PartShape(2, 3, False, 16), Phase.DECODE, 1, MoeForm.PACKED)
    weight = next(weight for weight in graph.weights.values() if weight.kind is WeightKind.EXPERTS)
    whole, packed = (quantize_weight(weight, form) for form in (StoredAs.INT8_EXPERTS, StoredAs.INT4_PACKED_EXPERTS))
    assert packed.codes.nbytes * 2 == whole.codes.nbytes


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_block_scales_are_sixteenths_of_their_columns(spread: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 256)).astype(np.float32)
    rows *= np.exp(spread * rng.standard_normal((50, 8))).astype(np.float32).repeat(32, axis=1)
    codes, scales = quantize_blocks(rows)
    k = scales / scales.max(axis=1, keepdims=True) * 16
    assert np.abs(k - np.rint(k)).max() < 1e-4 and k.min() > 0.99
    assert codes.min() >= -8 and codes.max() <= 7
    values = (codes * scales[..., None]).reshape(rows.shape)
    assert np.square(values - rows).sum() / np.square(rows).sum() < 0.012


def test_rows_of_zeros_are_stored_as_zeros() -> None:
    codes, scales = quantize_blocks(np.zeros((2, 64), np.float32))
    assert not codes.any() and np.isfinite(scales).all() and (scales > 0).all()


def test_int4_codes_are_packed_as_onnx_reads_them() -> None:
    codes = np.arange(-8, 7, dtype=np.int8)
    tensor = helper.make_tensor("t", TensorProto.INT4, [15], pack_int4(codes).tobytes(), raw=True)
    assert np.array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)


@pytest.mark.parametrize("low, high, dtype", [(-3.0, 5.0, "uint16"), (0.0, 1.0, "uint16"), (-1.0, -0.5, "uint8")])
def test_zero_and_the_range_are_representable(low: float, high: float, dtype: str) -> None:
    used = QuantizationParameters.over(low, high, dtype)
    numbers = np.array([low, 0.0, high], np.float32)
    assert np.abs(used.values(used.codes(numbers)) - numbers).max() <= used.scale
    assert used.values(used.codes(numbers))[1] == 0


def test_tensors_between_which_data_moves_share_their_parameters(variant_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe"))
    part = PartShape(0, 4, True, 16)
    graphs = [
        declare_part(checkpoint, part, Phase.PREFILL, 8),
        declare_part(checkpoint, part, Phase.DECODE, 1, MoeForm.GATHERED),
    ]
    rng = np.random.default_rng(0)
    ranges = {
        value.name: (-float(rng.uniform(1, 2)), float(rng.uniform(1, 2)))
        for graph in graphs
        for value in [*(port.value for port in graph.inputs), *(v for node in graph.nodes for v in node.outputs)]
        if value.dtype == "float32"
    }
    assigned = assign(graphs, ranges)
    experts = {name for graph in graphs for name, w in graph.weights.items() if w.kind is not WeightKind.TABLE}
    moved = 0
    for graph in graphs:
        for node in graph.nodes:
            values = [v for v in (*node.inputs, *node.outputs) if v.dtype == "float32"]
            if values and node.op_type in DATA_MOVEMENT and not experts & {value.name for value in values}:
                assert len({assigned[value.name] for value in values}) == 1, node.name
                moved += 1
    assert moved > 40
    assert assigned["past_key.2"].dtype == "uint8" and assigned["past_conv.0"].dtype == "uint16"
    low, high = ranges["layers.0.ffn_norm"]
    used = assigned["layers.0.ffn_norm"]
    assert used.scale == pytest.approx(HEADROOM * (high - low) / 65535)


def test_a_tensor_that_calibration_never_saw_is_named(variant_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("dense"))
    graph = declare_part(checkpoint, PartShape(0, 1, False, 16), Phase.DECODE, 1)
    with pytest.raises(InputError, match="calibration saw nothing of"):
        assign([graph], {})


def _checked(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[int]]], tensors: dict[str, np.ndarray]
) -> set[str]:
    """Rules that a small graph breaks; int4 initializers are those named ``w4``."""
    initializers = []
    for name, array in tensors.items():
        if name == "w4":
            packed = pack_int4(array.reshape(-1)).tobytes()
            initializers.append(helper.make_tensor(name, TensorProto.INT4, array.shape, packed, raw=True))
        else:
            initializers.append(onnx.numpy_helper.from_array(array, name))
    values = [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
    graph = helper.make_graph(nodes, "g", values, [], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model = onnx.shape_inference.infer_shapes(model)
    return {finding.rule for finding in check_graph(ir.serde.deserialize_model(model))}


SCALE, ZERO16, ZERO8 = np.array(0.1, np.float32), np.array(9, np.uint16), np.array(9, np.uint8)


def _dequantize(name: str, zero: str) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [name, "s", zero], [f"{name}.f"], name=f"{name}.dq")


def test_batched_products_with_int4_blocks_are_refused() -> None:
    nodes = [
        _dequantize("x", "z16"),
        helper.make_node("DequantizeLinear", ["w4", "ws"], ["w.f"], axis=1, block_size=32),
        helper.make_node("MatMul", ["x.f", "w.f"], ["y"], name="experts"),
    ]
    tensors = {"s": SCALE, "z16": ZERO16, "w4": np.ones((2, 64, 8), np.int8), "ws": np.full((2, 2, 8), 0.1, np.float32)}
    assert _checked(nodes, {"x": (TensorProto.UINT16, [2, 1, 64])}, tensors) == {"batched int4 blocks"}
    flat = {**tensors, "w4": np.ones((64, 8), np.int8), "ws": np.full((2, 8), 0.1, np.float32)}
    nodes[1] = helper.make_node("DequantizeLinear", ["w4", "ws"], ["w.f"], axis=0, block_size=32)
    assert _checked(nodes, {"x": (TensorProto.UINT16, [2, 1, 64])}, flat) == set()
    uneven = {**flat, "ws": np.array([[0.1] * 8, [0.0777] * 8], np.float32)}
    assert _checked(nodes, {"x": (TensorProto.UINT16, [2, 1, 64])}, uneven) == {"block scales"}


@pytest.mark.parametrize(
    "dtype, zero, width, refused",
    [
        (TensorProto.UINT8, "z8", 32, True),
        (TensorProto.UINT8, "z8", 64, False),
        (TensorProto.UINT16, "z16", 32, False),
    ],
)
def test_norms_of_rank_4_over_few_elements_in_8_bits_are_refused(
    dtype: int, zero: str, width: int, refused: bool
) -> None:
    nodes = [
        _dequantize("x", zero),
        helper.make_node("RMSNormalization", ["x.f", "g"], ["y"], name="norm", axis=-1),
    ]
    tensors = {"s": SCALE, "z16": ZERO16, "z8": ZERO8, "g": np.ones(width, np.float32)}
    assert _checked(nodes, {"x": (dtype, [1, 4, 2, width])}, tensors) == ({"narrow norm"} if refused else set())


def test_narrow_norms_in_float_are_refused() -> None:
    nodes = [helper.make_node("RMSNormalization", ["x", "g"], ["y"], name="norm", axis=-1)]
    tensors = {"g": np.ones(32, np.float16)}
    assert _checked(nodes, {"x": (TensorProto.FLOAT16, [1, 4, 2, 32])}, tensors) == {"narrow norm"}


def test_routers_in_8_bits_or_by_threshold_are_refused() -> None:
    top_k = helper.make_node("TopK", ["x.f", "k"], ["values", "indices"], name="top")
    tensors = {"s": SCALE, "z16": ZERO16, "z8": ZERO8, "k": np.array([2])}
    assert _checked([_dequantize("x", "z8"), top_k], {"x": (TensorProto.UINT8, [1, 8])}, tensors) == {"router"}
    threshold = helper.make_node("GreaterOrEqual", ["x.f", "values"], ["chosen"], name="chosen")
    inputs = {"x": (TensorProto.UINT16, [1, 8])}
    assert _checked([_dequantize("x", "z16"), top_k], inputs, tensors) == set()
    assert _checked([_dequantize("x", "z16"), top_k, threshold], inputs, tensors) == {"router"}


def test_moving_data_to_another_scale_is_refused() -> None:
    nodes = [
        _dequantize("x", "z16"),
        helper.make_node("Transpose", ["x.f"], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("QuantizeLinear", ["t", "s2", "z16"], ["y"]),
    ]
    tensors = {"s": SCALE, "s2": np.array(0.2, np.float32), "z16": ZERO16}
    inputs = {"x": (TensorProto.UINT16, [2, 3])}
    assert _checked(nodes, inputs, tensors) == {"moved data"}
    assert _checked(nodes, inputs, {**tensors, "s2": SCALE}) == set()


def test_operators_that_the_npu_does_not_have_are_refused() -> None:
    node = helper.make_node("OneHot", ["i", "d", "v"], ["y"], name="hot")
    tensors = {"d": np.array([4]), "v": np.array([0, 1], np.float32)}
    assert _checked([node], {"i": (TensorProto.INT32, [2])}, tensors) == {"operator"}
    assert _checked([], {"i": (TensorProto.INT32, ["n"])}, {}) == {"static shapes"}  # type: ignore[dict-item]


def test_the_8b_model_is_cut_into_parts_under_the_budget() -> None:
    config = LfmConfig.from_dict(FULL_SIZE)
    parts = plan_parts(config, NpuWeights.INT4, decode=MoeForm.PACKED)
    assert [part.first_layer for part in parts[1:]] == [part.last_layer for part in parts[:-1]]
    assert parts[0].first_layer == 0 and parts[-1].last_layer == 24 and parts[-1].head
    assert all(max(part.weight_bytes.values()) <= 3e9 for part in parts)
    total = sum(part.weight_bytes["decode"] for part in parts)
    assert 4.0e9 < total < 4.6e9
    # 1.68 G parameters are touched a token, at 4 bits and a little.
    assert 0.8e9 < sum(part.token_bytes for part in parts) < 0.9e9
    assert len(plan_parts(config, NpuWeights.INT4, memory_budget=4_000_000_000, decode=MoeForm.PACKED)) > len(parts)
    with pytest.raises(InputError, match="layer 2 has"):
        plan_parts(config, NpuWeights.INT4, weight_budget=100_000_000)


def test_ranges_in_the_report_hold_what_the_graphs_produce(
    variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe"))
    ids = np.random.default_rng(0).integers(0, 96, 40)
    export_npu(
        checkpoint, tmp_path / "out", NpuOptions(chunk=16, context_lengths=(64,), calibration=[ids], tokenizer=False)
    )
    ranges = json.loads((tmp_path / "out" / "npu" / "ranges.json").read_text())
    hidden: list[np.ndarray] = []
    Reference(checkpoint).forward(ids, hidden=hidden)
    for layer, values in enumerate(hidden[1:-1]):
        assert ranges[f"hidden_states.{layer}"] == pytest.approx([values.min(), values.max()], rel=1e-4)
    table = checkpoint.float32("model.embed_tokens.weight")
    assert ranges["hidden_states.embed"] == pytest.approx([table.min(), table.max()])


@pytest.mark.parametrize("length", [2, 5, 33])
def test_calibration_runs_both_graphs_on_texts_of_any_length(
    length: int, variant_checkpoint: Callable[..., Path]
) -> None:
    ranges = calibrate(Checkpoint.open(variant_checkpoint("moe")), [np.arange(length)], MoeForm.GATHERED)
    assert "layers.1.feed_forward.wide.w1.out" in ranges  # prefill's
    assert "layers.1.feed_forward.gathered.w1.all.scaled" in ranges  # decode's
