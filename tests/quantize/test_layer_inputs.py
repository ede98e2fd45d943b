"""Calibration's forward pass is the reference's; what it records and what quantizers make of it is reproducible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graph_weights import ANY_MATRIX, block_weights
from lfm_onnx.artifact.formats import BlockFormat, dequantize
from lfm_onnx.artifact.graph_weights import GraphWeight
from lfm_onnx.artifact.method import Method
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.errors import InputError
from lfm_onnx.quantize.layer_inputs import LayerInputs
from lfm_onnx.quantize.methods import LEAST_EXPERT_TOKENS, Quantizer
from lfm_onnx.quantize.own_text import own_text, writes_own_text
from lfm_onnx.quantize.round_to_nearest import quantize_round_to_nearest
from lfm_onnx.quantize.scale_search import quantize_scale_search
from lfm_onnx.reference.blocks import rms_norm, route
from lfm_onnx.reference.model import Reference

FMT = BlockFormat(4)
MakeVariant = Callable[..., Path]
HEAD = "model.embed_tokens.weight"


def inputs_of(checkpoint: Checkpoint, sequences: list[np.ndarray]) -> LayerInputs:
    return LayerInputs(checkpoint, tuple(block_weights(checkpoint.config).values()), sequences)


def quantizer_of(
    method: Method, checkpoint: Checkpoint, sequences: list[np.ndarray], *, threads: int | None = None
) -> Quantizer:
    weights = tuple(block_weights(checkpoint.config).values())
    return Quantizer(method, checkpoint, sequences, weights=weights, threads=threads)


def sequences_of(checkpoint: Checkpoint, lengths: tuple[int, ...] = (40, 1, 23), seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, checkpoint.config.vocab_size, length) for length in lengths]


def residual_streams(checkpoint: Checkpoint, sequences: list[np.ndarray]) -> list[np.ndarray]:
    """The reference's hidden states, each [all tokens, H]: embeddings, after each layer, final norm."""
    hidden: list[list[np.ndarray]] = []
    for ids in sequences:
        hidden.append([])
        Reference(checkpoint).forward(ids, hidden=hidden[-1])
    return [np.concatenate(parts) for parts in zip(*hidden, strict=True)]


@pytest.fixture
def moe(variant_checkpoint: MakeVariant) -> Checkpoint:
    return Checkpoint.open(variant_checkpoint("moe"))


@pytest.mark.parametrize("variant", ["moe", "dense", "dense_conv_bias", "moe_top_4", "dense_own_head_dim"])
def test_inputs_are_those_of_the_reference(variant_checkpoint: MakeVariant, variant: str) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    config, sequences = checkpoint.config, sequences_of(checkpoint)
    streams = residual_streams(checkpoint, sequences)
    inputs, weights = inputs_of(checkpoint, sequences), block_weights(config)
    for layer, kind in enumerate(config.layer_types):
        weight = weights[f"model.layers.{layer}.{'conv.in_proj' if kind == 'conv' else 'self_attn.qkv_proj'}.weight"]
        x = rms_norm(streams[layer], checkpoint.float32(f"model.layers.{layer}.operator_norm.weight"), config.norm_eps)
        moment, tokens = inputs.second_moment(weight)
        assert tokens == sum(map(len, sequences))
        np.testing.assert_allclose(moment, x.T @ x / len(x), atol=2e-5 * np.abs(moment).max())
        np.testing.assert_allclose(inputs.importance(weight), np.diagonal(moment), rtol=1e-4)
    head, _ = inputs.second_moment(weights[HEAD])
    np.testing.assert_allclose(head, streams[-1].T @ streams[-1] / len(streams[-1]), atol=2e-5 * np.abs(head).max())


def test_every_linear_s_input_has_the_width_of_its_columns(moe: Checkpoint) -> None:
    config = moe.config
    inputs, weights = inputs_of(moe, sequences_of(moe)), block_weights(config)
    widths = {
        "model.layers.0.conv.out_proj.weight": config.hidden_size,
        "model.layers.0.feed_forward.gate_up.weight": config.hidden_size,
        "model.layers.0.feed_forward.down.weight": config.ff_dim,
        "model.layers.2.self_attn.out_proj.weight": config.q_dim,
        "model.layers.3.feed_forward.experts.gate_up": config.hidden_size,
        "model.layers.3.feed_forward.experts.down_proj": config.moe_intermediate_size,
    }
    for name, width in widths.items():
        moment, tokens = inputs.second_moment(weights[name])
        assert moment.shape == (width, width) and tokens > 0
    with pytest.raises(KeyError, match="gate"):
        inputs.second_moment(weights["model.layers.3.feed_forward.gate.weight"])


