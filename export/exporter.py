"""The export: checkpoint to artifact folder, streaming, resumable, all or nothing."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import __version__
from ..artifact.files import ArtifactFile
from ..artifact.manifest import Manifest
from ..checkpoint.checkpoint import Checkpoint
from ..quantize.quantization import Quantization
from .client_configs import write_client_files
from .data_files import DataFile, write_data_file
from .manifest import SourceHash, build_manifest, identity
from .notes import range_notes
from .options import ExportOptions
from .output_folder import check_space, check_target, output_folder
from .plan import ExportPlan, Progress, resolve_export
from .staging import Staging
from .weights import WeightTensor

BytesWritten = Callable[[int, int], None]
"""Is told of a piece of weights that was written: its bytes, and the bytes of all."""

SMALL_FILES_BYTES = 16 << 20
"""Allowance for the graph, tokenizer and JSON files when free space is checked."""


@dataclass(frozen=True)
class Exported:
    """An artifact that was written: the plan it follows, its folder, its manifest, and the seconds that it took."""

    plan: ExportPlan
    output: Path
    manifest: Manifest
    seconds: float

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.manifest.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the command line prints it."""
        return {
            "output": str(self.output),
            "model": f"{self.output / 'onnx' / self.plan.precision.model_file}",
            **self.plan.to_dict(),
            "parameters": self.manifest.model.parameters,
            "bytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "seconds_per_gb": round(self.seconds / (self.nbytes / 1e9), 3),
        }


def export_checkpoint(
    checkpoint: Checkpoint | Path | str,
    output: Path | str,
    options: ExportOptions | None = None,
    *,
    progress: Progress = lambda line: None,
    on_bytes: BytesWritten = lambda count, total: None,
    plan: ExportPlan | None = None,
) -> Exported:
    """Write ``checkpoint``, a folder or a hub id (org/name), as an ONNX artifact to the folder ``output``.

    progress is told in lines what is being done, on_bytes of every piece of weights written: its bytes, and those of
    all. plan: what ``resolve_export`` made of the options, to be used instead of them. Interrupted, the folder is not
    there, and the next call with the same arguments goes on from the data files that were finished. Raises
    LfmOnnxError.

    >>> import lfm_onnx
    >>> exported = lfm_onnx.export_checkpoint("tiny_lfm", "lfm-fp16", lfm_onnx.ExportOptions(precision="fp16"))
    >>> exported.nbytes < 4_000_000
    True
    """
    started = time.perf_counter()
    output = Path(output)
    plan = plan or resolve_export(checkpoint, options or ExportOptions(), output=output, progress=progress)
    sequences = (plan.quantization.sequences if plan.quantization is not None else None) or ()
    found = range_notes(plan.checkpoint, plan.precision, sequences)
    for note in found:
        progress(f"note: {note}")
    plan = replace(plan, notes=(*plan.notes, *found))
    manifest = _write(plan, output_folder(output), lambda count: on_bytes(count, plan.data_bytes))
    for note in plan.notes:
        progress(f"note: {note}")
    return Exported(plan, output, manifest, time.perf_counter() - started)


