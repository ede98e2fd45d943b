"""An exported model gives transformers' logits: every config variant, both op profiles, any padding, any chunking."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from exported_model import Array, ExportedModel, Ids, columns, padded, past_name
from lfm_onnx.artifact.precision import FP16, FP32, Precision
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.export import OpsProfile
from model_variants import VARIANTS, reference_logits

LIMIT = 1e-3
"""Largest difference of a logit, in standard deviations of the reference's logits."""

FP16_KLD = 1e-3

THOROUGH = [SAMPLE, "dense_conv_length_4", "moe", "moe_unnormalized_top_k"]

ops_profiles = pytest.mark.parametrize("ops_profile", OpsProfile, ids=[profile.value for profile in OpsProfile])
sides = pytest.mark.parametrize("side", ["left", "right"])


class Model:
    """A checkpoint's ONNX export beside transformers' logits for it."""

    def __init__(self, checkpoint: Path, onnx: ExportedModel, known: dict[tuple[int, ...], Array]) -> None:
        self.checkpoint, self.onnx, self._known = checkpoint, onnx, known
        self.config = LfmConfig.load(checkpoint)

    def reference(self, ids: Ids) -> Array:
        """[T, V], computed once for all tests of the checkpoint."""
        key = tuple(int(token) for token in ids)
        if key not in self._known:
            self._known[key] = reference_logits(self.checkpoint, key)
        return self._known[key]

    def random_ids(self, count: int, seed: int = 0) -> Ids:
        return np.random.default_rng(seed).integers(0, self.config.vocab_size, count)


@pytest.fixture(scope="module")
def exported(
    exported_artifact: ArtifactFactory,
) -> Callable[..., Model]:
    """exported(variant, ops_profile, precision) -> Model, loaded once."""
    known: dict[str, dict[tuple[int, ...], Array]] = {}

    @cache
    def model(variant: str, ops_profile: OpsProfile, precision: Precision = FP32) -> Model:
        onnx = ExportedModel(exported_artifact.graph(variant, ops_profile, precision))
        return Model(exported_artifact.checkpoint(variant), onnx, known.setdefault(variant, {}))

    return model


class Differences:
    """Collects how far logits are from the reference's, in its standard deviations."""

    def __init__(self) -> None:
        self.worst = 0.0

    def add(self, found: Array, expected: Array, whole: Array) -> None:
        """``whole``: the reference's logits that the standard deviation is taken of."""
        assert found.shape == expected.shape and np.isfinite(found).all()
        self.worst = max(self.worst, float(np.abs(found - expected).max() / whole.std()))

    def check(self, record_property: Callable[[str, object], None]) -> None:
        record_property("max_diff_over_std", self.worst)
        assert self.worst <= LIMIT


@pytest.mark.parametrize("variant", [*VARIANTS, SAMPLE])
@ops_profiles
def test_every_variant_agrees_with_transformers(
    variant: str,
    ops_profile: OpsProfile,
    exported: Callable[..., Model],
    record_property: Callable[[str, object], None],
) -> None:
    """Prefill, decode, and a batch of unequal lengths padded on either side."""
    model = exported(variant, ops_profile)
    differences = Differences()

    ids = model.random_ids(24)
    whole = model.reference(ids)
    logits, _ = model.onnx.feed(ids, keep=0)
    differences.add(logits, whole, whole)
    logits, states = model.onnx.feed(ids[:20])
    differences.add(logits, whole[19:20], whole)
    for step in range(20, 24):
        logits, states = feed_after(model, ids[step : step + 1], states, step)
        differences.add(logits, whole[step : step + 1], whole)

    rows = [ids[:12], model.random_ids(4, seed=1), model.random_ids(8, seed=2)]
    for side in ("left", "right"):
        check_batch(model, rows, side, 3, differences)
    differences.check(record_property)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 300])
@pytest.mark.parametrize("variant", THOROUGH)
@ops_profiles
def test_prompts_of_any_length_agree(
    variant: str,
    length: int,
    ops_profile: OpsProfile,
    exported: Callable[..., Model],
    record_property: Callable[[str, object], None],
) -> None:
    """All rows of a prompt, its last row alone, four decoded tokens, and the prompt fed in pieces."""
    model = exported(variant, ops_profile)
    ids = model.random_ids(304)
    whole = model.reference(ids)
    differences = Differences()

    logits, _ = model.onnx.feed(ids[:length], keep=0)
    differences.add(logits, whole[:length], whole)
    logits, states = model.onnx.feed(ids[:length])
    differences.add(logits, whole[length - 1 : length], whole)
    for step in range(length, length + 4):
        logits, states = model.onnx.feed(ids[step : step + 1], states)
        differences.add(logits, whole[step : step + 1], whole)

    states, start = model.onnx.empty_states(1), 0
    for piece in np.array_split(ids[:length], min(3, length)):
        logits, states = model.onnx.feed(piece, states, keep=0)
        differences.add(logits, whole[start : start + len(piece)], whole)
        start += len(piece)
    differences.check(record_property)