def test_an_expert_s_tokens_are_those_that_the_router_sends_it(moe: Checkpoint) -> None:
    class Weights:
        def __init__(self, prefix: str) -> None:
            self.prefix = prefix

        def __call__(self, name: str) -> np.ndarray:
            return moe.float32(self.prefix + name)

        def scope(self, prefix: str) -> Weights:
            return Weights(self.prefix + prefix)

    inputs = inputs_of(moe, sequences_of(moe))
    weight = block_weights(moe.config)["model.layers.2.feed_forward.experts.gate_up"]
    x = inputs.rows_into(weight, expert=0)
    counts = inputs.expert_tokens(weight)
    assert counts.sum() == 64 * moe.config.num_experts_per_tok
    for expert in range(moe.config.num_experts):
        moment, tokens = inputs.second_moment(weight, expert)
        assert tokens == counts[expert] and (moment.any() == (tokens > 0))
    chosen, _ = route(np.concatenate(x), Weights("model.layers.2.feed_forward."), moe.config)
    assert (chosen == 0).any(axis=1).all()
    together = sum(inputs.second_moment(weight, e)[0] * counts[e] for e in range(moe.config.num_experts)) / counts.sum()
    np.testing.assert_allclose(inputs.second_moment(weight)[0], together, rtol=1e-3, atol=1e-5)


def test_sequences_do_not_see_each_other(moe: Checkpoint) -> None:
    first, second = sequences_of(moe, (30, 20))
    weight = block_weights(moe.config)["model.layers.3.conv.out_proj.weight"]
    together, alone = inputs_of(moe, [first, second]), inputs_of(moe, [second])
    rest = together.second_moment(weight)[0] * 50 - inputs_of(moe, [first]).second_moment(weight)[0] * 30
    np.testing.assert_allclose(rest, alone.second_moment(weight)[0] * 20, atol=1e-3 * np.abs(rest).max())


