"""The numpy reference equals transformers on every variant, however its tokens are fed, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.checkpoint.expected_tensors import expected_tensors
from lfm_onnx.errors import CheckpointError, InputError
from lfm_onnx.reference import blocks as blocks
from lfm_onnx.reference.model import Reference
from lfm_onnx.reference.torch_model import TorchReference
from model_variants import VARIANTS, reference_logits
from safetensors.numpy import save_file

MakeVariant = Callable[..., Path]
SAMPLED_VARIANTS = ["dense_conv_bias", "dense_own_head_dim", "dense_conv_length_5", "dense_attention_only", "moe"]


def random_ids(tokens: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, tokens)


@pytest.fixture
def open_variant(variant_checkpoint: MakeVariant) -> Callable[[str], Checkpoint]:
    return lambda variant: Checkpoint.open(variant_checkpoint(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(open_variant: Callable[[str], Checkpoint], variant: str) -> None:
    checkpoint = open_variant(variant)
    ids = random_ids(60, checkpoint.config.vocab_size)
    expected = reference_logits(checkpoint.folder, ids)
    logits, state = Reference(checkpoint).forward(ids)
    assert expected.std() > 0.3, "logits this small would pass whatever the model computed"
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert state.length == 60


@pytest.mark.parametrize("tokens", [1, 2, 300])
@pytest.mark.parametrize("variant", ["dense", "moe"])
def test_logits_equal_transformers_for_short_and_long_prompts(
    open_variant: Callable[[str], Checkpoint], variant: str, tokens: int
) -> None:
    checkpoint = open_variant(variant)
    ids = random_ids(tokens, checkpoint.config.vocab_size, seed=tokens)
    logits, _ = Reference(checkpoint).forward(ids)
    np.testing.assert_allclose(logits, reference_logits(checkpoint.folder, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["dense", "dense_own_head_dim", "moe", "moe_conv_bias"])
def test_hidden_states_equal_transformers_after_every_layer(
    open_variant: Callable[[str], Checkpoint], variant: str
) -> None:
    import torch

    checkpoint = open_variant(variant)
    ids = random_ids(20, checkpoint.config.vocab_size)
    hidden: list[np.ndarray] = []
    Reference(checkpoint).forward(ids, hidden=hidden)
    transformers_reference = TorchReference(checkpoint)
    recorded: list[np.ndarray] = []
    transformers_reference.forward(ids, hidden=recorded)
    with torch.no_grad():
        output = transformers_reference.model(torch.from_numpy(ids)[None], output_hidden_states=True)

    assert len(hidden) == len(recorded) == checkpoint.config.num_hidden_layers + 2
    for ours, theirs in zip(hidden, recorded, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    # transformers gives the final norm's output in place of the last layer's residual stream.
    for ours, theirs in zip([*hidden[:-2], hidden[-1]], output.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", SAMPLED_VARIANTS)
def test_tokens_fed_in_pieces_give_the_logits_of_one_prefill(
    open_variant: Callable[[str], Checkpoint], variant: str
) -> None:
    reference = Reference(open_variant(variant))
    ids = random_ids(24, reference.config.vocab_size)
    whole, _ = reference.forward(ids)

    @settings(max_examples=20, deadline=None)
    @given(st.sets(st.integers(1, len(ids) - 1)))
    def feed(splits: set[int]) -> None:
        state, logits = None, []
        for piece in np.split(ids, sorted(splits)):
            piece_logits, state = reference.forward(piece, state)
            logits.append(piece_logits)
        np.testing.assert_allclose(np.concatenate(logits), whole, atol=1e-5, rtol=0)

    feed()


@pytest.mark.parametrize("variant", ["dense", "moe"])
def test_transformers_reference_fed_in_pieces_agrees_with_numpy(
    open_variant: Callable[[str], Checkpoint], variant: str
) -> None:
    checkpoint = open_variant(variant)
    ids = random_ids(12, checkpoint.config.vocab_size)
    reference, transformers_reference = Reference(checkpoint), TorchReference(checkpoint)
    states: tuple = (None, None)
    for piece in np.split(ids, [5, 6, 7]):
        ours: list[np.ndarray] = []
        theirs: list[np.ndarray] = []
        logits, state = reference.forward(piece, states[0], hidden=ours)
        expected, transformers_state = transformers_reference.forward(piece, states[1], hidden=theirs)
        states = state, transformers_state
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", [Reference, TorchReference])
def test_a_state_can_be_continued_twice(
    open_variant: Callable[[str], Checkpoint], backend: type[Reference] | type[TorchReference]
) -> None:
    reference = backend(open_variant("moe"))
    _, state = reference.forward([1, 2, 3])
    first, _ = reference.forward([4, 5], state)
    reference.forward([9, 8, 7], state)
    again, after = reference.forward([4, 5], state)
    np.testing.assert_array_equal(first, again)
    assert (state.length, after.length) == (3, 5)


@pytest.mark.parametrize("backend", [Reference, TorchReference])
def test_last_logits_are_the_last_row_of_all_logits(
    open_variant: Callable[[str], Checkpoint], backend: type[Reference] | type[TorchReference]
) -> None:
    reference = backend(open_variant("dense"))
    every, _ = reference.forward([3, 1, 4, 1, 5])
    last, _ = reference.forward([3, 1, 4, 1, 5], logits="last")
    assert last.shape == (1, reference.config.vocab_size)
    np.testing.assert_allclose(last, every[-1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["dense", "dense_attention_only", "moe", "moe_top_4"])
def test_greedy_tokens_equal_transformers_generate(open_variant: Callable[[str], Checkpoint], variant: str) -> None:
    import torch

    checkpoint = open_variant(variant)
    transformers_reference = TorchReference(checkpoint)
    ids = random_ids(10, checkpoint.config.vocab_size, seed=1)
    generated = transformers_reference.model.generate(
        torch.from_numpy(ids)[None], do_sample=False, max_new_tokens=24, eos_token_id=-1
    )[0, len(ids) :].tolist()
    assert Reference(checkpoint).greedy(ids, 24, ()) == generated
    assert transformers_reference.greedy(ids, 24, ()) == generated

    end = generated[5]
    until_end = generated[: generated.index(end) + 1]
    assert Reference(checkpoint).greedy(ids, 24, {end}) == until_end
    assert transformers_reference.greedy(ids, 24, {end}) == until_end


def test_long_attention_in_blocks_of_queries_equals_attention_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((30, 4, 8), dtype=np.float32)
    k, v = rng.standard_normal((2, 50, 2, 8), dtype=np.float32)
    at_once = blocks.causal_attention(q, k, v)
    monkeypatch.setattr(blocks, "SCORE_ELEMENTS", 4 * 50 * 7)
    np.testing.assert_allclose(blocks.causal_attention(q, k, v), at_once, atol=1e-6, rtol=0)


def test_equal_router_scores_choose_the_experts_of_lower_index(open_variant: Callable[[str], Checkpoint]) -> None:
    config = open_variant("moe").config
    bias = np.zeros(config.num_experts, np.float32)
    bias[[3, 6]] = -1.0, 1.0

    class UndecidedRouter:
        def __call__(self, name: str) -> np.ndarray:
            return bias if name == "expert_bias" else np.zeros((config.num_experts, config.hidden_size), np.float32)

        def scope(self, prefix: str) -> UndecidedRouter:
            return self

    chosen, weights = blocks.route(np.ones((1, config.hidden_size), np.float32), UndecidedRouter(), config)
    assert chosen.tolist() == [[6, 0]]
    np.testing.assert_allclose(weights, [[0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("cache_bytes", [0, 20_000])
def test_logits_do_not_depend_on_how_many_converted_weights_are_kept(
    open_variant: Callable[[str], Checkpoint], cache_bytes: int
) -> None:
    checkpoint = open_variant("moe")
    whole, bounded = Reference(checkpoint), Reference(checkpoint, cache_bytes=cache_bytes)
    for _ in range(2):
        np.testing.assert_array_equal(bounded.forward([5, 6, 7])[0], whole.forward([5, 6, 7])[0])
    assert sum(array.nbytes for array in bounded.weights.converted.arrays.values()) <= cache_bytes


@pytest.mark.parametrize("ids", [[], [[1, 2]], [0.5], [-1], [96]])
def test_ids_that_are_no_tokens_of_the_model_are_refused(
    open_variant: Callable[[str], Checkpoint], ids: list[object]
) -> None:
    with pytest.raises(InputError, match="token id"):
        Reference(open_variant("dense")).forward(ids)


def test_missing_torch_is_reported_with_the_command_that_installs_it(
    open_variant: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r'no torch: run pip install "lfm-onnx\[parity\]"'):
        TorchReference(open_variant("dense"))


def test_a_folder_that_transformers_cannot_load_is_refused_in_one_line(
    open_variant: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = open_variant("dense")
    checkpoint.folder = tmp_path
    with pytest.raises(CheckpointError, match="transformers cannot load") as refused:
        TorchReference(checkpoint)
    assert "\n" not in str(refused.value)


MEASURE_PEAK = """
import sys
import numpy as np
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.hardware.memory import peak_rss_bytes
from lfm_onnx.reference.model import Reference
from lfm_onnx.reference.safetensors_weights import SafetensorsWeights

