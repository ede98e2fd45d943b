"""What takes minutes on Qualcomm's compiler and emulator: layers of real width, the sample's tasks, many prompts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from lfm_onnx.artifact import Artifact
from lfm_onnx.checkpoint import Checkpoint
from lfm_onnx.config import LfmConfig
from lfm_onnx.expected_tensors import expected_tensors
from lfm_onnx.export.npu import NpuOptions, NpuWeights, export_npu
from lfm_onnx.export.npu.calibration import CalibrationOptions
from lfm_onnx.mobile_bridge.qnn.compile import CompileOptions, compile_export
from lfm_onnx.npu_chips import chip
from lfm_onnx.quantize.quantization import calibration_sequences
from lfm_onnx.runtime import LfmModel
from lfm_onnx.runtime.npu.model import NpuModel
from lfm_onnx.runtime.npu.model import NpuOptions as RunOptions
from lfm_onnx.runtime.npu.parity import NpuParityOptions, compare_npu
from lfm_onnx.runtime.npu.provider import NpuUnavailable, device
from lfm_onnx.runtime.parity.compare import ParityOptions
from lfm_onnx.tokenizer import ChatTokenizer

try:
    EMULATOR, REASON = device().emulator, "this machine has a real NPU"
except NpuUnavailable as error:
    EMULATOR, REASON = False, str(error)
pytestmark = [pytest.mark.long, pytest.mark.skipif(not EMULATOR, reason=REASON)]

# A dense conv layer, then an attention layer with experts, as wide as those of LFM2.5-8B-A1B.
WIDE: dict[str, Any] = {
    "model_type": "lfm2_moe",
    "vocab_size": 128000,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_hidden_layers": 2,
    "num_dense_layers": 1,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "layer_types": ["conv", "full_attention"],
    "conv_L_cache": 3,
    "max_position_embeddings": 4096,
    "rope_theta": 5e6,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
TASKS = 20


def write_random_checkpoint(folder: Path, fields: dict[str, Any]) -> Path:
    """Weights stream to the file: no more than one is in memory."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    tensors = dict(expected_tensors(LfmConfig.from_dict(fields)))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            values = random.standard_normal(shape, np.float32)
            values = 1 + 0.1 * values if "norm" in name else values / np.sqrt(shape[-1])
            file.write(values.astype(ml_dtypes.bfloat16).tobytes())
    return folder


def test_layers_of_real_width_compile_to_what_the_plan_says(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "wide", WIDE))
    ids = np.random.default_rng(1).integers(0, WIDE["vocab_size"], 48)
    options = NpuOptions(
        weights=NpuWeights.INT4,
        weight_budget=240_000_000,
        calibration=[ids],
        calibration_options=CalibrationOptions(decoded=2, head_tokens=8),
        tokenizer=False,
    )
    manifest = export_npu(checkpoint, tmp_path / "out", options)
    assert [(part["layers"], part["head"]) for part in manifest["parts"]] == [([0, 2], False), ([2, 2], True)]
    records = compile_export(tmp_path / "out", CompileOptions((chip("sm8750"),), ("emulator",)), print)
    for part, record in zip(manifest["parts"], records, strict=True):
        planned = sum(part["compiled_weight_bytes"].values())
        assert 0.9 * planned < sum(record.files.values()) < 1.15 * planned
        assert record.peak_rss_bytes < 6e9


@pytest.fixture(scope="module", params=[NpuWeights.INT8, NpuWeights.INT4])
def sample(request: pytest.FixtureRequest, tiny_lfm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, exported as the command does it."""
    checkpoint = Checkpoint.open(tiny_lfm)
    calibration = calibration_sequences(checkpoint, None, 1024)
    folder = tmp_path_factory.mktemp(request.param.value) / "out"
    export_npu(checkpoint, folder, NpuOptions(weights=request.param, context_lengths=(512,), calibration=calibration))
    return folder


def test_the_sample_solves_its_tasks_on_the_emulator(sample: Path, tiny_lfm: Path) -> None:
    options = ParityOptions(tasks=tiny_lfm / "tasks.jsonl", greedy_prompts=2, greedy_tokens=8)
    npu = NpuParityOptions(most_tasks=TASKS)
    report = compare_npu(Artifact.open(sample, "qnn"), Checkpoint.open(tiny_lfm), options, npu, print)
    assert report.passed, report.verdict
    assert report.tasks is not None and report.tasks.accuracy >= 0.9


def test_prompts_around_the_chunks_edges_give_the_logits_of_the_whole_text(sample: Path, tiny_lfm: Path) -> None:
    model = LfmModel.load(sample, npu=RunOptions(plan="npu", strict=True))
    assert isinstance(model, NpuModel)
    tokenizer = ChatTokenizer.load(tiny_lfm)
    tasks = [json.loads(line) for line in (tiny_lfm / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    text = "".join(
        tokenizer.render(task["messages"], tools=task.get("tools"), add_generation_prompt=True) for task in tasks[::9]
    )
    ids = np.array(tokenizer.encode(text)[:300])
    whole, _ = model.session.compare_prefill(model.new_state(), ids)
    lengths = (1, 2, 3, 5, 64, 127, 128, 129, 130, 255, 256, 257, 300)
    rows = np.stack([model.prefill(model.new_state(), ids[:length].tolist()) for length in lengths])
    expected = whole[np.array(lengths) - 1]
    assert np.mean(rows.argmax(1) == expected.argmax(1)) > 0.9
    assert np.median(np.abs(rows - expected).max(1)) < 0.1 * whole.std()