@pytest.mark.parametrize("lengths", [(5, 1, 9, 3), (1, 1), (40, 17, 2)], ids=str)
@pytest.mark.parametrize("variant", THOROUGH)
@sides
@ops_profiles
def test_a_padded_batch_gives_what_each_row_alone_gives(
    variant: str,
    lengths: tuple[int, ...],
    side: str,
    ops_profile: OpsProfile,
    exported: Callable[..., Model],
    record_property: Callable[[str, object], None],
) -> None:
    model = exported(variant, ops_profile)
    differences = Differences()
    rows = [model.random_ids(length + 3, seed=10 * length + b) for b, length in enumerate(lengths)]
    check_batch(model, rows, side, 3, differences)
    differences.check(record_property)


@pytest.mark.parametrize("keep", [1, 2, 4, 9, 100])
@sides
@ops_profiles
def test_num_logits_to_keep_counts_back_from_each_rows_last_token(
    keep: int, side: str, ops_profile: OpsProfile, exported: Callable[..., Model]
) -> None:
    model = exported("moe", ops_profile)
    rows = [model.random_ids(length, seed=length) for length in (5, 2, 9)]
    ids, mask = padded(rows, side)

    logits, _ = model.onnx.run(ids, mask, model.onnx.empty_states(3), keep)

    assert logits.shape[:2] == (3, min(keep, 9))
    for b, row in enumerate(rows):
        expected = model.reference(row)
        count = min(keep, len(row))
        # Where a row has fewer tokens than asked for, its rows are those that the padding leaves room for.
        last = len(row) if side == "right" and keep > len(row) else min(keep, 9)
        found = logits[b, last - count : last]
        assert np.abs(found - expected[len(row) - count :]).max() <= LIMIT * expected.std()


@sides
def test_a_conversation_goes_on_with_turns_of_unequal_lengths(
    side: str, exported: Callable[..., Model], record_property: Callable[[str, object], None]
) -> None:
    """Each row's second turn follows its first wherever padding has put it (standard profile)."""
    for variant in THOROUGH:
        model = exported(variant, OpsProfile.STANDARD)
        first = [model.random_ids(length, seed=length) for length in (6, 3, 8)]
        second = [model.random_ids(length, seed=90 + length) for length in (2, 7, 1)]
        differences = Differences()

        ids, mask = padded(first, side)
        _, states = model.onnx.run(ids, mask, model.onnx.empty_states(3))
        ids, new_mask = padded(second, side)
        logits, states = model.onnx.run(ids, np.concatenate([mask, new_mask], axis=1), states, 0)

        for b, (begin, end) in enumerate(zip(first, second, strict=True)):
            whole = model.reference(np.concatenate([begin, end]))
            differences.add(logits[b][new_mask[b] == 1], whole[len(begin) :], whole)
        differences.check(record_property)


def test_group_query_attention_refuses_a_batch_that_goes_on_with_several_tokens(exported: Callable[..., Model]) -> None:
    """A limit of ONNX Runtime's operator, told as an error rather than met with wrong numbers (custom profile)."""
    model = exported("moe", OpsProfile.CUSTOM)
    ids, mask = padded([model.random_ids(4), model.random_ids(4, seed=1)], "right")
    _, states = model.onnx.run(ids, mask, model.onnx.empty_states(2))
    with pytest.raises(Exception, match=r"(?i)batch"):
        model.onnx.run(ids, np.concatenate([mask, mask], axis=1), states)


@sides
@ops_profiles
def test_a_row_without_any_token_disturbs_no_other(
    side: str, ops_profile: OpsProfile, exported: Callable[..., Model]
) -> None:
    model = exported("moe", ops_profile)
    row = model.random_ids(6)
    ids, mask = padded([row, []], side)
    logits, states = model.onnx.run(ids, mask, model.onnx.empty_states(2))
    assert np.isfinite(logits).all() and all(np.isfinite(state).all() for state in states.values())
    expected = model.reference(row)
    assert np.abs(logits[0, 0] - expected[-1]).max() <= LIMIT * expected.std()


