"""The exported graph and its configuration files are what the existing clients expect, name by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from exported_model import ExportedModel, export_quietly
from lfm_onnx.artifact.precision import FP16, FP32, Precision
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.export import OpsProfile
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo

VARIANTS = ["dense", "dense_conv_length_4", "dense_own_head_dim", "dense_conv_only", "dense_attention_only", "moe"]

CONTRIB_SINCE_1_24 = {"GroupQueryAttention", "MoE", "SkipSimplifiedLayerNormalization"}
"""com.microsoft operators that a graph may use; all of them are in ONNX Runtime 1.24, which Windows ML ships."""

ops_profiles = pytest.mark.parametrize("ops_profile", OpsProfile, ids=[profile.value for profile in OpsProfile])
variants = pytest.mark.parametrize("variant", VARIANTS)


class Exported:
    """An artifact, its checkpoint's config, and its graph without weights."""

    def __init__(self, checkpoint: Path, folder: Path, path: Path) -> None:
        self.folder, self.path = folder, path
        self.config = LfmConfig.load(checkpoint)
        self.proto = onnx.load(path, load_external_data=False)

    @property
    def graph(self) -> onnx.GraphProto:
        return self.proto.graph


@pytest.fixture(scope="module")
def exported(
    exported_artifact: ArtifactFactory,
) -> Callable[..., Exported]:
    """exported(variant, ops_profile, precision) -> the artifact, its graph loaded once."""

    @cache
    def artifact(variant: str, ops_profile: OpsProfile = OpsProfile.CUSTOM, precision: Precision = FP32) -> Exported:
        folder = exported_artifact(variant, ops_profile, precision)
        return Exported(exported_artifact.checkpoint(variant), folder, folder / "onnx" / precision.model_file)

    return artifact


