"""transformers.js, over onnxruntime-node and wasm, loads an artifact as it is and answers as the reference does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_factory import ArtifactFactory
from client_cases import PROFILES, Cases, answers_of_transformers_js, cases_of, export, profile_artifact
from lfm_onnx.checkpoint.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def cases(tiny_lfm: Path) -> Cases:
    return cases_of(tiny_lfm)


@pytest.fixture(scope="module", params=["node", "wasm"])
def results(request: pytest.FixtureRequest, cases: Cases, exported_artifact: ArtifactFactory) -> Any:
    """What one run of transformers.js gave for the artifacts of all profiles: {profile: results}."""
    artifacts = {profile: profile_artifact(exported_artifact, profile) for profile in PROFILES}
    output = answers_of_transformers_js(artifacts, cases, request.param, cases.conversations)
    print(output["versions"])
    return {"runtime": request.param, **output["artifacts"]}


@pytest.fixture(params=PROFILES)
def result(request: pytest.FixtureRequest, results: Any) -> Any:
    """The results of one profile."""
    found = results[request.param]
    assert "error" not in found, found["error"]
    expected_device = "cpu" if results["runtime"] == "node" else "wasm"
    assert (found["device"], found["dtype"]) == (expected_device, request.param.split("-")[1])
    return found


def ended(rows: list[list[int]], eos: int) -> list[list[int]]:
    """Rows up to and with their end token: shorter rows of a batch are filled up behind it."""
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def test_greedy_tokens_equal_the_references_up_to_the_end_token(result: Any, cases: Cases) -> None:
    assert result["alone"] == cases.answers


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_what_each_row_gives_alone(side: str, result: Any, cases: Cases) -> None:
    assert ended(result[f"{side}_padded"], cases.eos) == cases.answers


def test_a_second_turn_computes_only_what_the_cache_lacks(result: Any, cases: Cases) -> None:
    turns = result["two_turns"]
    assert turns["first"] == cases.answers[0]
    assert turns["seen"] == len(cases.prompts[0]) + len(cases.answers[0]) - 1
    assert turns["second"] == cases.second_answer


def test_text_and_ids_of_a_conversation_equal_transformers(result: Any, cases: Cases) -> None:
    assert result["texts"] == [talk.text for talk in cases.conversations]
    assert result["ids"] == [talk.ids for talk in cases.conversations]


def test_the_text_generation_pipeline_replies_to_messages(result: Any, cases: Cases) -> None:
    assert result["reply"] == cases.decoded[0]


def test_the_layers_are_named_even_if_the_checkpoint_lists_attention_layers_only(
    variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(variant_checkpoint("dense"), checkpoint)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    layer_types = config.pop("layer_types")
    config["full_attn_idxs"] = [index for index, kind in enumerate(layer_types) if kind == "full_attention"]
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")

    artifact = export(Checkpoint.open(checkpoint), tmp_path / "out", PROFILES[0], tokenizer=False)
    # transformers.js takes the names of the caches from this list.
    assert json.loads((artifact / "config.json").read_text(encoding="utf-8"))["layer_types"] == layer_types
