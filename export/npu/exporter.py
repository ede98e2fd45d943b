"""`export --target qnn`: a checkpoint to a folder of static graphs, part by part, resumable, all or nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...artifact.method import Method
from ...checkpoint.checkpoint import Checkpoint
from ...quantize.calibration_text import load_calibration
from ..client_configs import require_tokenizer
from ..manifest import SourceHash
from ..output_folder import check_space, check_target, output_folder
from ..staging import Staging
from .artifact_files import write_artifact_manifest, write_model_files
from .calibration import Ids, calibrate
from .float_model import OPSET
from .npu_manifest import NPU_MANIFEST_NAME, NPU_MANIFEST_VERSION, state_entries
from .options import NpuOptions
from .part_export import EMBEDDING_FILE, PartExport
from .parts import NpuWeights, PartPlan, plan_parts
from .quantization import Range
from .weight_inputs import WeightInputs

RANGES_FILE = "npu/ranges.json"


def export_npu(
    checkpoint: Checkpoint,
    output: Path | str,
    options: NpuOptions | None = None,
    *,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Write the graphs of ``checkpoint`` to the folder ``output``; the NPU manifest.

    on_step is told what is done: calibrated layers, written parts. Interrupted, the folder is not there, and the next
    call with the same arguments goes on behind the last part that was finished.
    """
    options = options or NpuOptions()
    output = output_folder(output)
    options.check(checkpoint)
    if options.tokenizer:
        require_tokenizer(checkpoint)
    parts = plan_parts(
        checkpoint.config,
        options.weights,
        weight_budget=options.weight_budget,
        memory_budget=options.memory_budget,
        decode=options.decode,
        prefill=options.prefill,
        lengths=len(options.context_lengths),
    )
    check_target(output, replace=options.replace, source=checkpoint.folder)
    sequences = _sequences(checkpoint, options)
    staging = Staging(output, _fingerprint(checkpoint, options, parts, sequences), replace=options.replace)
    with staging.open():
        check_space(output, _needed_bytes(checkpoint, options, parts))
        (staging.folder / "npu").mkdir(exist_ok=True)
        source_hash = SourceHash(checkpoint)
        quantized = options.weights is not NpuWeights.FLOAT
        ranges = _ranges(staging, checkpoint, sequences, options, on_step) if quantized else None
        inputs = None
        if quantized and options.error_feedback:
            inputs = WeightInputs(checkpoint, [np.asarray(ids) for ids in sequences], threads=options.threads)
        export = PartExport(staging, checkpoint, options, ranges, inputs)
        entries = []
        for part in parts:
            entries.append(export.write(part))
            on_step(f"wrote part {part.index + 1} of {len(parts)}")
        manifest = _npu_manifest(checkpoint, options, entries, export.write_embedding())
        _check_boundaries(manifest)
        (staging.folder / NPU_MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        names = [*_npu_files(manifest), *write_model_files(staging.folder, checkpoint, tokenizer=options.tokenizer)]
        write_artifact_manifest(
            staging.folder,
            checkpoint,
            options.weights,
            max(options.context_lengths),
            source_hash,
            names,
        )
        staging.publish()
    return manifest


def _sequences(checkpoint: Checkpoint, options: NpuOptions) -> list[Ids]:
    if options.weights is NpuWeights.FLOAT:
        return []
    if options.calibration is not None:
        return list(options.calibration)
    return list(load_calibration(None, checkpoint, options.calibration_tokens))


def _ranges(
    staging: Staging,
    checkpoint: Checkpoint,
    sequences: Sequence[Ids],
    options: NpuOptions,
    on_step: Callable[[str], None],
) -> dict[str, Range]:
    path = staging.folder / RANGES_FILE
    if staging.finished(RANGES_FILE) is None:
        ranges = calibrate(
            checkpoint,
            sequences,
            options.decode,
            options.prefill,
            options.calibration_options,
            lambda layer: on_step(f"calibrated layer {layer + 1} of {checkpoint.config.num_hidden_layers}"),
            options.threads,
        )
        path.write_text(json.dumps(ranges, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        staging.finish(RANGES_FILE, {"bytes": path.stat().st_size})
    return {name: (low, high) for name, (low, high) in json.loads(path.read_text(encoding="utf-8")).items()}


def _check_boundaries(manifest: dict[str, Any]) -> None:
    """What the embedding table or a part gives, the next part takes as it is."""
    given = manifest["embedding"]
    for before, after in itertools.pairwise([None, *manifest["parts"]]):
        if before is not None:
            given = next(port for port in before["graphs"][0]["outputs"] if port["role"] == "hidden")
        taken = next(port for port in after["graphs"][0]["inputs"] if port["role"] == "hidden")
        keys = ("dtype", "scale", "zero_point")
        assert [given.get(key) for key in keys] == [taken.get(key) for key in keys], after["name"]


def _npu_manifest(
    checkpoint: Checkpoint, options: NpuOptions, parts: Sequence[dict[str, Any]], embedding: dict[str, Any]
) -> dict[str, Any]:
    quantized = options.weights is not NpuWeights.FLOAT
    manifest: dict[str, Any] = {
        "npu_manifest_version": NPU_MANIFEST_VERSION,
        "target": "qnn",
        "opset": OPSET,
        "precision": {
            "weights": options.weights.value,
            "activations": "uint16" if quantized else "float32",
            "kv_cache": "uint8" if quantized else "float32",
            "moe_prefill": options.prefill.value,
            "moe_decode": options.decode.value,
        },
        "chunk": options.chunk,
        "context_lengths": list(options.context_lengths),
        "embedding": embedding,
        "rotary": {"theta": checkpoint.config.rope_theta, "head_dim": checkpoint.config.head_dim},
        "parts": list(parts),
        "states": state_entries(parts),
    }
    if not quantized:
        return manifest
    method = (Method.GPTQ if options.error_feedback else Method.RTN).value
    return {**manifest, "ranges": RANGES_FILE, "method": method, "headroom": options.chosen_headroom}


def _npu_files(manifest: dict[str, Any]) -> list[str]:
    names = [NPU_MANIFEST_NAME, EMBEDDING_FILE, *([RANGES_FILE] if "ranges" in manifest else [])]
    for part in manifest["parts"]:
        names += [*(graph["file"] for graph in part["graphs"]), part["weights_file"]]
    return names


def _fingerprint(
    checkpoint: Checkpoint, options: NpuOptions, parts: Sequence[PartPlan], sequences: Sequence[Ids]
) -> str:
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(np.asarray(ids, np.int64).tobytes() + b"|")
    chosen = [
        options.weights.value,
        options.decode.value,
        options.prefill.value,
        options.chunk,
        options.context_lengths,
        options.tokenizer,
        options.chosen_headroom,
        options.error_feedback,
        repr(options.calibration_options),
        repr(parts),
        digest.hexdigest(),
    ]
    return hashlib.sha256(json.dumps([__version__, checkpoint.fingerprint(), chosen]).encode()).hexdigest()


def _needed_bytes(checkpoint: Checkpoint, options: NpuOptions, parts: Sequence[PartPlan]) -> int:
    """Both graphs' weights (scales of int4 blocks are float32 in the file), the embedding and the small files."""
    scales = 1.25 if options.weights is NpuWeights.INT4 else 1.0
    weights = sum(math.ceil(sum(part.weight_bytes.values()) * scales) for part in parts)
    return weights + 4 * checkpoint.config.vocab_size * checkpoint.config.hidden_size + (64 << 20)
