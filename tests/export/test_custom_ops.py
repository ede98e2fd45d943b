"""GatedShortConv and SparseMoE compute their documented formula, whichever body and whichever runtime runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lfm_onnx.export.ops import (
    DOMAIN,
    DOMAIN_VERSION,
    OpsProfile,
    gated_short_conv_function,
    sparse_moe_function,
)
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[np.float32]
Run = Callable[..., list[Array]]

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

# A body and what runs it. onnx's own evaluator knows no contrib ops, so it runs the standard body alone.
RUNNERS = ["standard-reference", "standard-ort", "custom-ort"]
runners = pytest.mark.parametrize("runner", RUNNERS)
few_examples = settings(max_examples=25, deadline=None)


# --- the formulas, as the functions' docstrings give them -------------------------------------------------------------


def short_conv_formula(
    bcx: Array, weight: Array, mask: Array, past_conv: Array, bias: Array | None
) -> tuple[Array, Array]:
    """y [batch, sequence, hidden], 0 at padding, and present_conv [batch, hidden, L]."""
    batch, sequence, _ = bcx.shape
    taps, hidden = weight.shape
    b, c, x = (bcx[:, :, i * hidden : (i + 1) * hidden] for i in range(3))
    y = np.zeros((batch, sequence, hidden), np.float64)
    present = np.zeros((batch, hidden, taps), np.float64)
    for row in range(batch):
        tokens = np.flatnonzero(mask[row])
        first = tokens[0] if len(tokens) else 0

        def u(t: int, row: int = row, first: int = first) -> npt.NDArray[np.float64]:
            if t < first:  # before the row's first token stands the past
                return past_conv[row, :, taps + t - first].astype(np.float64)
            return b[row, t].astype(np.float64) * x[row, t]

        for t in tokens:
            total = sum(weight[j] * u(t - (taps - 1) + j) for j in range(taps))
            y[row, t] = c[row, t] * (total + (0 if bias is None else bias))
        last = tokens[-1] if len(tokens) else first - 1
        for j in range(taps):
            present[row, :, j] = u(last - (taps - 1) + j)
    return y.astype(np.float32), present.astype(np.float32)


def sparse_moe_formula(
    x: Array,
    router_weight: Array,
    expert_bias: Array,
    gate_up: Array,
    down: Array,
    top_k: int,
    norm: bool,
    scale: float,
) -> Array:
    """y [N, H], one token and one expert at a time in float64."""
    x64 = x.astype(np.float64)
    scores = 1 / (1 + np.exp(-(x64 @ router_weight.T.astype(np.float64))))
    y = np.zeros_like(x64)
    for n, token in enumerate(x64):
        # The selection compares float32 sums, as the model does; equal ones: the lower index first.
        chosen = np.argsort(-(scores[n].astype(np.float32) + expert_bias), kind="stable")[:top_k]
        w = scores[n, chosen]
        if norm:
            w = w / (w.sum() + 1e-6)
        for expert, share in zip(chosen, w, strict=True):
            gate = gate_up[expert, 0::2].astype(np.float64) @ token
            up = gate_up[expert, 1::2].astype(np.float64) @ token
            y[n] += share * (down[expert].astype(np.float64) @ (gate / (1 + np.exp(-gate)) * up))
    return (scale * y).astype(np.float32)


# --- one-node models --------------------------------------------------------------------------------------------------


def one_node_model(
    function: ir.Function,
    inputs: dict[str, tuple[ir.DataType, int]],
    outputs: dict[str, int],
    **attributes: int | float,
) -> onnx.ModelProto:
    """A model of one call of ``function``; inputs by dtype and rank, float32 outputs by rank."""
    values = [
        ir.Value(name=name, type=ir.TensorType(dtype), shape=any_shape(name, rank))
        for name, (dtype, rank) in inputs.items()
    ]
    node = ir.node(function.name, values, attributes, domain=DOMAIN, num_outputs=len(outputs))
    for value, (name, rank) in zip(node.outputs, outputs.items(), strict=True):
        value.name, value.type, value.shape = name, ir.TensorType(FLOAT), any_shape(name, rank)
    imports = {**function.opset_imports, DOMAIN: DOMAIN_VERSION}
    graph = ir.Graph(values, list(node.outputs), nodes=[node], name="one_node", opset_imports=imports)
    return ir.to_proto(ir.Model(graph, ir_version=10, functions=[function]))


def any_shape(name: str, rank: int) -> ir.Shape:
    return ir.Shape([f"{name}_{axis}" for axis in range(rank)])


@cache
def conv_model(ops_profile: OpsProfile, taps: int, bias: bool) -> onnx.ModelProto:
    inputs = {"BCx": (FLOAT, 3), "weight": (FLOAT, 2), "mask": (FLOAT, 2), "past_conv": (FLOAT, 3)}
    if bias:
        inputs["bias"] = (FLOAT, 1)
    function = gated_short_conv_function(taps, bias=bias, ops_profile=ops_profile)
    return one_node_model(function, inputs, {"y": 3, "present_conv": 3})


@cache
def moe_model(
    ops_profile: OpsProfile, top_k: int, norm: bool, scale: float, dtype: ir.DataType = FLOAT
) -> onnx.ModelProto:
    weights = {"router_weight": (FLOAT, 2), "expert_bias": (FLOAT, 1), "gate_up": (dtype, 3), "down": (dtype, 3)}
    function = sparse_moe_function(ops_profile=ops_profile, weight_dtype=dtype)
    attributes = {"top_k": top_k, "norm_topk_prob": int(norm), "routed_scaling_factor": float(scale)}
    attributes |= {"bits": 16 if dtype == FLOAT16 else 32, "block_size": 0, "activation_bits": 0}
    return one_node_model(function, {"x": (FLOAT, 2), **weights}, {"y": 2}, **attributes)


def with_initializers(model: onnx.ModelProto, values: Mapping[str, npt.NDArray[np.generic]]) -> onnx.ModelProto:
    """A copy of the model whose inputs but the first have these values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input[1:]:
        copy.graph.initializer.append(onnx.numpy_helper.from_array(values[value.name], value.name))
    del copy.graph.input[1:]
    return copy


