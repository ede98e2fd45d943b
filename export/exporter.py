"""The export: checkpoint to artifact folder, streaming, resumable, all or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import __version__
from ..artifact import MANIFEST_NAME
from ..checkpoint import Checkpoint
from ..errors import InputError
from ..quantize.formats import BlockFormat
from ..quantize.precision import FP32, Precision
from .client_configs import check_client_files, require_tokenizer, write_client_files
from .data_files import DataFile, plan_data_files, write_data_file
from .decoder import GraphOptions, declare_model
from .manifest import SourceHash, build_manifest, describe_file, identity, state_bytes
from .ops import BodyStyle
from .staging import Staging, check_space, check_target
from .weight_parameters import WeightFormat, check_block_format
from .weights import WeightTensor, weight_tensors

INLINE_BYTES = 1024
"""Tensors up to this size stay inside the .onnx file."""

SMALL_FILES_BYTES = 16 << 20
"""Allowance for the graph, tokenizer and JSON files when free space is checked."""


@dataclass(frozen=True)
class ExportOptions:
    """What the caller chooses. ``context_length`` None: the checkpoint's max_position_embeddings."""

    precision: Precision = FP32
    style: BodyStyle = BodyStyle.CUSTOM
    context_length: int | None = None
    replace: bool = False
    tokenizer: bool = True
    """False exports a checkpoint without tokenizer files."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export will write; made without reading weights or writing anything."""

    checkpoint: Checkpoint
    options: ExportOptions
    context_length: int
    model: ir.Model
    inline: tuple[WeightTensor, ...]
    data_files: tuple[DataFile, ...]

    @property
    def tensors(self) -> list[WeightTensor]:
        return [*self.inline, *(placed.tensor for file in self.data_files for placed in file.tensors)]

    @property
    def data_bytes(self) -> int:
        """Bytes of external weights."""
        return sum(file.nbytes for file in self.data_files)

    def to_dict(self) -> dict[str, Any]:
        """The plan for people and machines: files, bytes, states."""
        return {
            "checkpoint": self.checkpoint.source,
            "precision": self.options.precision.name,
            "weights": self.options.precision.weight_format,
            "ops": self.options.style.value,
            "context_length": self.context_length,
            "data_files": [{"path": f"onnx/{file.name}", "bytes": file.nbytes} for file in self.data_files],
            "data_bytes": self.data_bytes,
            "state_bytes": state_bytes(self.checkpoint.config, self.context_length),
            "nodes": self.model.graph.num_nodes(),
        }


def plan_export(checkpoint: Checkpoint, options: ExportOptions) -> ExportPlan:
    """Declare the graph and lay out its weights. Raises LfmOnnxError where the checkpoint or an option does not fit."""
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
    weights = options.precision.weights
    if isinstance(weights, BlockFormat):
        check_block_format(checkpoint.config, weights)
        weight_format: WeightFormat = weights
    else:
        weight_format = ir.DataType.from_numpy(weights)
    model = declare_model(checkpoint.config, GraphOptions(options.style, weight_format, context_length))
    tensors = weight_tensors(model, checkpoint, weights if isinstance(weights, BlockFormat) else None)
    inline = tuple(tensor for tensor in tensors if tensor.nbytes <= INLINE_BYTES)
    external = (tensor for tensor in tensors if tensor.nbytes > INLINE_BYTES)
    files = tuple(plan_data_files(external, options.precision.data_file))
    return ExportPlan(checkpoint, options, context_length, model, inline, files)


def export_checkpoint(
    checkpoint: Checkpoint,
    output: Path | str,
    options: ExportOptions | None = None,
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
    plan: ExportPlan | None = None,
) -> dict[str, Any]:
    """Write the artifact of ``checkpoint`` to the folder ``output``; the manifest.

    ``on_bytes`` is told of every piece of weights written (``ExportPlan.data_bytes`` in all). Interrupted, the folder
    is not there, and the next call with the same arguments goes on from the data files that were finished.
    """
    output = Path(output).absolute()
    plan = plan or plan_export(checkpoint, options or ExportOptions())
    check_target(output, replace=plan.options.replace)
    staging = Staging(output, _fingerprint(plan), replace=plan.options.replace)
    with staging.open():
        done = [record for file in plan.data_files if (record := staging.finished(f"onnx/{file.name}"))]
        check_space(output, plan.data_bytes - sum(record["bytes"] for record in done) + SMALL_FILES_BYTES)
        source_hash = SourceHash(checkpoint)
        (staging.folder / "onnx").mkdir(exist_ok=True)
        digests = {file.name: _write_weights(staging, file, on_bytes) for file in plan.data_files}
        _write_graph(staging.folder / "onnx", plan)
        others = write_client_files(
            staging.folder,
            checkpoint,
            plan.options.precision,
            len(plan.data_files),
            plan.options.style,
            plan.context_length,
        )
        manifest = build_manifest(
            checkpoint,
            plan.options.precision,
            plan.options.style,
            plan.context_length,
            plan.tensors,
            source_hash.files(),
            [describe_file(staging.folder, f"onnx/{plan.options.precision.model_file}")]
            + [describe_file(staging.folder, f"onnx/{name}", digest) for name, digest in digests.items()],
            [describe_file(staging.folder, name) for name in others],
        )
        (staging.folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
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


def _write_weights(staging: Staging, file: DataFile, on_bytes: Callable[[int], None]) -> str:
    name = f"onnx/{file.name}"
    if (record := staging.finished(name)) is not None:
        on_bytes(record["bytes"])
        return str(record["sha256"])
    sha256 = write_data_file(staging.folder / name, file, on_bytes)
    staging.finish(name, {"bytes": file.nbytes, "sha256": sha256})
    return sha256


def _write_graph(folder: Path, plan: ExportPlan) -> None:
    """The .onnx file: its small tensors inside, the others by reference to the data files."""
    initializers = plan.model.graph.initializers
    for tensor in plan.inline:
        values = np.concatenate([chunk.reshape(-1) for chunk in tensor.chunks()]).reshape(tensor.shape)
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
    plan.model.metadata_props.update(identity(plan.checkpoint, options.precision, options.style, plan.context_length))
    ir.save(plan.model, folder / options.precision.model_file)
