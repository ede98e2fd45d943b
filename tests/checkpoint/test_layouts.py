"""Every layout of tensors that transformers loads is read as it reads it; of others it is said what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.tensor_names import foreign_names
from lfm_onnx.errors import CheckpointError, ConfigError
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, np.ndarray]


@pytest.fixture(params=["dense", "moe", "moe_fused"])
def folder(request: pytest.FixtureRequest, variant_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(variant_checkpoint(request.param), tmp_path / "checkpoint"))


def _change(folder: Path, change: Callable[[Tensors], Tensors], **config: object) -> Path:
    file, settings = folder / "model.safetensors", folder / "config.json"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **config}))
    return folder


def _agree(folder: Path) -> Checkpoint:
    """The checkpoint, whose table and head are those that transformers loads."""
    checkpoint = Checkpoint.open(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    head = EMBEDDING if checkpoint.config.tie_word_embeddings else HEAD
    assert checkpoint.config.tie_word_embeddings == (model.lm_head.weight is model.model.embed_tokens.weight)
    np.testing.assert_array_equal(checkpoint.float32(EMBEDDING), model.model.embed_tokens.weight.detach().numpy())
    np.testing.assert_array_equal(checkpoint.float32(head), model.lm_head.weight.detach().numpy())
    state = model.state_dict()
    for name in set(checkpoint.names()) & set(state):
        np.testing.assert_array_equal(checkpoint.float32(name), state[name].numpy())
    return checkpoint


def _other(tensors: Tensors) -> np.ndarray:
    changed = tensors[EMBEDDING].copy()
    changed[-1, -1] += 1
    return changed


def test_a_head_that_differs_from_the_table_is_a_head_whatever_the_config_says(folder: Path) -> None:
    checkpoint = _agree(_change(folder, lambda t: {**t, HEAD: _other(t)}))
    assert not checkpoint.config.tie_word_embeddings and checkpoint.raw_config["tie_word_embeddings"] is False
    assert "lm_head.weight differs" in checkpoint.notes[0] and len(checkpoint.notes) == 1
    old = Checkpoint.open(_change(folder, lambda t: t, tie_embedding=True))
    assert old.raw_config["tie_embedding"] is False and HEAD in old.names()


def test_a_head_that_equals_the_table_is_the_table(folder: Path) -> None:
    checkpoint = _agree(_change(folder, lambda t: {**t, HEAD: t[EMBEDDING].copy()}))
    assert checkpoint.config.tie_word_embeddings and checkpoint.notes == ()
    wider = Checkpoint.open(_change(folder, lambda t: {**t, HEAD: t[EMBEDDING].astype(np.float32)}))
    assert wider.config.tie_word_embeddings


def test_of_a_tied_pair_either_name_may_be_in_the_file(folder: Path) -> None:
    names = Checkpoint.open(folder).names()
    checkpoint = _agree(_change(folder, lambda t: {HEAD if name == EMBEDDING else name: t[name] for name in t}))
    assert checkpoint.names() == names and checkpoint.notes == ()


@pytest.mark.parametrize("missing", [EMBEDDING, HEAD])
def test_of_an_untied_pair_both_are_needed(missing: str, folder: Path) -> None:
    _change(folder, lambda t: {**t, HEAD: _other(t)}, tie_word_embeddings=False)
    _change(folder, lambda t: {name: t[name] for name in t if name != missing})
    with pytest.raises(CheckpointError, match=f'missing tensor: "{missing}"'):
        Checkpoint.open(folder)


@settings(max_examples=8)
@given(data=st.data())
def test_any_names_may_come_without_the_models_own(
    data: st.DataObject, variant_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(variant_checkpoint("moe"), tmp_path_factory.mktemp("names") / "checkpoint"))
    expected = {name: values.copy() for name, values in load_file(folder / "model.safetensors").items()}
    bare = data.draw(st.sets(st.sampled_from(sorted(expected))) | st.just(set(expected)))
    _change(folder, lambda t: {name.removeprefix("model.") if name in bare else name: t[name] for name in t})
    checkpoint = Checkpoint.open(folder)
    assert sorted(checkpoint.names()) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.raw(name), values)


def test_a_tensor_under_both_names_is_refused(folder: Path) -> None:
    _change(folder, lambda t: {**t, "embed_tokens.weight": t[EMBEDDING].copy()})
    with pytest.raises(CheckpointError, match=r'unexpected tensor: "embed_tokens\.weight"'):
        Checkpoint.open(folder)


PREFIXES = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "base_model.model.": "PEFT",
    "model.language_model.": "vision-language",
    "language_model.model.": "vision-language",
    "_forward_module.": "Lightning",
    "_orig_mod.module.": "torch.compile",
    "transformer.": "no known tool",
}


@pytest.mark.parametrize(("prefix", "origin"), PREFIXES.items(), ids=PREFIXES)
def test_another_prefix_is_named_with_its_meaning_and_remedy(prefix: str, origin: str, folder: Path) -> None:
    def renamed(name: str) -> str:
        return prefix + (name.removeprefix("model.") if "language" in prefix else name)

    _change(folder, lambda t: {renamed(name): t[name] for name in t})
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint.open(folder)
    message = str(refusal.value)
    assert origin in message and any(verb in message for verb in ("save", "merge", "rename")) and message.isprintable()
    assert f'prefix "{prefix.removesuffix("model.") if prefix.startswith("language") else prefix}' in message


def test_parts_within_names_are_explained_too() -> None:
    expected = ["model.layers.0.ffn_norm.weight"]
    wrapped = "model.layers.0._checkpoint_wrapped_module.ffn_norm.weight"
    assert "activation checkpointing" in (foreign_names([wrapped], expected) or "")
    assert 'hold "base_layer."' in (foreign_names(["model.layers.0.ffn_norm.base_layer.weight"], expected) or "")
    assert "FSDP" in (foreign_names(["_fsdp_wrapped_module.model.layers.0.ffn_norm.weight"], expected) or "")
    assert foreign_names(["model.layers.0.gate.weight", "x"], expected) is None


def test_a_model_within_a_vision_language_model_is_said_to_be_one(folder: Path) -> None:
    _change(folder, lambda t: t, model_type="lfm2_vl", text_config={"model_type": "lfm2"})
    with pytest.raises(ConfigError, match=r"text_config.*save its language model alone"):
        Checkpoint.open(folder)


def test_an_adapter_is_said_not_to_be_applied(folder: Path) -> None:
    assert Checkpoint.open(folder).notes == ()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert "adapter_config.json: the adapter in this folder is not applied" in Checkpoint.open(folder).notes[0]
    (folder / "adapter_config.json").unlink()
    assert "adapter_model.safetensors: the adapter" in Checkpoint.open(folder).notes[0]
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"a LoRA adapter \(adapter_config\.json\) without the weights"):
        Checkpoint.open(folder)


def test_weight_files_that_are_not_read_are_named(folder: Path) -> None:
    for i in range(5):
        shutil.copy(folder / "model.safetensors", folder / f"model-0000{i}-of-00005.safetensors")
    (note,) = Checkpoint.open(folder).notes
    assert 'model.safetensors holds the model: "model-00000-of-00005.safetensors", ' in note and "and 2 more" in note


def test_buffers_that_are_not_read_are_named(folder: Path) -> None:
    _change(folder, lambda t: {**t, "model.pos_emb.inv_freq": np.ones(8, np.float32)})
    (note,) = Checkpoint.open(folder).notes
    assert "rope_theta" in note and "model.pos_emb.inv_freq" in note
