"""The export: checkpoint to artifact folder, streaming, resumable, all or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import __version__
from ..artifact.files import ArtifactFile
from ..artifact.formats import BlockFormat
from ..artifact.graph_weights import TensorKind
from ..artifact.manifest import Manifest
from ..artifact.precision import FP32, Precision
from ..checkpoint.checkpoint import Checkpoint
from ..errors import InputError
from ..quantize.quantization import Quantization, QuantizationOptions, settle_quantization
from .client_configs import check_client_files, require_tokenizer, write_client_files
from .data_files import DataFile, plan_data_files, write_data_file
from .decoder import GraphOptions, declare_model, graph_weights, model_weights
from .manifest import SourceHash, build_manifest, identity, state_bytes
from .notes import checkpoint_notes
from .ops import OpsProfile
from .output_folder import check_space, check_target, output_folder
from .staging import Staging
from .weight_parameters import WeightFormats, check_block_formats
from .weights import WeightTensor, weight_tensors

INLINE_BYTES = 1024
"""Tensors up to this size stay inside the .onnx file."""

SMALL_FILES_BYTES = 16 << 20
"""Allowance for the graph, tokenizer and JSON files when free space is checked."""


@dataclass(frozen=True)
class ExportOptions:
    """What the caller chooses. ``context_length`` None: the checkpoint's max_position_embeddings."""

    precision: Precision = FP32
    ops_profile: OpsProfile = OpsProfile.CUSTOM
    context_length: int | None = None
    replace: bool = False
    tokenizer: bool = True
    """False exports a checkpoint without tokenizer files."""
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    """How blocks are made, in precisions that have them."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export will write; made without reading weights or writing anything."""

    checkpoint: Checkpoint
    options: ExportOptions
    context_length: int
    model: ir.Model
    inline: tuple[WeightTensor, ...]
    data_files: tuple[DataFile, ...]
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()
    """One line on each thing of the checkpoint that is not used, or not as it says."""

    @property
    def tensors(self) -> list[WeightTensor]:
        return [*self.inline, *(placed.tensor for file in self.data_files for placed in file.tensors)]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, external and inside the .onnx file."""
        return self.data_bytes + sum(tensor.nbytes for tensor in self.inline)

    @property
    def data_bytes(self) -> int:
        """Bytes of external weights."""
        return sum(file.nbytes for file in self.data_files)

    def to_dict(self) -> dict[str, Any]:
        """The plan for people and machines: files, bytes, states."""
        return {
            "checkpoint": self.checkpoint.source,
            "precision": self.options.precision.name,
            "weights": self._weights,
            **({} if self.quantization is None else {"quantization": self.quantization.recipe.to_dict()}),
            "ops": self.options.ops_profile.value,
            "context_length": self.context_length,
            "data_files": [{"path": f"onnx/{file.name}", "bytes": file.nbytes} for file in self.data_files],
            "data_bytes": self.data_bytes,
            "state_bytes": state_bytes(
                self.checkpoint.config, self.context_length, self.options.precision.activations.itemsize
            ),
            "nodes": self.model.graph.num_nodes(),
            "notes": list(self.notes),
        }

    @property
    def _weights(self) -> str:
        """The format of the weights, or of most of them where each has its own."""
        if self.quantization is None:
            return self.options.precision.weight_format
        names = {fmt.name for fmt in self.quantization.recipe.formats.values()}
        return names.pop() if len(names) == 1 else "mixed"


def plan_export(checkpoint: Checkpoint, options: ExportOptions, quantization: Quantization | None = None) -> ExportPlan:
    """Declare the graph and lay out its weights. Raises LfmOnnxError where the checkpoint or an option does not fit.

    quantization: settled before, instead of what ``options`` ask for.
    """
    longest = checkpoint.config.max_position_embeddings
    context_length = options.context_length if options.context_length is not None else longest
    if not 1 <= context_length <= longest:
        raise InputError(
            f"context length {context_length}: {checkpoint.source} was made for 1 to {longest} positions "
            "(max_position_embeddings)"
        )
    if options.tokenizer:
        require_tokenizer(checkpoint)
    check_client_files(checkpoint)
    precision = options.precision
    activations = ir.DataType.from_numpy(precision.activations)
    if activations != ir.DataType.FLOAT and options.ops_profile is not OpsProfile.CUSTOM:
        raise InputError(f"{precision.name} is for ONNX Runtime's GPU operators: use --ops custom")
    if isinstance(precision.weights, BlockFormat):
        if quantization is None:
            weights = model_weights(checkpoint.config, blocks=True)
            quantization = settle_quantization(
                checkpoint, weights, precision, options.quantization, tokenizer=options.tokenizer
            )
        check_block_formats(checkpoint.config, quantization.groups, quantization.recipe.formats)
        formats = WeightFormats(blocks=quantization.recipe.formats)
    else:
        formats = WeightFormats(ir.DataType.from_numpy(precision.weights))
    graph = GraphOptions(options.ops_profile, formats, context_length, activations)
    model = declare_model(checkpoint.config, graph)
    tensors = weight_tensors(model, graph_weights(checkpoint.config, graph), checkpoint, quantization)
    inline = tuple(tensor for tensor in tensors if tensor.nbytes <= INLINE_BYTES)
    external = sorted((tensor for tensor in tensors if tensor.nbytes > INLINE_BYTES), key=_comes_last)
    files = tuple(plan_data_files(external, options.precision.data_file))
    notes = checkpoint_notes(checkpoint)
    return ExportPlan(checkpoint, options, context_length, model, inline, files, quantization, notes)


def _comes_last(tensor: WeightTensor) -> bool:
    """The table: as the head it is quantized by what leaves the last layer, known when all layers have been visited."""
    return tensor.weight.kind is TensorKind.EMBEDDING


def export_checkpoint(
    checkpoint: Checkpoint,
    output: Path | str,
    options: ExportOptions | None = None,
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
    plan: ExportPlan | None = None,
) -> Manifest:
    """Write the artifact of ``checkpoint`` to the folder ``output``; the manifest.

    ``on_bytes`` is told of every piece of weights written (``ExportPlan.data_bytes`` in all). Interrupted, the folder
    is not there, and the next call with the same arguments goes on from the data files that were finished.
    """
    output = output_folder(output)
    plan = plan or plan_export(checkpoint, options or ExportOptions())
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
            staging.folder,
            checkpoint,
            plan.options.precision,
            len(plan.data_files),
            plan.options.ops_profile,
            plan.context_length,
        )
        manifest = build_manifest(
            checkpoint,
            plan.options.precision,
            plan.options.ops_profile,
            plan.context_length,
            plan.tensors,
            source_hash.files(),
            [
                ArtifactFile.describe(staging.folder, f"onnx/{plan.options.precision.model_file}"),
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
    found = quantization.tensor_reports()
    return {tensor.name: found[tensor.name] for tensor in tensors if tensor.name in found}


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
    options = plan.options
    plan.model.producer_name, plan.model.producer_version = "lfm-onnx", __version__
    plan.model.metadata_props.update(
        identity(plan.checkpoint, options.precision, options.ops_profile, plan.context_length)
    )
    ir.save(plan.model, folder / options.precision.model_file)