@pytest.mark.parametrize("variant", THOROUGH)
@ops_profiles
def test_greedy_tokens_are_transformers_own(
    variant: str, ops_profile: OpsProfile, exported: Callable[..., Model]
) -> None:
    """Each token is the reference's choice after the ones before it, so the two sequences are the same."""
    model = exported(variant, ops_profile)
    prompt = model.random_ids(10, seed=3)
    logits, states = model.onnx.feed(prompt)
    tokens = []
    for _ in range(24):
        tokens.append(int(logits[-1].argmax()))
        logits, states = model.onnx.feed(tokens[-1:], states)

    expected = model.reference(np.concatenate([prompt, tokens]))[len(prompt) - 1 : -1].argmax(axis=1)

    assert tokens == expected.tolist()


def test_past_and_present_may_share_one_buffer(exported: Callable[..., Model]) -> None:
    """The custom profile writes new columns into the cache it is given: no copy of the cache per token."""
    model = exported("moe", OpsProfile.CUSTOM)
    ids = model.random_ids(12)
    whole = model.reference(ids)
    room = 32
    buffers = {
        name: ort.OrtValue.ortvalue_from_numpy(np.zeros((*state.shape[:2], room, state.shape[3]), np.float32))
        for name, state in model.onnx.empty_states(1).items()
        if name.startswith("past_key_values.")
    }
    states = {name: value for name, value in model.onnx.empty_states(1).items() if name not in buffers}
    for begin, end in ((0, 9), (9, 10), (10, 11), (11, 12)):
        binding = model.onnx.session.io_binding()
        binding.bind_cpu_input("input_ids", ids[None, begin:end])
        binding.bind_cpu_input("attention_mask", np.ones((1, end), np.int64))
        for name, value in states.items():
            binding.bind_cpu_input(name, value)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
        for name in model.onnx.outputs:
            if past_name(name) in buffers:
                binding.bind_ortvalue_output(name, buffers[past_name(name)])
            else:
                binding.bind_output(name, "cpu")
        model.onnx.session.run_with_iobinding(binding)
        found = dict(zip(model.onnx.outputs, binding.get_outputs(), strict=True))
        states = {past_name(name): found[name].numpy() for name in found if past_name(name) in states}
        assert np.abs(found["logits"].numpy()[0, 0] - whole[end - 1]).max() <= LIMIT * whole.std()
    for buffer in buffers.values():
        written = buffer.numpy().any(axis=(0, 1, 3))
        assert written.tolist() == [True] * 12 + [False] * (room - 12)


@pytest.mark.parametrize("variant", [SAMPLE, "dense", "moe", "moe_fused_sharded_fp16", "moe_top_4"])
@ops_profiles
def test_fp16_weights_keep_the_distribution(
    variant: str,
    ops_profile: OpsProfile,
    exported: Callable[..., Model],
    record_property: Callable[[str, object], None],
) -> None:
    model = exported(variant, ops_profile, FP16)
    ids = model.random_ids(200)
    expected = log_softmax(model.reference(ids))

    logits, states = model.onnx.feed(ids[:-2], keep=0)
    rows = [logits]
    for token in ids[-2:]:
        logits, states = model.onnx.feed([token], states)
        rows.append(logits)
    found = log_softmax(np.concatenate(rows))

    divergence = float((np.exp(expected) * (expected - found)).sum(axis=1).mean())
    record_property("mean_kld", divergence)
    assert divergence <= FP16_KLD


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def feed_after(model: Model, ids: Ids, states: dict[str, Array], past: int) -> tuple[Array, dict[str, Array]]:
    """``feed`` that also serves a model without attention layers, whose states do not tell how much went before."""
    if columns(states):
        return model.onnx.feed(ids, states)
    mask = np.ones((1, past + len(ids)), np.int64)
    logits, states = model.onnx.run(ids[None], mask, states)
    return logits[0], states


def check_batch(model: Model, rows: list[Ids], side: str, steps: int, differences: Differences) -> None:
    """Prefill all but each row's last ``steps`` tokens, padded to one length, then decode those."""
    expected = [model.reference(row) for row in rows]
    prompts = [row[: len(row) - steps] for row in rows]
    ids, mask = padded(prompts, side)

    every, _ = model.onnx.run(ids, mask, model.onnx.empty_states(len(rows)), 0)
    last, states = model.onnx.run(ids, mask, model.onnx.empty_states(len(rows)))
    for b, prompt in enumerate(prompts):
        whole = expected[b]
        differences.add(every[b][mask[b] == 1], whole[: len(prompt)], whole)
        differences.add(last[b], whole[len(prompt) - 1 : len(prompt)], whole)

    for step in range(steps):
        mask = np.concatenate([mask, np.ones((len(rows), 1), np.int64)], axis=1)
        ids = np.array([[row[len(row) - steps + step]] for row in rows])
        logits, states = model.onnx.run(ids, mask, states)
        for b, row in enumerate(rows):
            at = len(row) - steps + step
            differences.add(logits[b], expected[b][at : at + 1], expected[b])
