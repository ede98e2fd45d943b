"""What stands beside the graphs of an NPU export: config and tokenizer files, and the artifact's own manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...artifact.files import ArtifactFile
from ...artifact.manifest import Manifest, Variant
from ...artifact.npu_manifest import NPU_MANIFEST_NAME, TARGET
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.generation_config import GENERATION_CONFIG_NAME, read_generation_config
from ...checkpoint.sampling_fields import usable_generation_config
from ...errors import TokenizerError
from ..client_configs import copy_client_file
from ..manifest import SourceHash, model_facts, source_of, tool_versions
from .float_model import OPSET
from .parts import NpuWeights


def write_model_files(folder: Path, checkpoint: Checkpoint, *, tokenizer: bool) -> list[str]:
    """config.json as the checkpoint has it, with the layer types spelled out, and the tokenizer files; their names."""
    names = ["config.json"]
    config = {**checkpoint.raw_config, "layer_types": list(checkpoint.config.layer_types)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in checkpoint.tokenizer_files() if tokenizer else []:
        name = path.relative_to(checkpoint.folder).as_posix()
        copy_client_file(path, folder / name)
        names.append(name)
    given = read_generation_config(folder, TokenizerError)
    usable, _ = usable_generation_config(given)
    if usable != given:
        (folder / GENERATION_CONFIG_NAME).write_text(json.dumps(usable, indent=2) + "\n", encoding="utf-8")
    return names


def write_artifact_manifest(
    folder: Path,
    checkpoint: Checkpoint,
    weights: NpuWeights,
    context_length: int,
    source_hash: SourceHash,
    names: list[str],
    notes: Sequence[str],
) -> None:
    """lfm_manifest.json over the files ``names`` of ``folder``, with their digests. notes: see ``source_of``."""
    variant = Variant(
        model=NPU_MANIFEST_NAME,
        ops="standard" if weights is NpuWeights.FLOAT else "qdq",
        opset=OPSET,
        precision={"weights": weights.value},
        files=tuple(name for name in names if name.startswith("npu/")),
    )
    Manifest(
        source=source_of(checkpoint, source_hash.files(), notes),
        model=model_facts(checkpoint, context_length),
        variants={TARGET: variant},
        files=tuple(ArtifactFile.describe(folder, name) for name in names),
        tools=tool_versions(),
        target=TARGET,
    ).write(folder)