def runner_of(runner: str, make: Callable[..., onnx.ModelProto], *arguments: object) -> Run:
    """run(**inputs) -> outputs, of the model that ``make`` gives for this runner's profile."""
    ops_profile, _, engine = runner.partition("-")
    return _compiled(engine, make, OpsProfile(ops_profile), arguments)


@cache
def _compiled(
    engine: str, make: Callable[..., onnx.ModelProto], ops_profile: OpsProfile, arguments: tuple[object, ...]
) -> Run:
    model = make(ops_profile, *arguments)
    if engine == "reference":
        evaluator = ReferenceEvaluator(model)
        return lambda **inputs: evaluator.run(None, inputs)
    session = ort_session(model)
    return lambda **inputs: session.run(None, inputs)


def ort_session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_close(found: Array, expected: Array, tolerance: float = 1e-5) -> None:
    assert found.dtype == np.float32 and found.shape == expected.shape
    limit = tolerance * max(1.0, float(np.abs(expected).max(initial=0)))
    assert np.abs(found - expected).max(initial=0) <= limit


# --- GatedShortConv ---------------------------------------------------------------------------------------------------


@st.composite
def conv_cases(draw: st.DrawFn) -> dict[str, Array]:
    """Inputs of GatedShortConv: each row's tokens are contiguous, padded on either side, on both, or nothing but."""
    batch, sequence = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    hidden, taps = draw(st.integers(1, 7)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = np.zeros((batch, sequence), np.float32)
    for row in mask:
        first = draw(st.integers(0, sequence))
        row[first : first + draw(st.integers(0, sequence))] = 1
    case = {
        "BCx": rng.standard_normal((batch, sequence, 3 * hidden), np.float32),
        "weight": rng.standard_normal((taps, hidden), np.float32),
        "mask": mask,
        "past_conv": rng.standard_normal((batch, hidden, taps), np.float32) * draw(st.sampled_from([0, 1])),
    }
    if draw(st.booleans()):
        case["bias"] = rng.standard_normal(hidden, np.float32)
    return case


def conv_runner(runner: str, case: dict[str, Array]) -> Run:
    return runner_of(runner, conv_model, case["weight"].shape[0], "bias" in case)


@runners
@few_examples
@given(case=conv_cases())
def test_short_conv_is_its_formula_under_any_padding(runner: str, case: dict[str, Array]) -> None:
    y, present = conv_runner(runner, case)(**case)

    expected_y, expected_present = short_conv_formula(
        case["BCx"], case["weight"], case["mask"], case["past_conv"], case.get("bias")
    )
    assert np.isfinite(y).all()
    assert_close(np.where(case["mask"][:, :, None] == 1, y, 0).astype(np.float32), expected_y)
    assert_close(present, expected_present)


@runners
@few_examples
@given(case=conv_cases(), cut=st.integers(1, 8))
def test_short_conv_in_two_calls_is_one_call(runner: str, case: dict[str, Array], cut: int) -> None:
    run = conv_runner(runner, case)
    case["mask"] = np.ones_like(case["mask"])
    cut = min(cut, case["mask"].shape[1])
    whole_y, whole_present = run(**case)

    first = {**case, "BCx": case["BCx"][:, :cut], "mask": case["mask"][:, :cut]}
    first_y, state = run(**first)
    if cut == case["mask"].shape[1]:
        np.testing.assert_array_equal(state, whole_present)
        return
    second = {**case, "BCx": case["BCx"][:, cut:], "mask": case["mask"][:, cut:], "past_conv": state}
    second_y, state = run(**second)

    np.testing.assert_array_equal(np.concatenate([first_y, second_y], axis=1), whole_y)
    np.testing.assert_array_equal(state, whole_present)


@runners
@few_examples
@given(case=conv_cases(), side=st.sampled_from(["left", "right"]))
def test_padding_on_either_side_gives_what_the_row_alone_gives(runner: str, case: dict[str, Array], side: str) -> None:
    run = conv_runner(runner, case)
    batch, sequence = case["mask"].shape
    lengths = np.random.default_rng(0).integers(0, sequence + 1, batch)
    columns = [slice(0, n) if side == "right" else slice(sequence - n, sequence) for n in lengths]
    case["mask"] = np.zeros_like(case["mask"])
    for row, kept in enumerate(columns):
        case["mask"][row, kept] = 1

    y, present = run(**case)

    for row, kept in enumerate(columns):
        if lengths[row] == 0:  # no token: the state passes through
            np.testing.assert_array_equal(present[row], case["past_conv"][row])
            continue
        alone_y, alone_present = run(
            **{
                **case,
                "BCx": case["BCx"][row : row + 1, kept],
                "mask": case["mask"][row : row + 1, kept],
                "past_conv": case["past_conv"][row : row + 1],
            }
        )
        np.testing.assert_allclose(y[row, kept], alone_y[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(present[row], alone_present[0])


@runners
def test_short_conv_carries_its_state_over_a_single_token(runner: str) -> None:
    """L = 3, weight picks the oldest tap: each step gives the product B*x of two tokens ago."""
    run = runner_of(runner, conv_model, 3, False)
    weight = np.array([[1.0], [0.0], [0.0]], np.float32)
    state = np.zeros((1, 1, 3), np.float32)
    seen = []
    for value in (5.0, 7.0, 11.0, 13.0):
        bcx = np.array([[[2.0, 1.0, value]]], np.float32)
        y, state = run(BCx=bcx, weight=weight, mask=np.ones((1, 1), np.float32), past_conv=state)
        seen.append(float(y[0, 0, 0]))
    assert seen == [0.0, 0.0, 10.0, 14.0]
    assert state[0, 0].tolist() == [14.0, 22.0, 26.0]


# --- SparseMoE --------------------------------------------------------------------------------------------------------


def moe_inputs(
    tokens: int, hidden: int, experts: int, width: int, seed: int = 0, bias_scale: float = 0.3
) -> dict[str, Array]:
    """Random inputs; router logits lie on a grid of 1/16, exact in float32, so that no rounding decides a choice."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.integers(-8, 9, (tokens, hidden)).astype(np.float32) / 8,
        "router_weight": rng.integers(-2, 3, (experts, hidden)).astype(np.float32) / 2,
        "expert_bias": rng.permutation(experts).astype(np.float32) / np.float32(experts) * np.float32(bias_scale),
        "gate_up": rng.standard_normal((experts, 2 * width, hidden), np.float32) / np.float32(hidden**0.5),
        "down": rng.standard_normal((experts, hidden, width), np.float32) / np.float32(width**0.5),
    }


def check_moe(runner: str, case: dict[str, Array], top_k: int, norm: bool, scale: float) -> Array:
    (y,) = runner_of(runner, moe_model, top_k, norm, scale)(**case)
    assert_close(y, sparse_moe_formula(**case, top_k=top_k, norm=norm, scale=scale))
    return y


@runners
@few_examples
@given(
    tokens=st.integers(1, 7),
    hidden=st.integers(1, 9),
    experts=st.integers(1, 9),
    width=st.integers(1, 6),
    top_k=st.integers(1, 9),
    norm=st.booleans(),
    scale=st.sampled_from([1.0, 2.5, 0.125]),
    bias_scale=st.sampled_from([0.0, 0.3, 4.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(tokens=3, hidden=64, experts=8, width=32, top_k=2, norm=True, scale=1.0, bias_scale=0.3, seed=0)
@example(tokens=40, hidden=32, experts=32, width=16, top_k=4, norm=True, scale=1.0, bias_scale=0.3, seed=1)
def test_sparse_moe_is_its_formula(
    runner: str,
    tokens: int,
    hidden: int,
    experts: int,
    width: int,
    top_k: int,
    norm: bool,
    scale: float,
    bias_scale: float,
    seed: int,
) -> None:
    case = moe_inputs(tokens, hidden, experts, width, seed, bias_scale)
    check_moe(runner, case, min(top_k, experts), norm, scale)


@runners
@pytest.mark.parametrize("norm", [True, False])
def test_every_expert_can_be_chosen_at_once(runner: str, norm: bool) -> None:
    check_moe(runner, moe_inputs(5, 16, 8, 8), 8, norm, 1.0)


@runners
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_of_equal_experts_the_first_are_chosen(runner: str, top_k: int) -> None:
    """A router of zeros scores all experts alike; the chosen ones are told apart by what they compute."""
    case = moe_inputs(6, 16, 8, 8)
    case["router_weight"][:] = 0
    case["expert_bias"][:] = 0
    y = check_moe(runner, case, top_k, True, 1.0)
    only_first = {**case, "gate_up": case["gate_up"][:top_k], "down": case["down"][:top_k]}
    only_first |= {"router_weight": case["router_weight"][:top_k], "expert_bias": case["expert_bias"][:top_k]}
    assert_close(y, sparse_moe_formula(**only_first, top_k=top_k, norm=True, scale=1.0))


@runners
def test_a_tie_at_the_edge_of_the_top_k_takes_the_lower_index(runner: str) -> None:
    case = moe_inputs(4, 16, 8, 8)
    case["expert_bias"][:] = 0
    case["router_weight"][5] = case["router_weight"][2] = case["router_weight"][7]
    for top_k in range(1, 8):
        check_moe(runner, case, top_k, True, 1.0)


@runners
def test_experts_that_are_all_the_same_give_that_expert(runner: str) -> None:
    case = moe_inputs(6, 16, 8, 8)
    case["gate_up"][:] = case["gate_up"][3]
    case["down"][:] = case["down"][3]
    one = {name: value[:1] if value.shape[0] == 8 else value for name, value in case.items()}
    one["router_weight"], one["expert_bias"] = one["router_weight"] + 1, one["expert_bias"]
    two = check_moe(runner, case, 2, True, 1.0)
    alone = sparse_moe_formula(**one, top_k=1, norm=True, scale=1.0)
    assert_close(two, alone, 1e-4)  # but for the 1e-6 that is added to the sum


@runners
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("shift", [-8.0, -15.0, -30.0, -60.0, -150.0])
def test_very_negative_router_logits_stay_finite_and_right(runner: str, norm: bool, shift: float) -> None:
    """sigmoid of -150 is 0 in float32: the weights vanish beside the 1e-6, they do not become 0/0."""
    case = moe_inputs(6, 16, 8, 8)
    case["x"][:, 0] = 1
    case["router_weight"] *= 0.25
    case["router_weight"][:, 0] = shift + np.arange(8) / 4
    y = check_moe(runner, case, 2, norm, 1.0)
    assert np.isfinite(y).all()


@runners
def test_a_large_bias_chooses_but_does_not_weigh(runner: str) -> None:
    case = moe_inputs(6, 16, 8, 8)
    case["expert_bias"][:] = 0
    case["expert_bias"][[2, 6]] = 100
    y = check_moe(runner, case, 2, True, 1.0)
    chosen = {name: value[[2, 6]] if value.shape[0] == 8 else value for name, value in case.items()}
    assert_close(y, sparse_moe_formula(**chosen, top_k=2, norm=True, scale=1.0))


@runners
def test_a_token_does_not_read_the_experts_it_did_not_choose(runner: str) -> None:
    case = moe_inputs(1, 16, 8, 8)
    case["expert_bias"][:] = 0
    case["expert_bias"][[1, 4]] = 50
    expected = check_moe(runner, case, 2, True, 1.0)
    others = [0, 2, 3, 5, 6, 7]
    case["gate_up"][others] = np.nan
    case["down"][others] = np.nan
    (poisoned,) = runner_of(runner, moe_model, 2, True, 1.0)(**case)
    np.testing.assert_array_equal(poisoned, expected)


@runners
def test_the_scaling_factor_multiplies_the_result(runner: str) -> None:
    case = moe_inputs(6, 16, 8, 8)
    assert_close(check_moe(runner, case, 3, True, 2.5), 2.5 * check_moe(runner, case, 3, True, 1.0))


@pytest.mark.parametrize("runner", ["standard-ort", "custom-ort"])
@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16])
def test_weights_may_be_initializers_of_either_precision(runner: str, dtype: ir.DataType) -> None:
    """As in an exported file, where a runtime may lay constant weights out anew when it loads them."""
    case = moe_inputs(9, 64, 8, 32)
    stored: dict[str, npt.NDArray[np.generic]] = {**case}
    if dtype == FLOAT16:
        stored |= {name: case[name].astype(np.float16) for name in ("gate_up", "down")}
    model = with_initializers(moe_model(OpsProfile(runner.partition("-")[0]), 2, True, 1.0, dtype), stored)

    (y,) = ort_session(model).run(None, {"x": case["x"]})

    assert_close(y, sparse_moe_formula(**case, top_k=2, norm=True, scale=1.0), 1e-5 if dtype == FLOAT else 3e-3)


_PEAK_OF_A_PREFILL = """
import sys
import numpy as np
import onnxruntime as ort
from lfm_onnx.hardware.memory import peak_rss_bytes

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
hidden = int(sys.argv[2])
peaks = []
for tokens in (1, 512):
    session.run(None, {"x": np.random.default_rng(0).standard_normal((tokens, hidden), np.float32)})
    peaks.append(peak_rss_bytes())
print(peaks[1] - peaks[0])
"""


@pytest.mark.parametrize("ops_profile", OpsProfile)
def test_a_prefill_copies_no_expert_per_token(ops_profile: OpsProfile, tmp_path: Path) -> None:
    """512 tokens with two experts each: a copy per token would take 800 MB."""
    hidden, width, experts = 256, 256, 8
    case = moe_inputs(1, hidden, experts, width)
    copies = 512 * 2 * 3 * hidden * width * 4
    path = tmp_path / "moe.onnx"
    path.write_bytes(with_initializers(moe_model(ops_profile, 2, True, 1.0), case).SerializeToString())
    command = [sys.executable, "-c", _PEAK_OF_A_PREFILL, str(path), str(hidden)]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert growth < copies / 20


# --- the models as files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ops_profile", OpsProfile)
def test_the_checker_accepts_both_functions(ops_profile: OpsProfile) -> None:
    for model in (
        conv_model(ops_profile, 3, False),
        conv_model(ops_profile, 4, True),
        moe_model(ops_profile, 2, True, 1.0),
        moe_model(ops_profile, 2, False, 2.0, FLOAT16),
    ):
        onnx.checker.check_model(model, full_check=True)


def test_standard_bodies_use_nothing_but_ai_onnx() -> None:
    for model in (conv_model(OpsProfile.STANDARD, 3, True), moe_model(OpsProfile.STANDARD, 2, True, 1.0)):
        (function,) = model.functions
        assert {opset.domain for opset in function.opset_import} == {""}
        assert {node.domain for node in function.node} == {""}


def test_a_call_without_an_attribute_is_refused() -> None:
    """The functions give no defaults, so a node that leaves an attribute out cannot mean something by accident."""
    model = onnx.ModelProto()
    model.CopyFrom(moe_model(OpsProfile.STANDARD, 2, True, 1.0))
    del model.graph.node[0].attribute[:]
    with pytest.raises(Exception, match=r"top_k|attribute"):
        ort_session(model).run(None, moe_inputs(1, 4, 4, 2))