def test_layers_can_be_asked_for_again(moe: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm_onnx.quantize.layer_inputs.KEPT_BYTES", 0)
    inputs, weights = inputs_of(moe, sequences_of(moe)), block_weights(moe.config)
    names = [f"model.layers.{layer}.{part}.out_proj.weight" for layer, part in ((0, "conv"), (3, "conv"), (0, "conv"))]
    first, _, again = (inputs.second_moment(weights[name])[0] for name in names)
    assert first.tobytes() == again.tobytes() and inputs.held_layers <= 2


def test_head_tokens_whose_next_token_is_certain_weigh_least(tiny_lfm: Path) -> None:
    checkpoint = Checkpoint.open(tiny_lfm)
    sequences = own_text(checkpoint, 200)
    reference = Reference(checkpoint)
    hidden: list[list[np.ndarray]] = [[] for _ in sequences]
    logits = np.concatenate(
        [reference.forward(ids, hidden=into)[0] for ids, into in zip(sequences, hidden, strict=True)]
    ).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    weights = 1 - np.square(p).sum(axis=1) + 0.02
    x = np.concatenate([layers[-1] for layers in hidden])
    expected = (x * weights[:, None]).T @ x / weights.sum()
    found = inputs_of(checkpoint, sequences).head_moment()
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("wrong", [[], [[]], [[1, 2, 10**6]], [[-1]]])
def test_text_that_cannot_be_used_is_refused(moe: Checkpoint, wrong: list[list[int]]) -> None:
    with pytest.raises(InputError, match="calibration text"):
        inputs_of(moe, [np.array(ids, np.int64) for ids in wrong])


# --- quantizers -------------------------------------------------------------------------------------------------------


def pieces(checkpoint: Checkpoint) -> list[tuple[GraphWeight, np.ndarray, int]]:
    """Weights of each kind as the exporter hands them over: weight, rows, first row."""
    config, experts = checkpoint.config, "model.layers.3.feed_forward.experts."
    weights = block_weights(config)
    names = (HEAD, "model.layers.0.conv.in_proj.weight")
    found = [(weights[name], checkpoint.float32(name), 0) for name in names]
    for expert in range(config.num_experts):
        gate, up, down = (checkpoint.float32(f"{experts}{expert}.w{part}.weight") for part in (1, 3, 2))
        pair = np.stack([gate, up], axis=1).reshape(-1, config.hidden_size)
        found.append((weights[experts + "gate_up"], pair, expert * len(pair)))
        found.append((weights[experts + "down_proj"], down, expert * len(down)))
    return found


@pytest.mark.parametrize("method", list(Method))
def test_bytes_do_not_depend_on_threads_or_order(moe: Checkpoint, method: Method) -> None:
    sequences = sequences_of(moe, (60, 60))
    work = pieces(moe)
    made = []
    for threads, order in ((1, work), (3, work[::-1])):
        quantizer = quantizer_of(method, moe, sequences, threads=threads)
        rows = {(weight.name, first): quantizer.quantize(weight, x, first, FMT) for weight, x, first in order}
        made.append({key: (stored.data.tobytes(), stored.scales.tobytes()) for key, stored in rows.items()})
    assert made[0] == made[1]


def test_experts_that_the_text_rarely_chooses_fall_back_to_the_search_and_are_reported(moe: Checkpoint) -> None:
    quantizer = quantizer_of(Method.GPTQ, moe, sequences_of(moe, (30,)))
    for weight, values, first in pieces(moe):
        quantizer.quantize(weight, values, first, FMT)
    report = quantizer.report()
    counts = report["expert_tokens"]["model.layers.3.feed_forward.experts.down_proj"]
    rare = {expert for expert, count in enumerate(counts) if count < LEAST_EXPERT_TOKENS}
    assert rare and len(rare) < moe.config.num_experts
    assert {entry["expert"] for entry in report["fallbacks"]} == rare
    assert all("calibration tokens" in entry["reason"] for entry in report["fallbacks"])
    for errors in report["tensors"].values():
        assert errors["quantized"] < errors["round_to_nearest"] < 0.1


def test_methods_without_calibration(moe: Checkpoint) -> None:
    weights = np.random.default_rng(0).standard_normal((8, 64), np.float32)
    plain = Quantizer(Method.RTN).quantize(ANY_MATRIX, weights, 0, FMT)
    assert plain.data.tobytes() == quantize_round_to_nearest(weights, FMT).data.tobytes()
    searched = Quantizer(Method.SEARCH).quantize(ANY_MATRIX, weights, 0, FMT)
    assert searched.data.tobytes() == quantize_scale_search(weights, FMT).data.tobytes()
    with pytest.raises(ValueError, match="calibration text"):
        Quantizer(Method.GPTQ, moe)


def test_an_untied_embedding_that_is_only_looked_up_is_searched_without_weights(
    variant_checkpoint: MakeVariant,
) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe_untied"))
    table, weight = checkpoint.float32(HEAD), block_weights(checkpoint.config)[HEAD]
    made = quantizer_of(Method.GPTQ, checkpoint, sequences_of(checkpoint)).quantize(weight, table, 0, FMT)
    assert made.data.tobytes() == quantize_scale_search(table, FMT).data.tobytes()


def test_the_model_s_own_text_is_the_same_each_time_and_like_what_it_was_trained_on(tiny_lfm: Path) -> None:
    checkpoint = Checkpoint.open(tiny_lfm)
    assert writes_own_text(checkpoint)
    first, again, other = (own_text(checkpoint, 120, seed) for seed in (0, 0, 1))
    assert [ids.tolist() for ids in first] == [ids.tolist() for ids in again] != [ids.tolist() for ids in other]
    assert sum(map(len, first)) == 120 and first[0][0] == checkpoint.config.bos_token_id
    logits, _ = Reference(checkpoint).forward(first[0])
    likelihood = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    surprise = -likelihood[np.arange(len(first[0]) - 1), first[0][1:]].mean()
    assert surprise < 0.4 * np.log(checkpoint.config.vocab_size)


def divergence(checkpoint: Checkpoint, quantizer: Quantizer, sequences: list[np.ndarray]) -> float:
    """Mean KLD of next tokens, every quantized weight of the model as its blocks stand for it."""
    from lfm_onnx.reference.weights import ConvertedWeights, Weights

    converted = ConvertedWeights()

    def put(weight: GraphWeight, parts: tuple[str, ...], first: int) -> None:
        rows = np.concatenate([checkpoint.float32(part) for part in parts])
        values = dequantize(quantizer.quantize(weight, rows, first, FMT), FMT, rows.shape[1])
        start = 0
        for part in parts:
            stop = start + checkpoint.shape(part)[0]
            converted.keep((part, 0), np.ascontiguousarray(values[start:stop]))
            start = stop

    for weight in block_weights(checkpoint.config).values():
        if weight.group is not None:
            for expert, sources in weight.sources_by_expert():
                put(weight, sources, (expert or 0) * weight.rows_per_expert)
    changed = Reference(checkpoint)
    changed.weights = Weights(checkpoint, converted)
    total = []
    for ids in sequences:
        before, after = (model.forward(ids)[0].astype(np.float64) for model in (Reference(checkpoint), changed))
        p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (before, after))
        total.append((np.exp(p) * (p - q)).sum(axis=1))
    return float(np.concatenate(total).mean())


def test_calibrated_on_its_own_text_the_model_stays_nearer_to_itself(tiny_lfm: Path) -> None:
    """On text that the calibration did not see, against rounding to nearest at the same bytes."""
    checkpoint = Checkpoint.open(tiny_lfm)
    seen, unseen = own_text(checkpoint, 2048, seed=1), own_text(checkpoint, 768, seed=2)
    methods = (Method.RTN, Method.GPTQ)
    rtn, gptq = (divergence(checkpoint, quantizer_of(method, checkpoint, seen), unseen) for method in methods)
    assert gptq < 0.75 * rtn
