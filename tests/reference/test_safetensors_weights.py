"""The judge's own reader gives what Checkpoint gives, on every layout, and what transformers makes of odd files."""

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
from lfm_onnx.errors import CheckpointError, LfmOnnxError
from lfm_onnx.reference.model import Reference
from lfm_onnx.reference.safetensors_weights import SafetensorsWeights
from model_variants import VARIANTS, reference_logits
from safetensors.torch import load_file, save_file

MakeVariant = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
STORAGE = [
    {},
    {"layout": "fused"},
    {"dtype": "float16", "shards": 3},
    {"layout": "fused", "shards": 2},
    {"layout": "fused", "dtype": "float32"},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_equals_the_one_that_export_reads(variant_checkpoint: MakeVariant, variant: str) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    assert_equal(SafetensorsWeights(checkpoint.folder), checkpoint)


@pytest.mark.parametrize("storage", STORAGE, ids=str)
def test_layouts_and_dtypes_make_no_difference(variant_checkpoint: MakeVariant, storage: dict[str, object]) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe_untied", **storage))
    assert_equal(SafetensorsWeights(checkpoint.folder), checkpoint)


def assert_equal(found: SafetensorsWeights, expected: Checkpoint) -> None:
    assert found.config == expected.config
    for name in expected.names():
        assert found.shape(name) == expected.shape(name)
        values = found.float32(name)
        assert values.dtype == np.float32 and np.array_equal(values, expected.float32(name)), name


@settings(max_examples=60)
@given(st.data())
def test_rows_are_those_of_the_whole(variant_checkpoint: MakeVariant, data: st.DataObject) -> None:
    folder = variant_checkpoint("moe", **data.draw(st.sampled_from(STORAGE)))
    weights, checkpoint = SafetensorsWeights(folder), Checkpoint.open(folder)
    name = data.draw(st.sampled_from(checkpoint.names()))
    bounds = st.none() | st.integers(0, checkpoint.shape(name)[0] + 3)
    rows = slice(data.draw(bounds), data.draw(bounds))
    np.testing.assert_array_equal(weights.float32(name, rows), checkpoint.float32(name, rows))
    ids = np.array(data.draw(st.lists(st.integers(0, checkpoint.config.vocab_size - 1), min_size=1, max_size=9)))
    np.testing.assert_array_equal(weights.gather(EMBEDDING, ids), checkpoint.gather(EMBEDDING, ids))


@pytest.mark.parametrize("variant", ["dense_untied", "moe_fused_sharded_fp16"])
def test_the_reference_is_the_same_model_whoever_reads(variant_checkpoint: MakeVariant, variant: str) -> None:
    folder = variant_checkpoint(variant)
    ids = np.arange(30)
    ours = Reference(SafetensorsWeights(folder)).forward(ids)[0]
    np.testing.assert_array_equal(ours, Reference(Checkpoint.open(folder)).forward(ids)[0])


# --- files that a config does not describe ----------------------------------------------------------------------------


def other_head(tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: torch.randn_like(tensors[EMBEDDING], dtype=torch.float32).to(tensors[EMBEDDING].dtype)}


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def head_alone(tensors: Tensors) -> Tensors:
    return {HEAD if name == EMBEDDING else name: tensor for name, tensor in tensors.items()}


ODD_FILES: dict[str, tuple[Callable[[Tensors], Tensors], bool]] = {
    "a trained head": (other_head, False),
    "an equal head": (lambda tensors: {**tensors, HEAD: tensors[EMBEDDING].clone()}, True),
    "an equal head of another dtype": (lambda tensors: {**tensors, HEAD: tensors[EMBEDDING].float()}, True),
    "the head alone": (head_alone, True),
    "a base model": (without_prefix, True),
    "a base model with a trained head": (lambda tensors: without_prefix(other_head(tensors)), False),
}


@pytest.fixture
def changed(variant_checkpoint: MakeVariant, tmp_path: Path) -> Callable[[Callable[[Tensors], Tensors]], Path]:
    """changed(change) -> folder of the tied dense variant with other tensors in its file."""

    def make(change: Callable[[Tensors], Tensors]) -> Path:
        folder = Path(shutil.copytree(variant_checkpoint("dense"), tmp_path / "changed"))
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("odd", ODD_FILES)
def test_odd_files_are_the_model_that_transformers_loads(
    changed: Callable[[Callable[[Tensors], Tensors]], Path], odd: str
) -> None:
    change, tied = ODD_FILES[odd]
    folder = changed(change)
    weights = SafetensorsWeights(folder)
    assert weights.config.tie_word_embeddings is tied
    ids = np.arange(20)
    expected = reference_logits(folder, ids)
    np.testing.assert_allclose(Reference(weights).forward(ids)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: {**tensors, HEAD: torch.zeros(7, 64)}, r"lm_head.weight has shape \[7, 64\], expected \[96"),
        (lambda tensors: {**tensors, EMBEDDING: torch.zeros(())}, r"embed_tokens.weight has shape \[\], expected"),
        (lambda tensors: {k: v for k, v in tensors.items() if "embedding_norm" not in k}, "no tensor .*embedding_norm"),
        (lambda tensors: {**tensors, EMBEDDING: tensors[EMBEDDING].double()}, "is F64, expected one of F32, BF16, F16"),
    ],
)
def test_tensors_that_make_no_model_are_refused(
    changed: Callable[[Callable[[Tensors], Tensors]], Path], change: Callable[[Tensors], Tensors], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        SafetensorsWeights(changed(change)).float32(EMBEDDING)


@settings(max_examples=80)
@given(st.data())
def test_damaged_files_are_refused_in_one_line(
    variant_checkpoint: MakeVariant, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(variant_checkpoint("moe"), tmp_path_factory.mktemp("damaged") / "moe"))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        header = int.from_bytes(content[:8], "little")
        for place in data.draw(st.lists(st.integers(0, 8 + header - 1), min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        weights = SafetensorsWeights(folder)
        Reference(weights).forward([1, 2])
    except LfmOnnxError as error:
        assert str(error).isprintable() and len(str(error)) < 600


@pytest.mark.parametrize(
    "index",
    [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {}}],
)
def test_an_index_that_names_no_files_of_the_folder_is_refused(
    variant_checkpoint: MakeVariant, tmp_path: Path, index: dict[str, object]
) -> None:
    folder = Path(shutil.copytree(variant_checkpoint("dense_sharded"), tmp_path / "sharded"))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError):
        SafetensorsWeights(folder)
