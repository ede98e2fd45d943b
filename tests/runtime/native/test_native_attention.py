"""The native GroupQueryAttention is its function, whose body ONNX Runtime runs here without the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from artifact_factory import ArtifactFactory
from exported_model import ExportedModel, padded
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.runtime.native_library import ops_library_path
from native_attention import Call, Feeds
from native_models import (
    FLOAT_TOLERANCE,
    ISAS,
    Array,
    assert_close,
    native_session,
    needs_library,
    one_node_model,
)

pytestmark = needs_library
TOLERANCE = 4 * FLOAT_TOLERANCE
"""Sums over some hundred columns in another order, and another exp."""


def assert_same(found: Sequence[Array], expected: Sequence[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, TOLERANCE)


# --- the kernel and the function --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    pasts=st.lists(st.integers(0, 150), min_size=1, max_size=3),
    new=st.one_of(st.just(1), st.integers(1, 80)),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    size=st.sampled_from([16, 32, 48, 64, 128, 256]),
    room=st.one_of(st.none(), st.integers(0, 20)),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 99),
)
def test_attention_is_its_function(
    pasts: list[int], new: int, kv_heads: int, group: int, size: int, room: int | None, isa: str, seed: int
) -> None:
    call = Call(tuple(pasts), new, kv_heads * group, kv_heads, size, room)
    feeds = call.feeds(seed)
    assert_same(call.run(feeds, isa=isa), call.body(feeds))


@pytest.mark.parametrize("new", [1, 3, 5, 40])
@pytest.mark.parametrize("past", [511, 512, 1500])
def test_long_caches_are_attended_to_in_chunks(past: int, new: int) -> None:
    call = Call((past,), new)
    feeds = call.feeds()
    assert_same(call.run(feeds), call.body(feeds))


@pytest.mark.parametrize("attributes", [{"do_rotary": 0}, {"scale": 0.0}, {"scale": 0.7}], ids=str)
def test_attributes_mean_what_they_mean_to_the_function(attributes: dict[str, int | float]) -> None:
    call = Call((5,), 7, attributes=attributes)
    feeds = call.feeds()
    assert_same(call.run(feeds), call.body(feeds))


def test_a_prompt_with_padding_behind_it_may_count_its_tokens_alone() -> None:
    call = Call((0, 0), 6)
    feeds = call.feeds()
    feeds["seqlens_k"] = np.array([3, 5], np.int32)
    found, expected = call.run(feeds), call.body(feeds)
    assert_close(found[0][0, :4], expected[0][0, :4], TOLERANCE)
    assert_close(found[0][1], expected[0][1], TOLERANCE)
    assert_same(found[1:], expected[1:])


def test_no_rows_and_no_tokens_give_empty_results() -> None:
    call = Call((4,), 3)
    feeds = call.feeds()
    for name in ("query", "key", "value", "past_key", "past_value", "seqlens_k"):
        feeds[name] = feeds[name][:0]
    assert [output.shape for output in call.run(feeds)] == [(0, 3, 512), (0, 2, 7, 64), (0, 2, 7, 64)]
    none = Call((4,), 0)
    feeds = none.feeds()
    output, keys, values = none.run(feeds)
    assert output.shape == (1, 0, 512)
    np.testing.assert_array_equal(keys, feeds["past_key"])
    np.testing.assert_array_equal(values, feeds["past_value"])


# --- one buffer for past and present ----------------------------------------------------------------------------------


def run_in_place(call: Call, feeds: Feeds) -> list[Array]:
    """Output, keys and values where the past's buffers are bound as the present's."""
    feeds = {name: value.copy() for name, value in feeds.items()}
    model = one_node_model("GroupQueryAttention", feeds, feeds, call.all_attributes(), 3)
    session = native_session(model)
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    binding.bind_output("y0", "cpu")
    for output, name in (("y1", "past_key"), ("y2", "past_value")):
        value = feeds[name]
        binding.bind_output(output, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    session.run_with_iobinding(binding)
    return [binding.get_outputs()[0].numpy(), feeds["past_key"], feeds["past_value"]]


@pytest.mark.parametrize("new", [1, 5, 70])
def test_a_shared_buffer_gets_the_new_columns_alone(new: int) -> None:
    call = Call((90, 20), new, room=9)
    feeds = call.feeds()
    apart, together = call.run(feeds), run_in_place(call, feeds)
    np.testing.assert_array_equal(together[0], apart[0])
    for found, copied, past in zip(together[1:], apart[1:], (feeds["past_key"], feeds["past_value"]), strict=True):
        for row, before in enumerate(call.pasts):
            np.testing.assert_array_equal(found[row, :, : before + new], copied[row, :, : before + new])
            np.testing.assert_array_equal(found[row, :, before + new :], past[row, :, before + new :])
            assert not copied[row, :, before + new :].any()


def test_what_stands_behind_the_tokens_is_never_read() -> None:
    call = Call((100, 30), 17, room=40)
    feeds = call.feeds()
    clean = call.run(feeds)[0]
    for row, before in enumerate(call.pasts):
        feeds["past_key"][row, :, before:] = np.nan
        feeds["past_value"][row, :, before:] = np.inf
    np.testing.assert_array_equal(run_in_place(call, feeds)[0], clean)


def test_buffers_that_overlap_are_refused() -> None:
    call = Call((6,), 1, room=0)
    feeds = call.feeds()
    size = feeds["past_key"].size
    memory = np.zeros(2 * size, np.float32)
    memory[:size] = feeds["past_key"].ravel()
    model = one_node_model("GroupQueryAttention", feeds, feeds, call.all_attributes(), 3)
    session = native_session(model)
    binding = session.io_binding()
    for name, value in feeds.items():
        address = memory.ctypes.data if name == "past_key" else value.ctypes.data
        binding.bind_input(name, "cpu", 0, value.dtype, value.shape, address)
    binding.bind_output("y0", "cpu")
    binding.bind_output("y1", "cpu", 0, np.float32, feeds["past_key"].shape, memory.ctypes.data + 64)
    binding.bind_output("y2", "cpu")
    with pytest.raises(Exception, match="input past_key: expected the buffer of its present or one apart from it"):
        session.run_with_iobinding(binding)


# --- bits -------------------------------------------------------------------------------------------------------------

SEVERAL_TASKS = [
    Call((1300,), 1, 8, 8, room=0),
    Call((1300, 700), 1, 8, 2),
    Call((900,), 3, 12, 4, 128),
    Call((600,), 90, 8, 2),
    Call((0, 0), 150, 6, 2, 32),
]


@pytest.mark.parametrize("call", SEVERAL_TASKS, ids=repr)
def test_results_do_not_depend_on_the_number_of_threads(call: Call) -> None:
    feeds = call.feeds()
    one = call.run(feeds)
    for threads in (2, 3, 8):
        for found, expected in zip(call.run(feeds, threads=threads), one, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("call", SEVERAL_TASKS, ids=repr)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_every_instruction_set_gives_the_bits_of_the_definition(call: Call, isa: str) -> None:
    feeds = call.feeds()
    for found, expected in zip(call.run(feeds, isa=isa), call.run(feeds, isa="scalar"), strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(
    past=st.integers(0, 600),
    new=st.integers(1, 40),
    group=st.integers(1, 5),
    size=st.sampled_from([16, 48, 64, 256]),
    spoil=st.sampled_from([1.0, np.nan, np.inf, -np.inf, 1e30, -1e-40]),
    seed=st.integers(0, 99),
)
def test_odd_sizes_and_values_give_the_same_bits_on_every_instruction_set(
    past: int, new: int, group: int, size: int, spoil: float, seed: int
) -> None:
    call = Call((past,), new, group, 1, size)
    feeds = call.feeds(seed)
    rng = np.random.default_rng(seed)
    for name in ("query", "key", "value"):
        feeds[name][rng.random(feeds[name].shape) < 0.003] = np.float32(spoil)
    expected = call.run(feeds, isa="scalar")
    for isa in ISAS:
        for found, wanted in zip(call.run(feeds, isa=isa), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=isa)


@pytest.mark.parametrize("steps", [(1,) * 12, (5, 1, 6), (11, 1)], ids=str)
@pytest.mark.parametrize("past", [0, 57, 506])
def test_a_token_gives_the_same_however_the_text_is_cut(past: int, steps: tuple[int, ...]) -> None:
    whole = Call((past,), sum(steps))
    feeds = whole.feeds()
    expected = whole.run(feeds)
    keys, values, outputs, done = feeds["past_key"], feeds["past_value"], [], 0
    for step in steps:
        part = Call((past + done,), step)
        now = slice(done, done + step)
        output, keys, values = part.run(
            {
                **feeds,
                **{name: feeds[name][:, now] for name in ("query", "key", "value")},
                "past_key": keys,
                "past_value": values,
                "seqlens_k": np.array([past + done + step - 1], np.int32),
                "total_sequence_length": np.array(past + done + step, np.int32),
            }
        )
        outputs.append(output)
        done += step
    for found, wanted in zip((np.concatenate(outputs, axis=1), keys, values), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


# --- what is not finite, and what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("key", np.nan), ("value", np.nan), ("value", np.inf)])
def test_what_is_not_finite_reaches_the_tokens_that_see_it_alone(name: str, value: float) -> None:
    call = Call((3,), 70)
    feeds = call.feeds()
    # Head 0, at position 20 of the call.
    feeds[name][0, 20, 5] = value
    for isa in ISAS:
        output = call.run(feeds, isa=isa)[0].reshape(70, 8, 64)
        assert np.isfinite(output[:20]).all() and np.isfinite(output[:, 4:]).all()
        assert not np.isfinite(output[20:, :4]).all(axis=(1, 2)).any()


def test_scores_of_any_size_keep_the_weights_finite() -> None:
    call = Call((300,), 20)
    feeds = call.feeds()
    feeds["query"] *= np.float32(1e4)
    assert_same(call.run(feeds), call.body(feeds))


def shape(name: str, *dims: int) -> Feeds:
    return {name: np.zeros(dims, np.float32)}


def number(name: str, *values: int) -> Feeds:
    return {name: np.array(values if len(values) > 1 else values[0], np.int32)}


HOSTILE: list[tuple[Feeds, dict[str, Any], str]] = [
    (shape("query", 2, 3, 511), {}, "input query: expected [batch, sequence, num_heads * head_dim]"),
    (
        shape("query", 2, 3, 8 * 24),
        {},
        "input query: expected a head_dim that is a multiple of 16, at most 256, found 24",
    ),
    (
        shape("query", 2, 3, 8 * 272),
        {},
        "input query: expected a head_dim that is a multiple of 16, at most 256, found 272",
    ),
    (shape("query", 2, 3, 0), {}, "input query: expected a head_dim"),
    (shape("query", 2, 4, 512), {}, "input key: expected shape [2, 4, 128], found [2, 3, 128]"),
    (shape("key", 2, 3, 64), {}, "input key: expected shape [2, 3, 128], found [2, 3, 64]"),
    (shape("value", 1, 3, 128), {}, "input value: expected shape [2, 3, 128], found [1, 3, 128]"),
    (shape("past_key", 2, 3, 9, 64), {}, "input past_key: expected shape [2, 2, 9, 64], found [2, 3, 9, 64]"),
    (shape("past_key", 2, 2, 9, 32), {}, "input past_key: expected shape [2, 2, 9, 64], found [2, 2, 9, 32]"),
    (shape("past_value", 2, 2, 8, 64), {}, "input past_value: expected shape [2, 2, 9, 64], found [2, 2, 8, 64]"),
    (number("seqlens_k", 9, 12), {}, "input seqlens_k: expected 0 to total_sequence_length - 1 = 11, found 12"),
    (number("seqlens_k", -1, 9), {}, "input seqlens_k: expected 0 to total_sequence_length - 1 = 11, found -1"),
    (number("seqlens_k", 2**31 - 1, 9), {}, "input seqlens_k: expected 0 to"),
    (number("seqlens_k", 9, 9, 9), {}, "input seqlens_k: expected 2 numbers, found shape [3]"),
    (number("total_sequence_length", 13), {}, "input total_sequence_length: expected 3 to 9, or 12, found 13"),
    (number("total_sequence_length", 10), {}, "input total_sequence_length: expected 3 to 9, or 12, found 10"),
    (number("total_sequence_length", 2), {}, "input total_sequence_length: expected 3 to 9, or 12, found 2"),
    (number("total_sequence_length", -(2**31)), {}, "input total_sequence_length: expected 3 to 9, or 12"),
    (number("total_sequence_length", 12, 12), {}, "input total_sequence_length: expected one number"),
    (shape("cos_cache", 15, 31), {}, "input cos_cache: expected [positions, head_dim / 2 = 32], found shape [15, 31]"),
    (shape("sin_cache", 14, 32), {}, "input sin_cache: expected shape [15, 32], found [14, 32]"),
    ({}, {"num_heads": 0}, "attribute num_heads: expected 1 to 65536, found 0"),
    ({}, {"num_heads": 7}, "attribute num_heads: expected a multiple of kv_num_heads = 2, found 7"),
    ({}, {"kv_num_heads": -1}, "attribute kv_num_heads: expected 1 to 65536, found -1"),
    ({}, {"do_rotary": 2}, "attribute do_rotary: expected 0 to 1, found 2"),
    ({}, {"kv_num_heads": 4}, "input key: expected shape [2, 3, 256], found [2, 3, 128]"),
]


@pytest.mark.parametrize(("changed", "attributes", "message"), HOSTILE, ids=[message for _, _, message in HOSTILE])
def test_what_does_not_fit_is_refused_by_op_and_input(
    changed: Feeds, attributes: dict[str, int | float], message: str
) -> None:
    call = Call((9, 5), 3, attributes=attributes)
    with pytest.raises(Exception) as caught:
        call.run({**Call((9, 5), 3).feeds(), **changed})
    assert f"ai.liquid::GroupQueryAttention: {message}" in str(caught.value)


def test_a_position_beyond_the_rotary_cache_is_refused() -> None:
    call = Call((9,), 3)
    feeds = call.feeds()
    for name in ("cos_cache", "sin_cache"):
        feeds[name] = feeds[name][:11]
    with pytest.raises(Exception, match="input cos_cache: expected 12 positions or more"):
        call.run(feeds)


@pytest.mark.parametrize("missing", ["scale", "num_heads"])
def test_a_missing_attribute_is_refused(missing: str) -> None:
    call = Call((1,), 1)
    feeds, attributes = call.feeds(), call.all_attributes()
    del attributes[missing]
    model = one_node_model("GroupQueryAttention", feeds, feeds, attributes, 3)
    with pytest.raises(Exception, match=f"ai.liquid::GroupQueryAttention: attribute {missing}: missing"):
        native_session(model)


# --- in an exported model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["dense", "moe"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_batches_of_an_exported_model_give_what_its_bodies_give(
    variant: str, side: str, exported_artifact: ArtifactFactory
) -> None:
    path = exported_artifact.graph(variant)
    bodies, native = ExportedModel(path), ExportedModel(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    options.register_custom_ops_library(str(ops_library_path()))
    native.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    ids, mask = padded([rng.integers(8, 96, length) for length in (9, 4, 1)], side)
    results = []
    for model in (bodies, native):
        logits, states = model.run(ids, mask, model.empty_states(3))
        seen = [logits]
        for step in range(3):
            mask_now = np.concatenate([mask, np.ones((3, step + 1), np.int64)], axis=1)
            logits, states = model.run(np.full((3, 1), 20 + step, np.int64), mask_now, states)
            seen.append(logits)
        results.append(seen)
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected, 1e-4)
