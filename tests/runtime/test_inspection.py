"""An inspection's figures are those of the files and of the model's formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from artifact_factory import ArtifactFactory
from click.testing import CliRunner
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.cli.inspect import inspect as inspect_command
from lfm_onnx.errors import ArtifactError
from lfm_onnx.export import OpsProfile
from lfm_onnx.runtime.inspection import Inspection, inspect_artifact

VARIANTS = ["dense", "dense_untied", "moe", "moe_top_4"]


@pytest.fixture(scope="module", params=["custom", "standard"])
def inspected(
    request: pytest.FixtureRequest, exported_artifact: ArtifactFactory
) -> Callable[[str], tuple[Checkpoint, Path, Inspection]]:
    """inspected(variant) -> checkpoint, artifact folder, inspection."""
    made: dict[str, tuple[Checkpoint, Path, Inspection]] = {}

    def inspect(variant: str) -> tuple[Checkpoint, Path, Inspection]:
        if variant not in made:
            checkpoint = Checkpoint.open(exported_artifact.checkpoint(variant))
            folder = exported_artifact(variant, OpsProfile(request.param))
            made[variant] = checkpoint, folder, inspect_artifact(folder)
        return made[variant]

    return inspect


Inspected = Callable[[str], tuple[Checkpoint, Path, Inspection]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_checkpoint(variant: str, inspected: Inspected) -> None:
    checkpoint, _, inspection = inspected(variant)
    assert inspection.parameters == sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names())


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_on_disk_are_those_of_the_model_files(variant: str, inspected: Inspected) -> None:
    _, folder, inspection = inspected(variant)
    assert inspection.bytes_on_disk == sum(path.stat().st_size for path in (folder / "onnx").iterdir())
    assert sum(item.bytes for item in inspection.tensor_classes) <= inspection.bytes_on_disk


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_decoded_token_reads_the_chosen_experts_and_of_a_mere_table_one_row(
    variant: str, inspected: Inspected
) -> None:
    checkpoint, _, inspection = inspected(variant)
    config = checkpoint.config
    expected = 0.0
    for name in checkpoint.names():
        elements = float(np.prod(checkpoint.shape(name)))
        if ".experts." in name:
            elements *= config.num_experts_per_tok / config.num_experts
        elif "embed_tokens" in name and not config.tie_word_embeddings:
            elements /= config.vocab_size
        expected += 4 * elements
    constants = sum(item.touched_bytes for item in inspection.tensor_classes if item.name in ("rope", "constants"))
    assert inspection.touched_bytes_per_token == expected + constants
    assert constants < 1000


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_bytes_are_those_of_caches_and_convolutions(variant: str, inspected: Inspected) -> None:
    checkpoint, _, inspection = inspected(variant)
    config = checkpoint.config
    for length, size in inspection.state_bytes.items():
        kv = 2 * len(config.attention_layers) * config.kv_dim * length
        conv = len(config.conv_layers) * config.hidden_size * config.conv_L_cache
        assert size == 4 * (kv + conv)
    assert max(inspection.state_bytes) == inspection.context_length


def test_operators_functions_inputs_and_outputs_are_those_of_the_file(inspected: Inspected) -> None:
    checkpoint, folder, inspection = inspected("moe")
    graph = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph
    assert sum(item.count for item in inspection.operators) == len(graph.node)
    assert [value.name for value in inspection.inputs] == [value.name for value in graph.input]
    assert [value.name for value in inspection.outputs] == [value.name for value in graph.output]
    logits = next(value for value in inspection.outputs if value.name == "logits")
    assert (logits.dtype, logits.shape) == ("float32", ("batch_size", 1, checkpoint.config.vocab_size))
    calls = {(item.domain, item.name): item.calls for item in inspection.functions}
    assert calls["ai.liquid", "GatedShortConv"] == len(checkpoint.config.conv_layers)
    moe_layers = sum(map(checkpoint.config.is_moe_layer, range(checkpoint.config.num_hidden_layers)))
    assert calls["ai.liquid", "SparseMoE"] == moe_layers


def test_every_weight_belongs_to_a_class_of_its_own_kind(inspected: Inspected) -> None:
    checkpoint, _, inspection = inspected("moe")
    classes = {item.name: item for item in inspection.tensor_classes}
    config = checkpoint.config
    moe_layers = sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
    experts = moe_layers * config.num_experts * 3 * config.moe_intermediate_size * config.hidden_size
    assert classes["experts"].elements == experts
    assert classes["router"].elements == moe_layers * config.num_experts * (config.hidden_size + 1)
    assert classes["short_conv"].elements == len(config.conv_layers) * config.hidden_size * config.conv_L_cache
    assert classes["embedding"].elements == config.vocab_size * config.hidden_size
    assert {item.dtypes for item in classes.values() if item.name != "constants"} == {("float32",)}


def test_the_command_prints_the_same_figures_for_people_and_as_json(inspected: Inspected) -> None:
    _, folder, inspection = inspected("moe")
    data = json.loads(CliRunner().invoke(inspect_command, [str(folder), "--json"]).stdout)
    assert data == json.loads(json.dumps(inspection.to_dict()))
    text = CliRunner().invoke(inspect_command, [str(folder)]).stdout
    for expected in (f"{inspection.parameters:,} parameters", "SparseMoE", "past_conv.0", "experts"):
        assert expected in text


def test_verify_finds_a_file_altered_where_the_quick_look_may_not(inspected: Inspected, tmp_path: Path) -> None:
    _, folder, _ = inspected("dense")
    (tmp_path / "onnx").mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
    data = tmp_path / "onnx" / "model.onnx_data"
    weights = bytearray(data.read_bytes())
    weights[len(weights) // 2] ^= 1
    data.write_bytes(weights)
    failure = CliRunner().invoke(inspect_command, [str(tmp_path), "--verify"]).exception
    assert isinstance(failure, ArtifactError)
    assert "model.onnx_data" in str(failure)
