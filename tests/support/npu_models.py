"""What the NPU tests run on: checkpoints of LFM2.5-8B-A1B's shape, the sample's conversations, Qualcomm's emulator."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.checkpoint.expected_tensors import expected_tensors
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.runtime.npu.provider import NpuUnavailable, device

# The shape of LFM2.5-8B-A1B: 18 conv and 6 attention layers, 2 of them dense.
FULL_SIZE: dict[str, Any] = {
    "model_type": "lfm2_moe",
    "vocab_size": 128000,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_hidden_layers": 24,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "layer_types": ["full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)],
    "conv_L_cache": 3,
    "max_position_embeddings": 128000,
    "rope_theta": 5e6,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}

# As wide, with the fewest layers: a dense one with a convolution, one with attention and experts.
REAL_WIDTH = {
    **FULL_SIZE,
    "num_hidden_layers": 2,
    "num_dense_layers": 1,
    "layer_types": ["conv", "full_attention"],
    "max_position_embeddings": 4096,
}


def _emulator() -> tuple[bool, str]:
    try:
        return device().emulator, "this machine has a real NPU"
    except NpuUnavailable as error:
        return False, str(error)


_FOUND, _REASON = _emulator()
needs_emulator = pytest.mark.skipif(not _FOUND, reason=_REASON)


def write_hollow_checkpoint(folder: Path, fields: dict[str, Any]) -> Path:
    """A checkpoint that takes no room: headers, and a hole where the weights would be."""
    folder.mkdir(exist_ok=True)
    with _begin(folder, fields) as file:
        size = sum(2 * int(np.prod(shape)) for _, shape in expected_tensors(LfmConfig.from_dict(fields)))
        file.truncate(file.tell() + size)
    return folder


def write_random_checkpoint(folder: Path, fields: dict[str, Any]) -> Path:
    """Weights stream to the file: no more than one is in memory."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    with _begin(folder, fields) as file:
        for name, shape in expected_tensors(LfmConfig.from_dict(fields)):
            values = random.standard_normal(shape, np.float32)
            values = 1 + 0.1 * values if "norm" in name else values / np.sqrt(shape[-1])
            file.write(values.astype(ml_dtypes.bfloat16).tobytes())
    return folder


def _begin(folder: Path, fields: dict[str, Any]) -> Any:
    """config.json, and the file of weights open behind its header."""
    (folder / "config.json").write_text(json.dumps(fields))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in expected_tensors(LfmConfig.from_dict(fields)):
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file = (folder / "model.safetensors").open("wb")
    file.write(struct.pack("<Q", len(text)) + text)
    return file


def conversations(folder: Path, every: int) -> list[npt.NDArray[np.int64]]:
    """Token ids of every so manieth task of the sample model, with the expected answer."""
    tokenizer = ChatTokenizer.load(folder)
    tasks = [json.loads(line) for line in (folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = (
        tokenizer.render(task["messages"], tools=task.get("tools"), add_generation_prompt=True) + task["expected"]
        for task in tasks[::every]
    )
    return [np.array(tokenizer.encode(text)) for text in texts]
