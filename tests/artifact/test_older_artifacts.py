"""Folders that version 0.1.0 wrote still load, answer, and are inspected, compared and quantized as they were then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.npu_compiled import PartRecord, Versions, require_same_versions, source_digest
from lfm_onnx.artifact.npu_manifest import NpuManifest
from lfm_onnx.cli.main import main
from lfm_onnx.runtime import LfmModel
from lfm_onnx.runtime.npu.run_options import NpuRunOptions

FOLDER = Path(__file__).parents[1] / "data" / "version_0_1_0"
LOGITS = np.load(FOLDER / "logits.npz")
ROWS = 4


def command_output(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def load(name: str) -> LfmModel:
    npu = NpuRunOptions(plan="npu", backend="cpu") if name == "npu" else None
    return LfmModel.load(FOLDER / name, native=False, threads=1, npu=npu, verify="full")


@pytest.mark.parametrize("name", ["fp32", "q4", "npu"])
def test_the_logits_are_those_of_then(name: str) -> None:
    logits, _ = load(name).forward(LOGITS["ids"], num_logits_to_keep=ROWS)
    np.testing.assert_allclose(logits[0], LOGITS[name], atol=1e-3)


@pytest.mark.parametrize("name", ["fp32", "q4", "npu"])
def test_nothing_in_the_manifests_is_lost_on_reading(name: str) -> None:
    artifact = Artifact.open(FOLDER / name)
    assert artifact.manifest.to_dict() == json.loads((FOLDER / name / "lfm_manifest.json").read_text())
    if name == "npu":
        assert NpuManifest.read(artifact).to_dict() == json.loads(artifact.model_path.read_text())


@pytest.mark.parametrize("name", ["fp32", "q4", "npu"])
def test_generate_answers_a_chat(name: str) -> None:
    arguments = ("generate", FOLDER / name, "--prompt", "hi", "--max-new-tokens", 6, "--threads", 1, "--json")
    answer = json.loads(command_output(*arguments, *(("--npu-backend", "cpu") if name == "npu" else ())))
    assert len(answer["token_ids"]) == 6


@pytest.mark.parametrize("name", ["fp32", "q4"])
def test_inspect_counts_weights_and_operators(name: str) -> None:
    found = json.loads(command_output("inspect", FOLDER / name, "--json"))
    assert (found["variant"], found["ops_profile"], found["context_length"]) == (name, "custom", 64)
    assert found["parameters"] == 35236
    assert {"embedding", "experts", "router", "attention", "short_conv"} <= {
        item["name"] for item in found["tensor_classes"]
    }


def test_parity_holds_with_the_checkpoint(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The quick brown fox")
    arguments = ("--reference", FOLDER / "checkpoint", "--prompts", prompts, "--greedy-tokens", 2, "--json")
    report = json.loads(command_output("parity", FOLDER / "fp32", *arguments))
    assert report["passed"] and report["identity"]["exported by"] == "lfm-onnx 0.1.0"


def test_the_fp32_artifact_quantizes_to_what_its_logits_promise(tmp_path: Path) -> None:
    command_output("quantize", FOLDER / "fp32", "-o", tmp_path / "q8", "--precision", "q8", "--threads", 1)
    logits, _ = LfmModel.load(tmp_path / "q8", threads=1).forward(LOGITS["ids"], num_logits_to_keep=ROWS)
    assert np.corrcoef(logits[0].ravel(), LOGITS["fp32"].ravel())[0, 1] > 0.99
    assert Artifact.open(tmp_path / "q8").manifest.source == Artifact.open(FOLDER / "fp32").manifest.source


def test_the_recipe_in_a_manifest_gives_the_same_formats_again(tmp_path: Path) -> None:
    arguments = ("quantize", FOLDER / "fp32", "-o", tmp_path / "again", "--recipe", FOLDER / "q4", "--threads", 1)
    command_output(*arguments)
    then, now = (Artifact.open(folder).entry for folder in (FOLDER / "q4", tmp_path / "again"))
    assert now.precision == then.precision
    assert now.quantization["recipe"]["formats"] == then.quantization["recipe"]["formats"]


def test_compiled_parts_still_belong_to_their_export() -> None:
    artifact = Artifact.open(FOLDER / "npu")
    for part in NpuManifest.read(artifact).parts:
        record = PartRecord.read(FOLDER / "compiled" / part.name)
        assert record is not None and (record.part, record.soc, record.build) == (part.name, "sm8750", "emulator")
        assert record.graphs.keys() == {graph.file for graph in part.graphs}
        assert record.digest == source_digest(artifact, part, list(part.graphs))
        require_same_versions(record, Versions("1.32.0", "2.7.0", "2.51.0"), FOLDER, "compile again")


def test_compile_plans_an_old_npu_folder(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "npu", tmp_path / "npu")
    plan = json.loads(command_output("compile", tmp_path / "npu", "--dry-run", "--json"))["parts"]
    assert [(item["part"], item["layers"], item["head"]) for item in plan] == [
        ("part0", [0, 2], False),
        ("part1", [2, 2], True),
    ]
