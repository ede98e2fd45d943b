"""What takes minutes on Qualcomm's compiler and emulator: layers of real width, the sample's tasks, many prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.npu_manifest import NpuManifest
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.export.npu import NpuOptions, NpuWeights, export_npu
from lfm_onnx.export.npu.calibration import CalibrationOptions
from lfm_onnx.hardware.chips import chip
from lfm_onnx.hardware.compile_cost import WITHIN
from lfm_onnx.mobile_bridge.qnn.compile import CompileOptions, compile_export
from lfm_onnx.mobile_bridge.qnn.compile_plan import plan_compile
from lfm_onnx.quantize.quantization import calibration_sequences
from lfm_onnx.runtime import LfmModel
from lfm_onnx.runtime.npu.run_options import NpuRunOptions
from lfm_onnx.runtime.npu.session import NpuSession
from lfm_onnx.runtime.parity.compare import compare
from lfm_onnx.runtime.parity.options import ParityOptions
from npu_models import REAL_WIDTH, conversations, needs_emulator, write_random_checkpoint

pytestmark = [pytest.mark.long, needs_emulator]

SM8750 = (chip("sm8750"),)
TASKS = 20


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("wide"), REAL_WIDTH)


@pytest.mark.parametrize("weights, budget", [(NpuWeights.INT4, 240_000_000), (NpuWeights.INT8, 460_000_000)])
def test_layers_of_real_width_compile_to_what_the_plan_says(
    weights: NpuWeights, budget: int, wide: Path, tmp_path: Path
) -> None:
    """A convolution, attention, a dense feed-forward and experts in one part, the LM head in another."""
    ids = np.random.default_rng(1).integers(0, REAL_WIDTH["vocab_size"], 48)
    options = NpuOptions(
        weights=weights,
        weight_budget=budget,
        calibration=[ids],
        calibration_options=CalibrationOptions(decoded=2, head_tokens=8),
        error_feedback=False,  # the compiler does not see how weights were rounded
        tokenizer=False,
    )
    manifest = export_npu(Checkpoint.open(wide), tmp_path / "out", options)
    assert [(part.first_layer, part.last_layer, part.head) for part in manifest.parts] == [(0, 2, False), (2, 2, True)]
    artifact = Artifact.open(tmp_path / "out")
    planned = plan_compile(artifact, NpuManifest.read(artifact), SM8750, ("emulator",))
    records = compile_export(tmp_path / "out", CompileOptions(SM8750, ("emulator",)), print)
    for part, plan, record in zip(manifest.parts, planned, records, strict=True):
        written = sum(part.compiled_bytes.values())
        assert 0.9 * written < sum(record.files.values()) < 1.15 * written
        assert 1 / WITHIN < record.peak_rss_bytes / plan.expected_memory_bytes < WITHIN


@pytest.fixture(scope="module", params=[NpuWeights.INT8, NpuWeights.INT4])
def sample(request: pytest.FixtureRequest, tiny_lfm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, exported as the command does it."""
    checkpoint = Checkpoint.open(tiny_lfm)
    calibration = calibration_sequences(checkpoint, None, 1024)
    folder = tmp_path_factory.mktemp(request.param.value) / "out"
    export_npu(checkpoint, folder, NpuOptions(weights=request.param, context_lengths=(512,), calibration=calibration))
    return folder


def test_the_sample_solves_its_tasks_on_the_emulator(sample: Path, tiny_lfm: Path) -> None:
    options = ParityOptions(tasks=tiny_lfm / "tasks.jsonl", greedy_prompts=2, greedy_tokens=8, most_tasks=TASKS)
    report = compare(Artifact.open(sample, "qnn"), Checkpoint.open(tiny_lfm), options, print)
    assert report.passed, report.verdict
    assert report.tasks is not None and report.tasks.accuracy >= 0.9


def test_prompts_around_the_chunks_edges_give_the_logits_of_the_whole_text(sample: Path, tiny_lfm: Path) -> None:
    model = LfmModel.load(sample, npu=NpuRunOptions(plan="npu", strict=True))
    session = model.session
    assert isinstance(session, NpuSession)
    ids = np.concatenate(conversations(tiny_lfm, every=9))[:300]
    whole, _ = session.compare_prefill(session.new_state(1, 1, model.context_length), ids)
    lengths = (1, 2, 3, 5, 64, 127, 128, 129, 130, 255, 256, 257, 300)
    rows = np.stack([model.prefill(model.new_state(), ids[:length].tolist()) for length in lengths])
    expected = whole[np.array(lengths) - 1]
    assert np.mean(rows.argmax(1) == expected.argmax(1)) > 0.9
    assert np.median(np.abs(rows - expected).max(1)) < 0.1 * whole.std()