def signature(value: onnx.ValueInfoProto) -> tuple[int, list[str | int]]:
    """Element type and dimensions, symbolic ones by name."""
    tensor = value.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the graph, of the functions and of every subgraph in them."""

    def walk(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from walk(iter(attribute.g.node))

    yield from walk(iter(proto.graph.node))
    for function in proto.functions:
        yield from walk(iter(function.node))


# --- inputs and outputs -----------------------------------------------------------------------------------------------


@variants
@ops_profiles
def test_inputs_and_outputs_are_the_contract(
    variant: str, ops_profile: OpsProfile, exported: Callable[..., Exported]
) -> None:
    artifact = exported(variant, ops_profile)
    config = artifact.config
    conv = (TensorProto.FLOAT, ["batch_size", config.hidden_size, config.conv_L_cache])
    kv_heads, size = config.num_key_value_heads, config.head_dim
    past_kv = (TensorProto.FLOAT, ["batch_size", kv_heads, "past_sequence_length", size])
    present_kv = (TensorProto.FLOAT, ["batch_size", kv_heads, "total_sequence_length", size])

    inputs: dict[str, tuple[int, list[str | int]]] = {
        "input_ids": (TensorProto.INT64, ["batch_size", "sequence_length"]),
        "attention_mask": (TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    }
    outputs: dict[str, tuple[int, list[str | int]]] = {
        "logits": (TensorProto.FLOAT, ["batch_size", 1, config.vocab_size])
    }
    for layer, kind in enumerate(config.layer_types):
        if kind == "conv":
            inputs[f"past_conv.{layer}"] = conv
            outputs[f"present_conv.{layer}"] = conv
        else:
            for part in ("key", "value"):
                inputs[f"past_key_values.{layer}.{part}"] = past_kv
                outputs[f"present.{layer}.{part}"] = present_kv
    inputs["num_logits_to_keep"] = (TensorProto.INT64, [])

    assert {value.name: signature(value) for value in artifact.graph.input} == inputs
    assert {value.name: signature(value) for value in artifact.graph.output} == outputs
    assert artifact.graph.output[0].name == "logits"


@ops_profiles
def test_num_logits_to_keep_has_a_default_that_a_caller_may_override(
    ops_profile: OpsProfile, exported: Callable[..., Exported]
) -> None:
    artifact = exported("moe", ops_profile)
    (initial,) = [tensor for tensor in artifact.graph.initializer if tensor.name == "num_logits_to_keep"]
    assert onnx.numpy_helper.to_array(initial).tolist() == 1
    model = ExportedModel(artifact.path)
    assert "num_logits_to_keep" not in [value.name for value in model.session.get_inputs()]
    assert [value.name for value in model.session.get_overridable_initializers()] == ["num_logits_to_keep"]
    assert model.feed([5, 6, 7])[0].shape[0] == 1
    assert model.feed([5, 6, 7], keep=2)[0].shape[0] == 2
    assert model.feed([5, 6, 7], keep=0)[0].shape[0] == 3


@ops_profiles
def test_fp16_weights_leave_the_interface_float32(ops_profile: OpsProfile, exported: Callable[..., Exported]) -> None:
    full, half = exported("moe", ops_profile), exported("moe", ops_profile, FP16)
    assert half.path.name == "model_fp16.onnx"
    for sides in ("input", "output"):
        assert [(value.name, signature(value)) for value in getattr(half.graph, sides)] == [
            (value.name, signature(value)) for value in getattr(full.graph, sides)
        ]
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    for name, dtype in types.items():
        narrow = name.endswith(
            ("proj.weight", "embed_tokens.weight", "w1.weight", "w2.weight", "w3.weight", "down_proj", "gate_up")
        )
        if name.startswith("model.") and ("norm" in name or "gate.weight" in name or "expert_bias" in name):
            assert not narrow
        if name.startswith("model."):
            assert dtype == (TensorProto.FLOAT16 if narrow else TensorProto.FLOAT), name


@variants
@ops_profiles
def test_the_residual_stream_has_a_name_after_each_layer(
    variant: str, ops_profile: OpsProfile, exported: Callable[..., Exported]
) -> None:
    artifact = exported(variant, ops_profile)
    produced = {output for node in artifact.graph.node for output in node.output}
    layers = range(artifact.config.num_hidden_layers)
    assert {f"hidden_states.{name}" for name in (*layers, "embed", "final")} <= produced


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [FP32, FP16], ids=["fp32", "fp16"])
@variants
@ops_profiles
def test_onnx_checker_accepts_the_model(
    variant: str, ops_profile: OpsProfile, precision: Precision, exported: Callable[..., Exported]
) -> None:
    onnx.checker.check_model(str(exported(variant, ops_profile, precision).path), full_check=True)


@variants
def test_the_standard_profile_needs_nothing_but_ai_onnx_and_our_functions(
    variant: str, exported: Callable[..., Exported]
) -> None:
    proto = exported(variant, OpsProfile.STANDARD).proto
    assert {opset.domain for opset in proto.opset_import} == {"", "ai.liquid"}
    assert {node.domain for node in proto.graph.node} <= {"", "ai.liquid"}
    for function in proto.functions:
        assert {opset.domain for opset in function.opset_import} == {""}
    assert {node.domain for node in all_nodes(proto) if node.op_type not in local_functions(proto)} == {""}


@variants
def test_the_custom_profile_uses_no_operator_newer_than_onnx_runtime_1_24(
    variant: str, exported: Callable[..., Exported]
) -> None:
    proto = exported(variant, OpsProfile.CUSTOM).proto
    contrib = {node.op_type for node in all_nodes(proto) if node.domain == "com.microsoft"}
    assert contrib <= CONTRIB_SINCE_1_24
    assert {node.domain for node in all_nodes(proto)} <= {"", "ai.liquid", "com.microsoft"}
    assert {(opset.domain, opset.version) for opset in proto.opset_import} == {
        ("", 21),
        ("com.microsoft", 1),
        ("ai.liquid", 1),
    }
    assert proto.ir_version == 10


@variants
@ops_profiles
def test_each_custom_node_has_its_function_and_passes_every_attribute(
    variant: str, ops_profile: OpsProfile, exported: Callable[..., Exported]
) -> None:
    artifact = exported(variant, ops_profile)
    functions = local_functions(artifact.proto)
    nodes = [node for node in artifact.graph.node if node.domain == "ai.liquid"]
    for node in nodes:
        function = functions[node.op_type]
        assert not function.attribute_proto, "an attribute with a default may be dropped when the function is inlined"
        assert {attribute.name for attribute in node.attribute} == set(function.attribute)
        assert len(node.input) == len(function.input)
    config = artifact.config
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    assert sum(node.op_type == "GatedShortConv" for node in nodes) == len(config.conv_layers)
    assert sum(node.op_type == "SparseMoE" for node in nodes) == moe_layers
    assert set(functions) == {node.op_type for node in nodes}


def local_functions(proto: onnx.ModelProto) -> dict[str, onnx.FunctionProto]:
    assert all(function.domain == "ai.liquid" for function in proto.functions)
    return {function.name: function for function in proto.functions}


def test_onnxs_own_evaluator_runs_the_standard_profile(exported: Callable[..., Exported]) -> None:
    """What the file says is enough: a runtime without any of ONNX Runtime's fusions gives the same logits."""
    from onnx.reference import ReferenceEvaluator

    artifact = exported("moe", OpsProfile.STANDARD)
    model = ExportedModel(artifact.path)
    ids = np.array([[9, 8, 7, 6, 5], [4, 3, 2, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    states = model.empty_states(2)
    expected, _ = model.run(ids, mask, states, 2)

    evaluator = ReferenceEvaluator(onnx.load(artifact.path))
    feeds = {"input_ids": ids, "attention_mask": mask, "num_logits_to_keep": np.array(2), **states}
    logits = evaluator.run(["logits"], feeds)[0]

    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * expected.std())


@ops_profiles
def test_decoding_reads_the_chosen_experts_and_no_others(
    ops_profile: OpsProfile, exported: Callable[..., Exported], tmp_path: Path
) -> None:
    """NaN in an expert's weights: the token's logits become NaN for top_k experts and stay bit for bit for the rest."""
    artifact = exported("moe", ops_profile)
    config = artifact.config
    layer = config.num_hidden_layers - 1
    healthy, _ = ExportedModel(artifact.path).feed([11])
    read = []
    for expert in range(config.num_experts):
        folder = Path(shutil.copytree(artifact.path.parent, tmp_path / str(expert)))
        for tensor in artifact.graph.initializer:
            if f"layers.{layer}.feed_forward.experts." in tensor.name:
                poison(folder, tensor, expert)
        logits, _ = ExportedModel(folder / artifact.path.name).feed([11])
        if np.isnan(logits).all():
            read.append(expert)
        else:
            np.testing.assert_array_equal(logits, healthy)
    assert len(read) == config.num_experts_per_tok


def poison(folder: Path, tensor: onnx.TensorProto, expert: int) -> None:
    """Fill one expert's part of a float32 tensor [experts, ...] in its data file with NaN."""
    place = ExternalDataInfo(tensor)
    count = int(np.prod(tensor.dims[1:]))
    with (folder / place.location).open("r+b") as file:
        file.seek((place.offset or 0) + expert * count * 4)
        file.write(np.full(count, np.nan, np.float32).tobytes())


@variants
def test_runtime_optimizations_keep_the_fused_operators(
    variant: str, exported: Callable[..., Exported], tmp_path: Path
) -> None:
    """After ONNX Runtime has inlined our functions, one MoE a layer is left, and no copy of expert weights."""
    artifact = exported(variant, OpsProfile.CUSTOM)
    ExportedModel(artifact.path, optimized=tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    config = artifact.config
    nodes = list(all_nodes(optimized))
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    assert sum(node.op_type == "MoE" for node in nodes) == moe_layers
    assert sum(node.op_type == "GroupQueryAttention" for node in nodes) == len(config.attention_layers)
    for node in nodes:
        if any(".experts." in name for name in node.input):
            assert node.op_type == "MoE"


# --- configuration files ----------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize(
    ("precision", "file", "dtype"), [(FP32, "model.onnx", "fp32"), (FP16, "model_fp16.onnx", "fp16")]
)
def test_config_json_is_the_checkpoints_with_a_section_for_transformers_js(
    precision: Precision, file: str, dtype: str, exported: Callable[..., Exported], tiny_lfm: Path
) -> None:
    config = read_json(exported(SAMPLE, precision=precision).folder / "config.json")
    assert config.pop("transformers.js_config") == {"use_external_data_format": {file: 1}, "dtype": dtype}
    assert config == read_json(tiny_lfm / "config.json")


@ops_profiles
def test_genai_config_has_the_keys_that_genai_knows(
    ops_profile: OpsProfile, exported: Callable[..., Exported], tiny_lfm: Path
) -> None:
    artifact = exported(SAMPLE, ops_profile)
    genai = read_json(artifact.folder / "genai_config.json")
    source = read_json(tiny_lfm / "config.json")
    assert set(genai) == {"model", "search"}
    model, search = genai["model"], genai["search"]
    assert isinstance(model, dict) and isinstance(search, dict)
    decoder = model.pop("decoder")
    assert model == {
        "type": "lfm2",
        "bos_token_id": source["bos_token_id"],
        "eos_token_id": source["eos_token_id"],
        "pad_token_id": source["pad_token_id"],
        "context_length": source["max_position_embeddings"],
        "vocab_size": source["vocab_size"],
    }
    assert decoder.pop("session_options") == {"log_id": "onnxruntime-genai", "provider_options": []}
    assert decoder == {
        "filename": "onnx/model.onnx",
        "head_size": 32,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 6,
        "layer_types": source["layer_types"],
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
            "past_conv_names": "past_conv.%d",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
            "present_conv_names": "present_conv.%d",
        },
    }
    assert search["past_present_share_buffer"] is (ops_profile is OpsProfile.CUSTOM)
    assert 1 <= search["max_length"] <= source["max_position_embeddings"]
    known = {"do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_length"}
    assert set(search) <= known | {"past_present_share_buffer"}


CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<think>Greet.</think>Hi."},
        {"role": "user", "content": "And now?"},
        {"role": "tool", "content": "17"},
    ],
]


