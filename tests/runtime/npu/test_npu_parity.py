"""Parity of NPU exports, their graphs on the CPU: whole texts against the checkpoint, and what quantization costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.npu_manifest import NpuManifest
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.errors import InputError
from lfm_onnx.export.npu import NpuOptions, NpuWeights, export_npu
from lfm_onnx.quantize.quantization import calibration_sequences
from lfm_onnx.reference.model import Reference
from lfm_onnx.runtime.npu.backends import CpuBackend
from lfm_onnx.runtime.parity.compare import compare
from lfm_onnx.runtime.parity.npu_runner import NpuRunner
from lfm_onnx.runtime.parity.options import ParityOptions
from lfm_onnx.runtime.parity.report.contents import ParityReport


@pytest.fixture(scope="module")
def exported(variant_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float export in chunks of 16 tokens, and its checkpoint."""
    checkpoint = variant_checkpoint("moe")
    folder: Path = tmp_path_factory.mktemp("npu") / "out"
    options = NpuOptions(weights=NpuWeights.FLOAT, chunk=16, context_lengths=(64,), tokenizer=False)
    export_npu(Checkpoint.open(checkpoint), folder, options)
    return folder, checkpoint


def test_all_rows_of_a_text_of_several_chunks_are_those_of_the_checkpoint(exported: tuple[Path, Path]) -> None:
    folder, checkpoint = exported
    artifact = Artifact.open(folder)
    runner = NpuRunner(artifact.config, NpuManifest.read(artifact), CpuBackend(artifact, 1))
    ids = np.random.default_rng(0).integers(0, 96, 45).tolist()
    hidden: list[np.ndarray] = []
    expected = Reference(Checkpoint.open(checkpoint)).forward(ids, hidden=hidden, logits="all")[0]
    logits, streams = runner.read(ids, (0, 2))
    assert np.abs(logits - expected).max() < 1e-4
    for layer, stream in streams.items():
        assert np.abs(stream - hidden[layer + 1]).max() < 1e-4


def test_chunks_that_leave_no_room_for_a_continuation_are_refused(exported: tuple[Path, Path]) -> None:
    folder, checkpoint = exported
    options = ParityOptions(token_ids=[[1] * 40], greedy_tokens=32, npu_backend="cpu")
    with pytest.raises(InputError, match=r"leave 32 tokens of the context \(64\), found 1 of up to 40 tokens"):
        compare(Artifact.open(folder), Checkpoint.open(checkpoint), options)


def test_int4_keeps_foreign_prompts_because_rounding_errors_are_fed_back(tiny_lfm: Path, tmp_path: Path) -> None:
    """Without the feedback every fifth likeliest token is lost on text that the sample was not trained on."""
    checkpoint = Checkpoint.open(tiny_lfm)
    calibration = calibration_sequences(checkpoint, None, 1024)

    def measured(feedback: bool) -> ParityReport:
        options = NpuOptions(
            NpuWeights.INT4, context_lengths=(512,), calibration=calibration, error_feedback=feedback, replace=True
        )
        export_npu(checkpoint, tmp_path / "out", options)
        asked = ParityOptions(backend="numpy", greedy_prompts=0, npu_backend="cpu")
        return compare(Artifact.open(tmp_path / "out"), checkpoint, asked)

    fed_back, rounded = measured(True), measured(False)
    assert fed_back.passed, fed_back.verdict
    assert fed_back.logits.kld_mean < 0.6 * rounded.logits.kld_mean
    assert fed_back.logits.top1 > rounded.logits.top1 + 0.03
