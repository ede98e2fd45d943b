"""genai and transformers.js load quantized artifacts as they are, and give what plain ONNX Runtime gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_factory import ArtifactFactory
from client_cases import MAX_NEW_TOKENS, Cases, answers_of_transformers_js, cases_of, profile_artifact
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.runtime.parity.onnx_model import OnnxModel

PROFILES = ["custom-q4", "custom-q8", "custom-q4f16", "standard-q4"]


@pytest.fixture(scope="module")
def cases(tiny_lfm: Path) -> Cases:
    return cases_of(tiny_lfm)


@pytest.fixture(scope="module")
def artifacts(exported_artifact: ArtifactFactory) -> dict[str, Path]:
    return {profile: profile_artifact(exported_artifact, profile) for profile in PROFILES}


@pytest.fixture(scope="module")
def expected(artifacts: dict[str, Path], cases: Cases) -> dict[str, list[list[int]]]:
    """Greedy answers of plain ONNX Runtime, without the native library, to the prompts of each profile."""
    runners = {
        profile: OnnxModel(Artifact.open(folder), threads=1, native=False) for profile, folder in artifacts.items()
    }
    return {
        profile: [runner.greedy(prompt, MAX_NEW_TOKENS, (cases.eos,)) for prompt in cases.prompts]
        for profile, runner in runners.items()
    }


def agreement(found: list[list[int]], wanted: list[list[int]]) -> float:
    """Share of answers that are equal token for token."""
    return float(np.mean([one == other for one, other in zip(found, wanted, strict=True)]))


@pytest.mark.parametrize("profile", PROFILES)
def test_most_answers_are_those_of_the_original(
    profile: str, expected: dict[str, list[list[int]]], cases: Cases
) -> None:
    assert agreement(expected[profile][:6], cases.answers[:6]) >= 0.5


@pytest.mark.parametrize("profile", PROFILES)
def test_genai_answers_as_plain_onnx_runtime(
    profile: str, artifacts: dict[str, Path], expected: dict[str, list[list[int]]], cases: Cases
) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed on this platform")
    model = genai.Model(str(artifacts[profile]))
    found = []
    for prompt in cases.prompts:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + MAX_NEW_TOKENS, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        found.append([int(token) for token in generator.get_sequence(0)][len(prompt) :])
    # genai keeps the end token to itself; its ONNX Runtime may round an activation to the other side.
    without_end = [row[:-1] if row[-1] == cases.eos else row for row in expected[profile]]
    assert agreement(found, without_end) >= 0.8


@pytest.fixture(scope="module", params=["node", "wasm"])
def answers_in_javascript(request: pytest.FixtureRequest, artifacts: dict[str, Path], cases: Cases) -> Any:
    """{profile: what transformers.js gave}."""
    return answers_of_transformers_js(artifacts, cases, request.param, cases.conversations[:1])["artifacts"]


@pytest.mark.parametrize("profile", PROFILES)
def test_transformers_js_answers_as_plain_onnx_runtime(
    profile: str, answers_in_javascript: Any, expected: dict[str, list[list[int]]], cases: Cases
) -> None:
    result = answers_in_javascript[profile]
    assert "error" not in result, result["error"]
    assert result["dtype"] == profile.split("-")[1]
    assert agreement(result["alone"], expected[profile]) >= 0.8
