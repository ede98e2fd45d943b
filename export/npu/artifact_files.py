"""What stands beside the graphs of an NPU export: config and tokenizer files, and the artifact's own manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from ... import __version__
from ...artifact.artifact import MANIFEST_NAME, MANIFEST_VERSION
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.expected_tensors import parameter_count
from ..manifest import (
    SourceHash,
    config_sha256,
    describe_file,
    source_name,
)
from .float_model import OPSET
from .npu_manifest import NPU_MANIFEST_NAME
from .parts import NpuWeights

VARIANT = "qnn"


def write_model_files(folder: Path, checkpoint: Checkpoint, *, tokenizer: bool) -> list[str]:
    """config.json as the checkpoint has it, with the layer types spelled out, and the tokenizer files; their names."""
    names = ["config.json"]
    config = {**checkpoint.raw_config, "layer_types": list(checkpoint.config.layer_types)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in checkpoint.tokenizer_files() if tokenizer else []:
        if path.name != "config.json":
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    return names


def write_artifact_manifest(
    folder: Path,
    checkpoint: Checkpoint,
    weights: NpuWeights,
    context_length: int,
    source_hash: SourceHash,
    names: list[str],
) -> None:
    """lfm_manifest.json over the files ``names`` of ``folder``, with their sizes and digests."""
    source_files = source_hash.files()
    content = hashlib.sha256("".join(file["sha256"] for file in source_files).encode()).hexdigest()
    manifest: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "generator": {"name": "lfm-onnx", "version": __version__},
        "target": VARIANT,
        "source": {
            "checkpoint": source_name(checkpoint),
            "content_sha256": content,
            "config_sha256": config_sha256(checkpoint),
            "files": source_files,
        },
        "model": {
            "model_type": checkpoint.config.model_type,
            "parameters": parameter_count(checkpoint.config),
            "layer_types": list(checkpoint.config.layer_types),
            "context_length": context_length,
        },
        "variants": {
            VARIANT: {
                "model": NPU_MANIFEST_NAME,
                "ops": "standard" if weights is NpuWeights.FLOAT else "qdq",
                "opset": OPSET,
                "precision": {"weights": weights.value},
                "files": [name for name in names if name.startswith("npu/")],
            }
        },
        "tools": {
            name: importlib.metadata.version(name) for name in ("onnx", "onnx_ir", "onnxscript", "numpy", "onnxruntime")
        },
        "files": [describe_file(folder, name) for name in names],
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