reader = {"Checkpoint": Checkpoint.open, "SafetensorsWeights": SafetensorsWeights}[sys.argv[3]](sys.argv[1])
reference = Reference(reader, cache_bytes=int(sys.argv[2]))
before = peak_rss_bytes()
reference.forward(np.arange(32), logits="last")
print(peak_rss_bytes() - before)
"""


def test_peak_memory_is_bounded_by_the_cache_and_not_by_the_checkpoint(tmp_path: Path) -> None:
    """A model of 150 MB whose largest matrix takes 3 MB in float32: neither files nor weights stay resident."""
    stored = write_wide_moe(tmp_path)

    def grown(cache_bytes: int, reader: str = "Checkpoint") -> int:
        command = [sys.executable, "-c", MEASURE_PEAK, str(tmp_path), str(cache_bytes), reader]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert stored > 140e6
    assert grown(cache_bytes=0) < 40e6
    assert grown(cache_bytes=0, reader="SafetensorsWeights") < 80e6  # 32 MB of the files are mapped at most
    assert 50e6 < grown(cache_bytes=int(50e6)) < 90e6


def write_wide_moe(folder: Path) -> int:
    """A MoE checkpoint in float16 with 60 experts per layer; returns the bytes of its tensors."""
    fields = {
        **VARIANTS["moe"],
        "hidden_size": 512,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "num_experts": 60,
        "num_experts_per_tok": 8,
        "vocab_size": 1024,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape, np.float32).astype(np.float16)
        for name, shape in expected_tensors(LfmConfig.from_dict(fields))
    }
    save_file(tensors, folder / "model.safetensors")
    return sum(tensor.nbytes for tensor in tensors.values())
