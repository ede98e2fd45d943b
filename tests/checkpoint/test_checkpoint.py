"""A checkpoint opens to the same tensors whichever way its files hold them, and a faulty one to one clear line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.checkpoint import hub
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.errors import CheckpointError, ConfigError
from model_variants import VARIANTS, make_checkpoint
from safetensors.numpy import load_file, save_file

VariantCheckpoint = Callable[..., Path]


def _transformers_tensors(folder: Path) -> dict[str, np.ndarray]:
    """What transformers loads from the folder, in float32, its fused experts taken apart to canonical names."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        prefix, _, last = name.rpartition(".")
        for e, expert in enumerate(tensor.numpy() if "experts." in name else ()):
            if last == "down_proj":
                tensors[f"{prefix}.{e}.w2.weight"] = expert
            else:
                tensors[f"{prefix}.{e}.w1.weight"], tensors[f"{prefix}.{e}.w3.weight"] = np.split(expert, 2)
        if "experts." not in name and not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            tensors[name] = tensor.numpy()
    return tensors


def _refusal(source: str | Path, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        Checkpoint.open(source)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    return message


@pytest.fixture
def moe_copy(variant_checkpoint: VariantCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(variant_checkpoint("moe"), tmp_path / "moe"))


@pytest.fixture
def sharded_copy(variant_checkpoint: VariantCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(variant_checkpoint("moe_sharded"), tmp_path / "sharded"))


def _change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _change_config(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def _change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_opens_to_the_tensors_that_transformers_loads(
    variant: str, variant_checkpoint: VariantCheckpoint
) -> None:
    folder = variant_checkpoint(variant)
    checkpoint = Checkpoint.open(folder)
    expected = _transformers_tensors(folder)
    assert sorted(checkpoint.names()) == sorted(expected)
    for name, values in expected.items():
        assert checkpoint.shape(name) == values.shape
        np.testing.assert_array_equal(checkpoint.float32(name), values)
        np.testing.assert_array_equal(checkpoint.raw(name).astype(np.float32), values)
        assert checkpoint.raw(name).nbytes == checkpoint.nbytes(name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_fused_and_per_expert_files_hold_the_same_tensors(dtype: str, variant_checkpoint: VariantCheckpoint) -> None:
    fused = Checkpoint.open(variant_checkpoint("moe", layout="fused", dtype=dtype))
    apart = Checkpoint.open(variant_checkpoint("moe", layout="per_expert", dtype=dtype))
    shards = Checkpoint.open(variant_checkpoint("moe", layout="fused", dtype=dtype, shards=2))
    assert "model.layers.1.feed_forward.experts.gate_up_proj" in load_file(fused.folder / "model.safetensors")
    assert fused.names() == apart.names() == shards.names()
    for name in apart.names():
        assert fused.dtype(name) == apart.dtype(name) == shards.dtype(name)
        np.testing.assert_array_equal(fused.float32(name), apart.float32(name))
        np.testing.assert_array_equal(shards.float32(name), apart.float32(name))
        np.testing.assert_array_equal(fused.raw(name), apart.raw(name))


def test_raw_tensors_are_views_of_the_file_also_within_fused_ones(variant_checkpoint: VariantCheckpoint) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe_fused"))
    name = "model.layers.1.feed_forward.experts.3.w3.weight"
    assert np.shares_memory(checkpoint.raw(name), checkpoint.raw(name))
    assert not checkpoint.raw(name).flags.writeable
    before = checkpoint.float32(name)
    checkpoint.release(name)
    np.testing.assert_array_equal(checkpoint.raw(name).astype(np.float32), before)


def test_float32_is_a_new_array_that_may_be_written(variant_checkpoint: VariantCheckpoint) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("dense_fp32"))
    name = "model.embed_tokens.weight"
    first = checkpoint.float32(name)
    first += 1
    np.testing.assert_array_equal(checkpoint.float32(name) + 1, first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("rows", [slice(0, 7), slice(90, None), slice(40, 40), slice(90, 500), slice(-3, None)])
def test_rows_are_those_of_the_whole_tensor(rows: slice, dtype: str, variant_checkpoint: VariantCheckpoint) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe", layout="fused", dtype=dtype))
    for name in ("model.embed_tokens.weight", "model.layers.2.feed_forward.experts.5.w2.weight"):
        np.testing.assert_array_equal(checkpoint.float32(name, rows), checkpoint.float32(name)[rows])
    with pytest.raises(ValueError, match="step 1"):
        checkpoint.float32("model.embed_tokens.weight", slice(0, 8, 2))


def test_a_tensor_larger_than_one_read_is_converted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, "dense"))
    monkeypatch.setattr("lfm_onnx.checkpoint.checkpoint.READ_BYTES", 1000)
    for name in checkpoint.names():
        np.testing.assert_array_equal(checkpoint.float32(name), checkpoint.raw(name).astype(np.float32))


def test_files_of_mixed_dtypes_are_read_tensor_by_tensor(moe_copy: Path) -> None:
    original = Checkpoint.open(shutil.copytree(moe_copy, moe_copy.with_name("original")))
    norm, gate = "model.embedding_norm.weight", "model.layers.1.feed_forward.gate.weight"
    _change_tensors(moe_copy, lambda t: t.update({norm: t[norm].astype(np.float32), gate: t[gate].astype(np.float16)}))
    mixed = Checkpoint.open(moe_copy)
    assert [mixed.dtype(name) for name in (norm, gate, "model.embed_tokens.weight")] == ["F32", "F16", "BF16"]
    assert mixed.dtype("model.layers.1.feed_forward.expert_bias") == "F32"
    np.testing.assert_array_equal(mixed.float32(norm), original.float32(norm))
    np.testing.assert_allclose(mixed.float32(gate), original.float32(gate), rtol=1e-3, atol=1e-6)


def test_links_to_files_elsewhere_open_as_in_the_hub_cache(moe_copy: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for i, file in enumerate(sorted(moe_copy.iterdir())):
        file.rename(tmp_path / f"blob{i}")
        (snapshot / file.name).symlink_to(Path("..") / f"blob{i}")
    assert len(Checkpoint.open(snapshot).names()) == 106


def test_a_copy_of_the_tied_head_and_rotary_buffers_are_tolerated(moe_copy: Path) -> None:
    names = Checkpoint.open(moe_copy).names()
    _change_tensors(
        moe_copy,
        lambda t: t.update(
            {
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
                "model.pos_emb.inv_freq": np.ones(8, np.float32),
                "model.layers.2.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
            }
        ),
    )
    assert Checkpoint.open(moe_copy).names() == names
    _change_tensors(moe_copy, lambda t: t.update({"lm_head.weight": np.ones((95, 64), np.float32)}))
    assert 'tensor "lm_head.weight" has shape [95, 64], config.json asks for [96, 64]' in _refusal(moe_copy)


def test_the_fingerprint_changes_with_config_and_weights_only(moe_copy: Path) -> None:
    fingerprint = Checkpoint.open(moe_copy).fingerprint()
    (moe_copy / "README.md").write_text("notes")
    assert Checkpoint.open(moe_copy).fingerprint() == fingerprint
    weights = moe_copy / "model.safetensors"
    status = weights.stat()
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    touched = Checkpoint.open(moe_copy).fingerprint()
    assert touched != fingerprint
    assert Checkpoint.open(_change_config(moe_copy, rope_theta=2.0)).fingerprint() not in (touched, fingerprint)


def test_tokenizer_files_are_those_that_exist(moe_copy: Path) -> None:
    assert Checkpoint.open(moe_copy).tokenizer_files() == []
    (moe_copy / "tokenizer.json").write_text("{}")
    (moe_copy / "chat_template.jinja").write_text("")
    files = Checkpoint.open(moe_copy).tokenizer_files()
    assert [file.name for file in files] == ["tokenizer.json", "chat_template.jinja"]


def test_missing_tensors_are_counted_and_the_first_named(moe_copy: Path) -> None:
    _change_tensors(moe_copy, lambda t: t.pop("model.layers.0.ffn_norm.weight"))
    assert '1 missing tensor: "model.layers.0.ffn_norm.weight"' in _refusal(moe_copy)
    _change_tensors(moe_copy, lambda t: [t.pop(name) for name in list(t) if ".experts." in name])
    assert '"model.layers.1.feed_forward.experts.0.w1.weight"' in (message := _refusal(moe_copy))
    assert "73 missing tensors: " in message and "and 70 more" in message


def test_extra_tensors_are_counted_and_the_first_named(moe_copy: Path) -> None:
    extra = {f"model.layers.{i}.ffn_norm.weight": np.ones(64, np.float32) for i in range(4, 9)}
    _change_tensors(moe_copy, lambda t: t.update(extra))
    assert '5 unexpected tensors: "model.layers.4.ffn_norm.weight", ' in (message := _refusal(moe_copy))
    assert "and 2 more" in message


def test_one_layer_in_both_expert_layouts_is_refused(moe_copy: Path, variant_checkpoint: VariantCheckpoint) -> None:
    fused = load_file(variant_checkpoint("moe_fused") / "model.safetensors")
    name = "model.layers.1.feed_forward.experts.down_proj"
    _change_tensors(moe_copy, lambda t: t.update({name: fused[name]}))
    assert f'1 unexpected tensor: "{name}"' in _refusal(moe_copy)


@pytest.mark.parametrize(
    ("variant", "name", "axis"),
    [
        ("moe", "model.embed_tokens.weight", 0),
        ("moe", "model.layers.0.conv.conv.weight", 2),
        ("moe", "model.layers.1.feed_forward.expert_bias", 0),
        ("moe", "model.layers.3.feed_forward.experts.7.w2.weight", 1),
        ("moe_fused", "model.layers.1.feed_forward.experts.gate_up_proj", 1),
        ("moe_fused", "model.layers.1.feed_forward.experts.down_proj", 0),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    variant: str, name: str, axis: int, variant_checkpoint: VariantCheckpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(variant_checkpoint(variant), tmp_path / "copy"))
    _change_tensors(folder, lambda t: t.update({name: np.delete(t[name], 0, axis)}))
    expected = list(load_file(variant_checkpoint(variant) / "model.safetensors")[name].shape)
    found = [size - (i == axis) for i, size in enumerate(expected)]
    assert f'tensor "{name}" has shape {found}, config.json asks for {expected}' in _refusal(folder)


def test_a_transposed_fused_expert_is_refused(variant_checkpoint: VariantCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(variant_checkpoint("moe_fused"), tmp_path / "copy"))
    name = "model.layers.1.feed_forward.experts.gate_up_proj"
    _change_tensors(folder, lambda t: t.update({name: np.ascontiguousarray(t[name].transpose(0, 2, 1))}))
    assert f'tensor "{name}" has shape [8, 64, 128], config.json asks for [8, 128, 64]' in _refusal(folder)


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [
        ("int8", "quantized checkpoints"),
        ("float8_e4m3fn", "quantized checkpoints"),
        ("float64", "convert the checkpoint"),
    ],
)
def test_weights_of_other_dtypes_are_refused_with_a_hint(dtype: str, hint: str, moe_copy: Path) -> None:
    import ml_dtypes

    name = "model.layers.0.conv.in_proj.weight"
    stored = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    _change_tensors(moe_copy, lambda t: t.update({name: t[name].astype(np.float32).astype(stored)}))
    message = _refusal(moe_copy)
    assert f'tensor "{name}" has dtype ' in message and hint in message


def test_a_config_that_describes_another_model_is_contradicted_by_the_tensors(moe_copy: Path) -> None:
    _change_config(moe_copy, num_experts=16)
    assert "feed_forward.gate.weight" in _refusal(moe_copy)
    _change_config(moe_copy, num_experts=8, tie_word_embeddings=False)
    assert '1 missing tensor: "lm_head.weight"' in _refusal(moe_copy)
    _change_config(moe_copy, num_experts_per_tok=9)
    message = _refusal(moe_copy, ConfigError)
    assert str(moe_copy / "config.json") in message and "num_experts_per_tok is 9" in message


def test_a_config_of_a_million_experts_is_refused_quickly(moe_copy: Path) -> None:
    layers = 1024
    _change_config(moe_copy, num_experts=4096, num_hidden_layers=layers, layer_types=["conv"] * layers)
    assert "has shape" in _refusal(moe_copy)


def test_truncated_and_corrupt_files_are_named(sharded_copy: Path) -> None:
    shard = sharded_copy / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-10])
    assert str(shard) in (message := _refusal(sharded_copy)) and "its data ends 10 bytes after the end" in message
    shard.write_bytes(data[:100])
    assert str(shard) in (message := _refusal(sharded_copy)) and "truncated" in message
    shard.write_bytes(data[:8] + b"\0" * (len(data) - 8))
    assert str(shard) in (message := _refusal(sharded_copy)) and "corrupt header" in message


