"""Hybrid plan: the prompt through the NPU's graphs, decoding on the CPU's model, the state between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.errors import ArtifactError, InputError
from lfm_onnx.export import OpsProfile
from lfm_onnx.runtime import LfmModel
from lfm_onnx.runtime.npu.hybrid import HybridSession
from lfm_onnx.runtime.npu.run_options import NpuRunOptions

export_npu = pytest.importorskip("lfm_onnx.export.npu", reason="the NPU export is not in this build")

IDS = np.random.default_rng(5).integers(3, 200, 90).tolist()


@pytest.fixture(scope="module")
def float_npu(tiny_lfm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample in the layout of an NPU export, without any quantization."""
    folder = tmp_path_factory.mktemp("npu") / "float"
    options = export_npu.NpuOptions(weights=export_npu.NpuWeights("float"), chunk=32, context_lengths=(64, 128))
    export_npu.export_npu(Checkpoint.open(tiny_lfm), folder, options)
    return folder


@pytest.fixture(scope="module", params=[OpsProfile.CUSTOM, OpsProfile.STANDARD], ids=["shared cache", "growing cache"])
def cpu(request: pytest.FixtureRequest, exported_artifact: ArtifactFactory) -> Path:
    return exported_artifact(SAMPLE, request.param)


@pytest.fixture(scope="module")
def models(float_npu: Path, cpu: Path) -> tuple[LfmModel, LfmModel]:
    hybrid = LfmModel.load(float_npu, npu=NpuRunOptions(plan="hybrid", backend="cpu", cpu_artifact=cpu))
    assert isinstance(hybrid.session, HybridSession)
    return hybrid, LfmModel.load(cpu, native=False)


def test_the_state_goes_to_the_cpu_and_back_as_often_as_needed(models: tuple[LfmModel, LfmModel]) -> None:
    states = [model.new_state() for model in models]
    at = 0
    for size in (20, 1, 1, 1, 40, 1, 2, 1, 1, 5):
        piece = IDS[at : at + size]
        found, expected = (m.prefill(s, piece) for m, s in zip(models, states, strict=True))
        np.testing.assert_allclose(found, expected, atol=2e-4)
        at += size
    assert states[0].length == states[1].length == at


def test_generation_goes_back_to_a_snapshot(models: tuple[LfmModel, LfmModel]) -> None:
    results = []
    for model in models:
        context = model.new_context()
        for prompt in (IDS[:12], IDS[:30], [*IDS[:20], 7, 8, 9]):
            results.append(model.generate(prompt, context=context, max_new_tokens=6, do_sample=False).result.token_ids)
    assert results[:3] == results[3:]


def test_a_state_of_the_other_session_is_refused(models: tuple[LfmModel, LfmModel]) -> None:
    for model, other in (models, models[::-1]):
        with pytest.raises(InputError, match="the state is another model's"):
            model.forward([1], state=other.new_state())


def test_a_cpu_model_of_another_checkpoint_is_refused(float_npu: Path, exported_artifact: ArtifactFactory) -> None:
    with pytest.raises(ArtifactError, match="was exported from another checkpoint"):
        LfmModel.load(float_npu, npu=NpuRunOptions(plan="hybrid", backend="cpu", cpu_artifact=exported_artifact("moe")))
