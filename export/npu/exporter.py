"""The export for the NPU: a checkpoint to a folder of static graphs, part by part, resumable, all or nothing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ... import __version__
from ...artifact.method import Method
from ...artifact.npu_manifest import Calibration, Embedding, NpuManifest
from ...artifact.npu_parts import NpuPart, NpuPort
from ...checkpoint.checkpoint import Checkpoint
from ...quantize.calibration_text import load_calibration
from ..client_configs import check_client_files, require_tokenizer
from ..manifest import SourceHash
from ..notes import checkpoint_notes
from ..output_folder import check_space, check_target, output_folder
from ..staging import Staging
from .artifact_files import write_artifact_manifest, write_model_files
from .calibration import Ids, calibrate
from .float_model import OPSET
from .manifest_entries import states_of
from .options import NpuOptions
from .part_export import PartExport
from .parts import NpuWeights, PartPlan
from .quantization import Range
from .weight_inputs import WeightInputs

RANGES_FILE = "npu/ranges.json"


def export_npu(
    checkpoint: Checkpoint,
    output: Path | str,
    options: NpuOptions | None = None,
    *,
    on_step: Callable[[str], None] = lambda step: None,
) -> NpuManifest:
    """Write the graphs of ``checkpoint`` to the folder ``output``; the NPU manifest.

    on_step is told what is done: calibrated layers, written parts. Interrupted, the folder is not there, and the next
    call with the same arguments goes on behind the last part that was finished.
    """
    options = options or NpuOptions()
    output = output_folder(output)
    options.check(checkpoint)
    if options.tokenizer:
        require_tokenizer(checkpoint)
    check_client_files(checkpoint)
    parts = options.parts(checkpoint.config)
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
        written = []
        for part in parts:
            written.append(export.write(part))
            on_step(f"wrote part {part.index + 1} of {len(parts)}")
        manifest = _npu_manifest(staging.folder, checkpoint, options, written, export.write_embedding())
        _check_boundaries(manifest)
        manifest.write()
        names = [*manifest.files(), *write_model_files(staging.folder, checkpoint, tokenizer=options.tokenizer)]
        write_artifact_manifest(
            staging.folder,
            checkpoint,
            options.weights,
            max(options.context_lengths),
            source_hash,
            names,
            checkpoint_notes(checkpoint),
        )
        staging.publish()
    return replace(manifest, folder=output)


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


def _check_boundaries(manifest: NpuManifest) -> None:
    """What the embedding table or a part gives, the next part takes as it is."""
    given: NpuPort | Embedding = manifest.embedding
    for part in manifest.parts:
        taken = _hidden(part.graphs[0].inputs)
        assert (given.dtype, given.scale, given.zero_point) == (taken.dtype, taken.scale, taken.zero_point), part.name
        if not part.head:
            given = _hidden(part.graphs[0].outputs)


def _hidden(ports: Sequence[NpuPort]) -> NpuPort:
    return next(port for port in ports if port.role == "hidden")


def _npu_manifest(
    folder: Path, checkpoint: Checkpoint, options: NpuOptions, parts: Sequence[NpuPart], embedding: Embedding
) -> NpuManifest:
    quantized = options.weights is not NpuWeights.FLOAT
    method = Method.GPTQ if options.error_feedback else Method.RTN
    return NpuManifest(
        folder=folder,
        opset=OPSET,
        precision={
            "weights": options.weights.value,
            "activations": "uint16" if quantized else "float32",
            "kv_cache": "uint8" if quantized else "float32",
            "moe_prefill": options.prefill.value,
            "moe_decode": options.decode.value,
        },
        chunk=options.chunk,
        context_lengths=tuple(options.context_lengths),
        embedding=embedding,
        rotary_theta=checkpoint.config.rope_theta,
        head_dim=checkpoint.config.head_dim,
        parts=tuple(parts),
        states=states_of(parts),
        calibration=Calibration(RANGES_FILE, method.value, options.chosen_headroom) if quantized else None,
    )


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