def test_a_file_cut_short_after_opening_is_noticed_when_it_is_read(moe_copy: Path) -> None:
    checkpoint = Checkpoint.open(moe_copy)
    os.truncate(moe_copy / "model.safetensors", 30_000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends earlier than when it was opened"):
        for name in checkpoint.names():
            checkpoint.float32(name)
    (moe_copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        checkpoint.float32("model.embed_tokens.weight")


def test_an_index_that_names_a_missing_shard_is_refused(sharded_copy: Path) -> None:
    (sharded_copy / "model-00002-of-00003.safetensors").unlink()
    message = _refusal(sharded_copy)
    assert 'names the shard "model-00002-of-00003.safetensors", which is not in the folder' in message


def test_an_index_that_places_a_tensor_in_the_wrong_shard_is_refused(sharded_copy: Path) -> None:
    name = "model.embedding_norm.weight"

    def misplace(weight_map: dict[str, str]) -> None:
        weight_map[name] = next(shard for shard in set(weight_map.values()) if shard != weight_map[name])

    message = _refusal(_change_index(sharded_copy, misplace))
    assert f'places tensor "{name}" in model-' in message and "which does not hold it" in message


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", "C:x.safetensors", "x.bin", "", 3,
     None, "a\n.safetensors", "\0.safetensors", "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_an_index_that_leads_out_of_the_folder_is_refused(shard: object, sharded_copy: Path) -> None:
    def lead_out(weight_map: dict[str, Any]) -> None:
        weight_map["model.embedding_norm.weight"] = shard

    assert "which is not a .safetensors file of this folder" in _refusal(_change_index(sharded_copy, lead_out))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\udcff"])
def test_an_index_that_is_no_index_is_refused(text: str, sharded_copy: Path) -> None:
    path = sharded_copy / "model.safetensors.index.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert _refusal(sharded_copy).startswith(f"{path}: ")


def test_a_tensor_in_two_shards_is_refused(sharded_copy: Path) -> None:
    first, second = (sharded_copy / f"model-0000{k}-of-00003.safetensors" for k in (1, 2))
    tensors, others = load_file(first), load_file(second)
    name = next(iter(tensors))
    save_file({**others, name: tensors[name]}, second)
    assert f'tensor "{name}" is in both {first.name} and {second.name}' in _refusal(sharded_copy)


def test_a_wrong_path_is_told_what_is_there_instead(tmp_path: Path, moe_copy: Path) -> None:
    assert "no such folder" in _refusal(tmp_path / "nowhere")
    assert "no such folder" in _refusal("x" * 200)
    assert "cannot be read" in _refusal("x" * 300)
    assert "has no config.json" in _refusal(tmp_path)
    assert "a file; give the checkpoint folder" in _refusal(moe_copy / "model.safetensors")
    (tmp_path / "model.gguf").touch()
    assert "looks like a GGUF model" in _refusal(tmp_path)
    assert "a GGUF file" in _refusal(tmp_path / "model.gguf")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    assert "merge it into its base model" in _refusal(tmp_path / "adapter")


def test_a_folder_without_safetensors_is_told_what_it_has(moe_copy: Path) -> None:
    (moe_copy / "model.safetensors").unlink()
    assert "no weights; expected model.safetensors" in _refusal(moe_copy)
    (moe_copy / "model.gguf").touch()
    assert "only GGUF weights" in _refusal(moe_copy)
    (moe_copy / "pytorch_model.bin").touch()
    assert "only PyTorch .bin weights" in _refusal(moe_copy)
    (moe_copy / "model-00001-of-00002.safetensors").touch()
    assert "neither model.safetensors nor model.safetensors.index.json" in _refusal(moe_copy)


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("LiquidAI/LFM2-1.2B", True),
        ("org/name", True),
        ("name", False),
        ("./org/name", False),
        ("/org/name", False),
        ("org/name/more", False),
        ("../name", False),
        ("org/..", False),
        ("org/na me", False),
        ("org/name\n", False),
    ],
)
def test_only_org_slash_name_is_taken_for_a_hub_id(text: str, is_id: bool) -> None:
    assert hub.looks_like_hub_id(text) == is_id


