"""The native ops refuse what does not fit with a message that names op and input, and never crash."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from native_models import (
    Format,
    Weight,
    native_session,
    needs_library,
    one_node_model,
    run_native,
)

Node = tuple[str, dict[str, Any], dict[str, Any], int]
"""Op, tensors, attributes, number of outputs."""


def qlinear() -> Node:
    weight = Weight(Format(4, zero_points=True), 20, 70)
    tensors = {
        "x": np.zeros((2, 70), np.float32),
        "weight": weight.data,
        "scales": weight.scales,
        "zero_points": weight.zero_points,
        "bias": np.zeros(20, np.float32),
    }
    return "QLinear", tensors, {"K": 70, "N": 20, **Format(4).attributes(8)}, 1


def sparse_moe() -> Node:
    gate_up, down = Weight(Format(4), 4, 64, 64), Weight(Format(4), 4, 64, 32)
    tensors = {
        "x": np.zeros((2, 64), np.float32),
        "router_weight": np.zeros((4, 64), np.float32),
        "expert_bias": np.zeros(4, np.float32),
        "gate_up": gate_up.data,
        "down": down.data,
        "gate_up_scales": gate_up.scales,
        "down_scales": down.scales,
    }
    attributes = {"top_k": 2, "norm_topk_prob": 1, "routed_scaling_factor": 1.0, **Format(4).attributes(8)}
    return "SparseMoE", tensors, attributes, 1


def float_moe() -> Node:
    op, tensors, attributes, outputs = sparse_moe()
    tensors = {
        **{name: tensors[name] for name in ("x", "router_weight", "expert_bias")},
        "gate_up": np.zeros((4, 64, 64), np.float32),
        "down": np.zeros((4, 64, 32), np.float32),
    }
    return op, tensors, {name: attributes[name] for name in list(attributes)[:3]}, outputs


def swiglu() -> Node:
    gate_up, down = Weight(Format(8), 2 * 40, 64), Weight(Format(8), 64, 40)
    tensors = {
        "x": np.zeros((2, 64), np.float32),
        "gate_up": gate_up.data,
        "down": down.data,
        "gate_up_scales": gate_up.scales,
        "down_scales": down.scales,
    }
    return "SwiGLU", tensors, {"K": 64, "F": 40, **Format(8).attributes(8)}, 1


def short_conv() -> Node:
    tensors = {
        "BCx": np.zeros((2, 3, 30), np.float32),
        "weight": np.zeros((3, 10), np.float32),
        "mask": np.ones((2, 3), np.float32),
        "past_conv": np.zeros((2, 10, 3), np.float32),
        "bias": np.zeros(10, np.float32),
    }
    return "GatedShortConv", tensors, {}, 2


def split() -> Node:
    tensors = {
        "qkv": np.zeros((2, 64), np.float32),
        "q_weight": np.ones(8, np.float32),
        "k_weight": np.ones(8, np.float32),
    }
    return "SplitQKVNorm", tensors, {"num_heads": 4, "kv_num_heads": 2, "epsilon": 1e-5}, 3


def gather() -> Node:
    table = Weight(Format(8, zero_points=True), 9, 70)
    tensors = {
        "table": table.data,
        "scales": table.scales,
        "zero_points": table.zero_points,
        "ids": np.zeros(3, np.int64),
    }
    return "GatherDequantize", tensors, {"K": 70, "bits": 8, "block_size": 32}, 1


NODES = [qlinear, sparse_moe, float_moe, swiglu, short_conv, split, gather]


def run(node: Node, *, constant: bool) -> list[Any]:
    """The node with its weights as constants of the model, or with everything as an input of the graph."""
    op, tensors, attributes, outputs = node
    dynamic = {"x", "BCx", "mask", "past_conv", "qkv", "ids"}
    feeds = {name: value for name, value in tensors.items() if value is not None and (not constant or name in dynamic)}
    return run_native(op, feeds, tensors, attributes, outputs=outputs)


def cut(name: str, axis: int = -1) -> Callable[[Node], None]:
    """The tensor without its last element along an axis."""

    def change(node: Node) -> None:
        array = node[1][name]
        node[1][name] = array[
            tuple(slice(None, -1) if i == axis % array.ndim else slice(None) for i in range(array.ndim))
        ]

    return change


def put(name: str, value: Any) -> Callable[[Node], None]:
    """Another tensor or attribute in place of the right one; an attribute None is left out."""

    def change(node: Node) -> None:
        if name in node[1]:
            node[1][name] = value
        elif value is None:
            del node[2][name]
        else:
            node[2][name] = value

    return change


WRONG = [
    (qlinear, cut("x"), "input x: expected a last axis of 70, found shape [2, 69]"),
    (qlinear, put("x", np.array(1, np.float32)), "input x: expected a last axis of 70, found shape []"),
    (qlinear, cut("weight"), "input weight: expected shape [20, 3, 16], found [20, 3, 15]"),
    (qlinear, cut("weight", 0), "input weight: expected 20 rows, found 19"),
    (qlinear, put("weight", np.zeros((20, 70), np.float32)), "input weight: expected uint8, found float32"),
    (qlinear, put("weight", np.zeros(960, np.uint8)), "input weight: expected 2 axes, found shape [960]"),
    (qlinear, cut("scales"), "input scales: expected shape [20, 3], found [20, 2]"),
    (qlinear, put("scales", None), "input scales: missing"),
    (qlinear, put("scales", np.zeros((20, 3), np.int64)), "input scales: expected float32, found int64"),
    (qlinear, cut("zero_points"), "input zero_points: expected shape [20, 2], found [20, 1]"),
    (qlinear, cut("bias"), "input bias: expected shape [20], found [19]"),
    (qlinear, put("K", 128), "input weight: expected shape [20, 4, 16], found [20, 3, 16]"),
    (qlinear, put("K", 2**62), "attribute K: expected 1 to 2147483648"),
    (qlinear, put("K", -1), "attribute K: expected 1 to"),
    (qlinear, put("N", None), "attribute N: missing"),
    (qlinear, put("N", "20"), "attribute N: missing, or not an integer"),
    (qlinear, put("bits", 5), "attribute bits: expected 4, 8, 16 or 32, found 5"),
    (qlinear, put("bits", 8), "input weight: expected shape [20, 3, 32], found [20, 3, 16]"),
    (qlinear, put("bits", 16), "input weight: expected float16, found uint8"),
    (qlinear, put("bits", None), "input weight: expected float32, found uint8"),
    (qlinear, put("block_size", 48), "attribute block_size: expected 32, 64 or 128, found 48"),
    (qlinear, put("block_size", None), "attribute block_size: missing"),
    (qlinear, put("activation_bits", 7), "attribute activation_bits: expected 0 or 8, found 7"),
    (sparse_moe, cut("x"), "input x: expected a last axis of 64"),
    (sparse_moe, cut("router_weight", 0), "input expert_bias: expected shape [3], found [4]"),
    (sparse_moe, cut("router_weight"), "input down: expected 63 rows, found 64"),
    (sparse_moe, put("top_k", 5), "input router_weight: expected [experts, hidden] with at least top_k = 5 experts"),
    (sparse_moe, put("top_k", 0), "attribute top_k: expected 1 to 256, found 0"),
    (sparse_moe, put("top_k", None), "attribute top_k: missing"),
    (sparse_moe, put("norm_topk_prob", 2), "attribute norm_topk_prob: expected 0 to 1, found 2"),
    (sparse_moe, put("routed_scaling_factor", None), "attribute routed_scaling_factor: missing"),
    (sparse_moe, cut("gate_up", 0), "input gate_up: expected 4 matrices, found 3"),
    (sparse_moe, cut("gate_up", 1), "input gate_up_scales"),
    (sparse_moe, cut("down"), "input down: expected shape [4, 64, 1, 16], found [4, 64, 15]"),
    (sparse_moe, cut("down", 1), "input down: expected 64 rows, found 63"),
    (sparse_moe, cut("down_scales", 1), "input down_scales: expected shape [4, 64, 1], found [4, 63, 1]"),
    (sparse_moe, put("gate_up_scales", None), "input gate_up_scales: missing"),
    (float_moe, cut("gate_up"), "input gate_up: expected 64 columns, found 63"),
    (float_moe, cut("gate_up", 1), "input gate_up: expected an even number of rows"),
    (float_moe, cut("down"), "input down: expected 32 columns, found 31"),
    (float_moe, put("gate_up", np.zeros((4, 64, 64), np.int64)), "input gate_up: expected float32, found int64"),
    (swiglu, put("F", 41), "input gate_up: expected 82 rows, found 80"),
    (swiglu, cut("down", 0), "input down: expected 64 rows, found 63"),
    (swiglu, cut("x"), "input x: expected a last axis of 64"),
    (swiglu, put("K", None), "attribute K: missing"),
    (short_conv, cut("BCx"), "input BCx: expected [batch, sequence, 30], found shape [2, 3, 29]"),
    (short_conv, cut("mask"), "input mask: expected shape [2, 3], found [2, 2]"),
    (short_conv, cut("past_conv"), "input past_conv: expected shape [2, 10, 3], found [2, 10, 2]"),
    (short_conv, cut("past_conv", 0), "input past_conv: expected shape [2, 10, 3], found [1, 10, 3]"),
    (short_conv, cut("bias"), "input bias: expected shape [10], found [9]"),
    (short_conv, put("weight", np.zeros((0, 10), np.float32)), "input weight: expected [taps, hidden]"),
    (split, cut("qkv"), "input qkv: expected a last axis of (num_heads + 2 * kv_num_heads) * head_dim = 64"),
    (split, cut("k_weight"), "input k_weight: expected shape [8], found [7]"),
    (split, put("num_heads", 0), "attribute num_heads: expected 1 to 65536, found 0"),
    (split, put("epsilon", None), "attribute epsilon: missing"),
    (gather, put("ids", np.array([0, 9])), "input ids: expected -9 to 8, found 9"),
    (gather, put("ids", np.array([-10])), "input ids: expected -9 to 8, found -10"),
    (gather, cut("scales", 0), "input scales: expected shape [9, 3], found [8, 3]"),
    (gather, put("K", 97), "input table: expected shape [9, 4, 32], found [9, 3, 32]"),
]


@needs_library
@pytest.mark.parametrize("constant", [True, False], ids=["constants", "inputs"])
@pytest.mark.parametrize(
    ("make", "change", "message"), WRONG, ids=[f"{make.__name__}-{message}" for make, _, message in WRONG]
)
def test_what_does_not_fit_is_refused_by_op_and_input(
    make: Callable[[], Node], change: Callable[[Node], None], message: str, constant: bool
) -> None:
    node = make()
    change(node)
    with pytest.raises(Exception) as caught:
        run(node, constant=constant)
    assert f"ai.liquid::{node[0]}: {message}" in str(caught.value)


@needs_library
@pytest.mark.parametrize("constant", [True, False], ids=["constants", "inputs"])
@pytest.mark.parametrize("make", NODES)
def test_the_nodes_that_the_refusals_start_from_run(make: Callable[[], Node], constant: bool) -> None:
    for output in run(make(), constant=constant):
        assert np.isfinite(output).all()


@needs_library
@pytest.mark.parametrize("make", NODES)
def test_no_tokens_give_an_empty_result(make: Callable[[], Node]) -> None:
    node = make()
    for name in ("x", "qkv", "ids", "BCx", "mask", "past_conv"):
        if name in node[1]:
            node[1][name] = node[1][name][:0]
    for output in run(node, constant=True):
        assert output.shape[0] == 0


@needs_library
def test_hostile_codes_and_scales_stay_inside_the_tensors() -> None:
    rng = np.random.default_rng(0)
    for make in (qlinear, sparse_moe, swiglu, gather):
        op, tensors, attributes, outputs = make()
        for name, value in tensors.items():
            if name != "ids":
                tensors[name] = rng.integers(0, 256, value.nbytes, np.uint8).view(value.dtype).reshape(value.shape)
        run((op, tensors, attributes, outputs), constant=True)


@needs_library
def test_concurrent_runs_of_a_session_give_what_one_run_gives() -> None:
    op, tensors, attributes, _ = sparse_moe()
    tensors["router_weight"] = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    session = native_session(one_node_model(op, {"x": tensors["x"]}, tensors, attributes), threads=2)
    inputs = [np.random.default_rng(i).standard_normal((1 + 20 * (i % 3), 64)).astype(np.float32) for i in range(6)]
    expected = [session.run(None, {"x": x})[0] for x in inputs]
    found: list[list[Any]] = [[] for _ in inputs]

    def caller(index: int) -> None:
        for _ in range(20):
            found[index].append(session.run(None, {"x": inputs[index]})[0])

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(len(inputs))]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    for results, wanted in zip(found, expected, strict=True):
        assert len(results) == 20
        for result in results:
            np.testing.assert_array_equal(result, wanted)