def test_tokenizer_files_serve_every_client(exported: Callable[..., Exported], tiny_lfm: Path, tmp_path: Path) -> None:
    """The template stands where each client looks for it, and renders as the checkpoint's does."""
    folder = exported(SAMPLE).folder
    assert read_json(folder / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (folder / name).read_bytes() == (tiny_lfm / name).read_bytes()
    assert read_json(folder / "generation_config.json") == read_json(tiny_lfm / "generation_config.json")

    inside = ChatTokenizer.load(without_template_file(folder, tmp_path / "inside"))
    original = ChatTokenizer.load(tiny_lfm)
    tools = [{"name": "lookup", "parameters": {"type": "object"}}]
    for messages in CONVERSATIONS:
        assert inside.render(messages) == original.render(messages)
        assert inside.render(messages, tools=tools) == original.render(messages, tools=tools)


def test_a_chat_template_within_tokenizer_config_is_written_out_as_well(tiny_lfm: Path, tmp_path: Path) -> None:
    checkpoint = without_template_file(tiny_lfm, tmp_path / "checkpoint")
    template = (tiny_lfm / "chat_template.jinja").read_text(encoding="utf-8")
    settings = read_json(checkpoint / "tokenizer_config.json")
    settings["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    export_quietly(checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == template
    inside = ChatTokenizer.load(without_template_file(tmp_path / "out", tmp_path / "inside"))
    for messages in CONVERSATIONS:
        assert inside.render(messages) == ChatTokenizer.load(tiny_lfm).render(messages)


def without_template_file(folder: Path, copy: Path) -> Path:
    """A copy of the folder that has its template in tokenizer_config.json alone."""
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").unlink()
    shutil.rmtree(copy / "additional_chat_templates", ignore_errors=True)
    return copy


@pytest.mark.parametrize("precision", [FP32, FP16], ids=["fp32", "fp16"])
@ops_profiles
def test_the_graph_carries_the_manifests_identity(
    ops_profile: OpsProfile, precision: Precision, exported: Callable[..., Exported]
) -> None:
    artifact = exported(SAMPLE, ops_profile, precision)
    manifest = read_json(artifact.folder / "lfm_manifest.json")
    source, model, generator = manifest["source"], manifest["model"], manifest["generator"]
    assert isinstance(source, dict) and isinstance(model, dict) and isinstance(generator, dict)
    variants = manifest["variants"]
    assert isinstance(variants, dict)
    ((name, variant),) = variants.items()
    said = {entry.key: entry.value for entry in artifact.proto.metadata_props}
    assert all(key.startswith("lfm_onnx.") for key in said)
    identity = {
        "lfm_onnx.version": generator["version"],
        "lfm_onnx.source": source["checkpoint"],
        "lfm_onnx.config_sha256": source["config_sha256"],
        "lfm_onnx.model_type": model["model_type"],
        "lfm_onnx.precision": name,
        "lfm_onnx.ops": variant["ops"],
        "lfm_onnx.context_length": str(model["context_length"]),
    }
    assert {key: said.get(key) for key in identity} == identity
    assert (artifact.proto.producer_name, artifact.proto.producer_version) == ("lfm-onnx", generator["version"])
    assert (name, variant["ops"], variant["opset"]) == (precision.name, ops_profile.value, 21)