def test_a_hub_id_downloads_only_what_an_export_needs(moe_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(hub_id: str, **options: Any) -> str:
        asked.update(options, hub_id=hub_id)
        return str(moe_copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(moe_copy)
    lines: list[str] = []
    checkpoint = Checkpoint.open("some-org/some-model", revision="v1", progress=lines.append)
    assert checkpoint.source == "some-org/some-model" and checkpoint.folder == moe_copy
    assert asked["hub_id"] == "some-org/some-model" and asked["revision"] == "v1" and len(lines) == 1

    from huggingface_hub.utils import filter_repo_objects

    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "modeling_lfm.py", "model.gguf",
             "pytorch_model.bin", "original/model.safetensors", "chat_template.jinja", "README.md"]  # fmt: skip
    wanted = list(filter_repo_objects(files, allow_patterns=asked["allow_patterns"]))
    assert wanted == ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"]


def test_a_local_folder_goes_before_a_hub_id(moe_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(moe_copy.parent.parent)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    assert Checkpoint.open(f"{moe_copy.parent.name}/{moe_copy.name}").config.is_moe


class ConnectTimeout(Exception):
    """Stands for what the hub client's HTTP library raises, which has changed between its versions."""


def _hub_errors() -> list[tuple[Exception, str]]:
    from huggingface_hub import errors

    response: Any = SimpleNamespace(status_code=502, headers={}, request=None)
    return [
        (errors.RepositoryNotFoundError("404\n\nRepository Not Found", response=response), "no such public model"),
        (errors.GatedRepoError("403\nCannot access", response=response), "access to it is restricted"),
        (errors.RevisionNotFoundError("404", response=response), "no revision 'v9'"),
        (errors.HfHubHTTPError("502\nbad\ngateway", response=response), "answered with status 502"),
        (errors.LocalEntryNotFoundError("x\ny"), "the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("x\ny"), "offline mode is on"),
        (errors.HFValidationError("x\ny"), "not a valid hub id"),
        (ConnectTimeout("timed\nout"), "ConnectTimeout (timed out); check the network"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ]


@pytest.mark.parametrize("index", range(9))
def test_each_failure_of_the_hub_is_one_line_with_both_readings(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    error, said = _hub_errors()[index]

    def snapshot_download(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open("some-org/some-model", revision="v9")
    message = str(caught.value)
    assert message.startswith("some-org/some-model: no such local folder, and as a hub id it could not be downloaded")
    assert said in message and message.isprintable()


def test_without_network_a_hub_id_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = _refusal("some-org/some-model")
    assert "no such local folder" in message and "not in the local cache" in message


def test_the_sample_model_opens(tiny_lfm: Path) -> None:
    checkpoint = Checkpoint.open(tiny_lfm)
    assert checkpoint.config.is_moe and checkpoint.config.conv_layers and checkpoint.config.attention_layers
    assert all(np.isfinite(checkpoint.float32(name)).all() for name in checkpoint.names())
    assert {file.name for file in checkpoint.tokenizer_files()} >= {"tokenizer.json", "tokenizer_config.json"}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_corruption_of_a_shard_or_its_index_is_refused_or_harmless(
    data: st.DataObject, variant_checkpoint: VariantCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "corrupt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(variant_checkpoint("dense_sharded"), folder)
    path = folder / data.draw(st.sampled_from(sorted(file.name for file in folder.iterdir())))
    valid = path.read_bytes()
    # Most of a shard is weights, which may hold anything: the header is where a corruption can hurt.
    at, length = data.draw(st.integers(0, min(len(valid), 2000))), data.draw(st.integers(0, 30))
    path.write_bytes(valid[:at] + data.draw(st.binary(max_size=30)) + valid[at + length :])
    try:
        checkpoint = Checkpoint.open(folder)
    except (CheckpointError, ConfigError) as error:
        assert str(error).isprintable()
    else:
        for name in checkpoint.names():
            assert checkpoint.float32(name).shape == checkpoint.raw(name).shape == checkpoint.shape(name)
