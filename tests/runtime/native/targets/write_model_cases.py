"""Writes one-node models of the ai.liquid ops with inputs and expected outputs, for model_test on another machine.

usage: write_model_cases.py OUTPUT_FILE

Expected values come twice: from the formula or the op's function, within a tolerance; and, where this machine has the
native library, from its kernels, to the last bit.

File: uint32 number of cases; a case is its name, the model, the error that the call must give (empty: none), a float32
tolerance (of the largest magnitude of an output), uint32 whether outputs are exact, inputs, outputs by value, and exact
outputs. Texts and bytes follow their uint64 length; tensors follow their uint32 number: name, int32 element type,
uint32 rank, int64 dimensions, bytes. All little-endian.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

sys.path.insert(0, str(Path(__file__).parents[3] / "support"))

from lfm_onnx.export.ops import OpsProfile, gated_short_conv_function, split_qkv_norm_function
from lfm_onnx.runtime.native_library import ops_library_path
from native_attention import Call
from native_experts import Experts
from native_models import (
    Array,
    Format,
    Tensors,
    Weight,
    activations,
    function_result,
    gated,
    native_session,
    one_node_model,
    quantized_activations,
)

Values = list[npt.NDArray[np.floating]]

FLOAT_TOLERANCE = 1e-5
ROUNDED_TOLERANCE = 2e-2
"""An activation of the inner product on the edge between two int8 codes may fall to either side."""

FORMATS = [Format(4), Format(8), Format(4, 64, True), Format(8, 128, True, "float32")]
TOKENS = [1, 3, 11]
"""One and few tokens, which meet rows one by one, and enough for tiles."""


@dataclass
class Case:
    """One call of one node; ``expected`` empty where the call must fail with a text that contains ``error``."""

    name: str
    op: str
    feeds: dict[str, npt.NDArray[np.generic]]
    tensors: Tensors
    attributes: Mapping[str, int | float]
    expected: Values
    tolerance: float = FLOAT_TOLERANCE
    error: str = ""
    model: onnx.ModelProto = field(init=False)

    def __post_init__(self) -> None:
        self.model = one_node_model(self.op, self.feeds, self.tensors, self.attributes, len(self.expected) or 1)


def qlinear(fmt: Format, tokens: int, activation_bits: int) -> Case:
    weight, bias, x = Weight(fmt, 150, 200), activations(1, 150), activations(2, tokens, 200)
    tensors = {"x": x, "weight": weight.data, "scales": weight.scales, "zero_points": weight.zero_points, "bias": bias}
    seen = quantized_activations(x, fmt.block_size) if activation_bits else x.astype(np.float64)
    attributes = {"K": 200, "N": 150, **fmt.attributes(activation_bits)}
    return Case("", "QLinear", {"x": x}, tensors, attributes, [seen @ weight.values.T + bias])


def sparse_moe(fmt: Format | np.dtype[np.generic], tokens: int, activation_bits: int = 0) -> Case:
    mixture, x = Experts(fmt, 8, 256, 128), activations(tokens, tokens, 256)
    expected = mixture.formula(x, 3, 1, activation_bits)
    tolerance = ROUNDED_TOLERANCE if activation_bits else FLOAT_TOLERANCE
    attributes = mixture.attributes(3, 1, activation_bits)
    return Case("", "SparseMoE", {"x": x}, mixture.tensors(x), attributes, [expected], tolerance)


def swiglu(fmt: Format, tokens: int) -> Case:
    gate_up, down, x = Weight(fmt, 300, 200), Weight(fmt, 200, 150), activations(3, tokens, 200)
    tensors = {"x": x, "gate_up": gate_up.data, "down": down.data}
    tensors |= {"gate_up_scales": gate_up.scales, "down_scales": down.scales}
    if fmt.zero_points:
        tensors |= {"gate_up_zero_points": gate_up.zero_points, "down_zero_points": down.zero_points}
    hidden = gated(quantized_activations(x, fmt.block_size) @ gate_up.values.T).astype(np.float32)
    expected = quantized_activations(hidden, fmt.block_size) @ down.values.T
    attributes = {"K": 200, "F": 150, **fmt.attributes(8)}
    return Case("", "SwiGLU", {"x": x}, tensors, attributes, [expected], ROUNDED_TOLERANCE)


def gated_short_conv(batch: int, sequence: int, padding: int) -> Case:
    mask = np.ones((batch, sequence), np.float32)
    mask[0, :padding] = 0
    feeds = {"BCx": activations(4, batch, sequence, 3 * 70), "mask": mask, "past_conv": activations(5, batch, 70, 3)}
    tensors = {"BCx": feeds["BCx"], "weight": activations(6, 3, 70), "mask": mask, "past_conv": feeds["past_conv"]}
    function = gated_short_conv_function(3, bias=False, ops_profile=OpsProfile.STANDARD)
    y, present = function_result(function, feeds, tensors, {})
    return Case("", "GatedShortConv", feeds, tensors, {}, [y * mask[..., None], present])


def split_qkv_norm() -> Case:
    qkv = activations(7, 2, 5, 6 * 64)
    tensors = {"qkv": qkv, "q_weight": activations(8, 64), "k_weight": activations(9, 64)}
    attributes = {"num_heads": 2, "kv_num_heads": 2, "epsilon": 1e-5}
    expected = function_result(
        split_qkv_norm_function(ops_profile=OpsProfile.STANDARD), {"qkv": qkv}, tensors, attributes
    )
    return Case("", "SplitQKVNorm", {"qkv": qkv}, tensors, attributes, list(expected))


def gather_dequantize(fmt: Format) -> Case:
    table, ids = Weight(fmt, 40, 200), np.array([[3, 39, 0], [-1, 7, 7]], np.int64)
    tensors = {"table": table.data, "scales": table.scales, "zero_points": table.zero_points, "ids": ids}
    attributes = {"K": 200, "bits": fmt.bits, "block_size": fmt.block_size}
    return Case("", "GatherDequantize", {"ids": ids}, tensors, attributes, [table.values[ids]])


def group_query_attention(call: Call) -> Case:
    feeds = call.feeds()
    return Case("", "GroupQueryAttention", feeds, feeds, call.all_attributes(), call.body(feeds))


def wrong_width() -> Case:
    case = qlinear(Format(4), 2, 8)
    case.feeds["x"] = case.feeds["x"][:, :-1]
    case.expected, case.error = [], "ai.liquid::QLinear: input x: expected a last axis of 200"
    return case


def cases() -> Iterator[tuple[str, Case]]:
    for tokens in TOKENS:
        for fmt in FORMATS:
            text = f"int{fmt.bits}, block {fmt.block_size}, {tokens} tokens"
            yield f"QLinear, {text}", qlinear(fmt, tokens, 8)
            yield f"SwiGLU, {text}", swiglu(fmt, tokens)
            yield f"SparseMoE, {text}", sparse_moe(fmt, tokens, 8)
        yield f"QLinear, int4, float activations, {tokens} tokens", qlinear(Format(4), tokens, 0)
        for dtype in (np.float32, np.float16):
            yield f"SparseMoE, {np.dtype(dtype)}, {tokens} tokens", sparse_moe(np.dtype(dtype), tokens)
    yield "GatedShortConv, one token", gated_short_conv(2, 1, 0)
    yield "GatedShortConv, padded prompt", gated_short_conv(2, 9, 4)
    yield "SplitQKVNorm", split_qkv_norm()
    yield "GatherDequantize, int4", gather_dequantize(Format(4, 32, True))
    yield "GatherDequantize, int8", gather_dequantize(Format(8))
    for call in (Call((700, 90), 1), Call((530,), 6, 6, 2, 32, room=3), Call((0,), 90, 5, 1, 128)):
        yield f"GroupQueryAttention, {call.new} tokens", group_query_attention(call)
    yield "an input of the wrong width", wrong_width()


def framed(data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(raw)) + raw


def framed_tensors(tensors: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    parts = [struct.pack("<I", len(tensors))]
    for name, value in tensors.items():
        element_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        header = struct.pack(f"<iI{value.ndim}q", element_type, value.ndim, *value.shape)
        parts += [framed(name), header, framed(np.ascontiguousarray(value).tobytes())]
    return b"".join(parts)


def named(values: list[Array]) -> dict[str, Array]:
    return {f"y{i}": np.asarray(value, np.float32) for i, value in enumerate(values)}


def main() -> None:
    exact = ops_library_path() is not None
    written = []
    for name, case in cases():
        exact_values = native_session(case.model).run(None, case.feeds) if exact and case.expected else []
        written.append(
            framed(name)
            + framed(case.model.SerializeToString())
            + framed(case.error)
            + struct.pack("<fI", case.tolerance, bool(exact_values))
            + framed_tensors(case.feeds)
            + framed_tensors(named(case.expected))
            + framed_tensors(named(exact_values))
        )
    Path(sys.argv[1]).write_bytes(struct.pack("<I", len(written)) + b"".join(written))
    print(f"{len(written)} cases, {'with' if exact else 'WITHOUT'} the exact results of this machine's native library")


if __name__ == "__main__":
    main()