def _write(plan: ExportPlan, output: Path, on_bytes: Callable[[int], None]) -> Manifest:
    """The artifact's folder, all or nothing; its manifest."""
    checkpoint, precision, ops_profile = plan.checkpoint, plan.precision, plan.ops_profile
    check_target(output, replace=plan.options.replace, source=checkpoint.folder)
    staging = Staging(output, _fingerprint(plan), replace=plan.options.replace)
    with staging.open():
        done = [record for file in plan.data_files if (record := staging.finished(f"onnx/{file.name}"))]
        check_space(output, plan.data_bytes - sum(record["bytes"] for record in done) + SMALL_FILES_BYTES)
        source_hash = SourceHash(checkpoint)
        (staging.folder / "onnx").mkdir(exist_ok=True)
        records = {file.name: _write_weights(staging, file, plan, on_bytes) for file in plan.data_files}
        _write_graph(staging.folder / "onnx", plan)
        others = write_client_files(
            staging.folder, checkpoint, precision, len(plan.data_files), ops_profile, plan.context_length
        )
        manifest = build_manifest(
            checkpoint,
            precision,
            ops_profile,
            plan.context_length,
            plan.tensors,
            source_hash.files(),
            [
                ArtifactFile.describe(staging.folder, f"onnx/{precision.model_file}"),
                *(
                    ArtifactFile.describe(staging.folder, f"onnx/{name}", record["sha256"])
                    for name, record in records.items()
                ),
            ],
            [ArtifactFile.describe(staging.folder, name) for name in others],
            _quantization_entry(plan, records.values()),
            plan.notes,
        )
        manifest.write(staging.folder)
        staging.publish()
    return manifest


def _fingerprint(plan: ExportPlan) -> str:
    """Identity of the work: two plans with the same one write the same bytes."""
    layout = [
        (file.name, [(placed.tensor.name, placed.offset, placed.tensor.nbytes) for placed in file.tensors])
        for file in plan.data_files
    ]
    identity = json.dumps([__version__, plan.checkpoint.fingerprint(), plan.to_dict(), layout])
    return hashlib.sha256(identity.encode()).hexdigest()


def _write_weights(
    staging: Staging, file: DataFile, plan: ExportPlan, on_bytes: Callable[[int], None]
) -> dict[str, Any]:
    """The journal's record of the file: bytes, sha256 and, quantized, what the method says of its tensors."""
    name = f"onnx/{file.name}"
    if (record := staging.finished(name)) is not None:
        on_bytes(record["bytes"])
        return record
    sha256 = write_data_file(staging.folder / name, file, on_bytes)
    record = {"bytes": file.nbytes, "sha256": sha256}
    if plan.quantization is not None:
        record["tensors"] = _tensor_reports(plan.quantization, (placed.tensor for placed in file.tensors))
    staging.finish(name, record)
    return record


def _tensor_reports(quantization: Quantization, tensors: Iterable[WeightTensor]) -> dict[str, Any]:
    """What the quantizer says of those weights whose codes are among ``tensors``; see ``tensor_reports``."""
    reports = quantization.tensor_reports()
    return {tensor.name: reports[tensor.name] for tensor in tensors if tensor.name in reports}


def _quantization_entry(plan: ExportPlan, records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The manifest's account of how blocks were made, the same whether or not the export was interrupted."""
    if plan.quantization is None:
        return None
    reports = _tensor_reports(plan.quantization, plan.inline)
    for record in records:
        reports |= record.get("tensors", {})
    in_order = {name: reports[name] for name in plan.quantization.format_of_weights() if name in reports}
    return {"recipe": plan.quantization.recipe.to_dict(), "tensors": in_order}


def _write_graph(folder: Path, plan: ExportPlan) -> None:
    """The .onnx file: its small tensors inside, the others by reference to the data files."""
    initializers = plan.model.graph.initializers
    for tensor in plan.inline:
        values = np.concatenate([piece.reshape(-1) for piece in tensor.pieces()]).reshape(tensor.shape)
        initializers[tensor.name].const_value = ir.tensor(values, name=tensor.name)
    for file in plan.data_files:
        for placed in file.tensors:
            tensor = placed.tensor
            initializers[tensor.name].const_value = ir.ExternalTensor(
                file.name,
                placed.offset,
                tensor.nbytes,
                ir.DataType.from_numpy(tensor.dtype),
                shape=ir.Shape(tensor.shape),
                name=tensor.name,
                base_dir=folder,
            )
    plan.model.producer_name, plan.model.producer_version = "lfm-onnx", __version__
    plan.model.metadata_props.update(identity(plan.checkpoint, plan.precision, plan.ops_profile, plan.context_length))
    ir.save(plan.model, folder / plan.precision.model_file)
