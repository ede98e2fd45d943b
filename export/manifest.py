"""What an export writes of itself to the manifest: the checkpoint, the model, and the weights by class."""

from __future__ import annotations

import importlib.metadata
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..artifact.files import ArtifactFile, file_digest
from ..artifact.graph_weights import TensorKind
from ..artifact.manifest import Manifest, ModelFacts, Source, SourceFile, Variant
from ..artifact.precision import Precision
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.config import CONFIG_NAME, LfmConfig
from ..checkpoint.expected_tensors import parameter_count
from ..errors import CheckpointError
from .artifact_source import ArtifactSource
from .ops import OPSET_VERSION, OpsProfile
from .weights import WeightTensor

CONTEXT_STEPS = (1024, 4096, 16384, 32768, 131072)
"""Context lengths that the manifest gives the memory of."""
_TOOLS = ("onnx", "onnx_ir", "onnxscript", "numpy", "onnxruntime")


class SourceHash:
    """SHA-256 of a checkpoint's weight files, taken in a thread of its own while the export reads them.

    An artifact knows those of the checkpoint that it was made from.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._known = checkpoint.origin.files if isinstance(checkpoint, ArtifactSource) else None
        self._paths = [] if self._known is not None else checkpoint.weight_files()
        self._digests: dict[str, str] = {}
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="source-hash", daemon=True)
        self._thread.start()

    def files(self) -> tuple[SourceFile, ...]:
        """The weight files; waits for the thread."""
        self._thread.join()
        if self._failure is not None:
            raise CheckpointError(f"the checkpoint cannot be read: {self._failure}")
        if self._known is not None:
            return self._known
        return tuple(SourceFile(path.name, path.stat().st_size, self._digests[path.name]) for path in self._paths)

    def _run(self) -> None:
        try:
            for path in self._paths:
                self._digests[path.name] = file_digest(path)
        except OSError as error:
            self._failure = error


def state_bytes(config: LfmConfig, context_length: int, itemsize: int = 4) -> dict[str, int]:
    """Bytes of the states of one conversation: KV cache of ``context_length`` tokens, convolution states."""
    kv = len(config.attention_layers) * 2 * config.kv_dim * context_length * itemsize
    return {"kv_cache": kv, "conv": len(config.conv_layers) * config.hidden_size * config.conv_L_cache * itemsize}


def identity(
    checkpoint: Checkpoint, precision: Precision, ops_profile: OpsProfile, context_length: int
) -> dict[str, str]:
    """What the .onnx file's metadata_props and the manifest both say of the model."""
    return {
        "lfm_onnx.version": __version__,
        "lfm_onnx.source": source_name(checkpoint),
        "lfm_onnx.config_sha256": config_sha256(checkpoint),
        "lfm_onnx.model_type": checkpoint.config.model_type,
        "lfm_onnx.precision": precision.name,
        "lfm_onnx.ops": ops_profile.value,
        "lfm_onnx.context_length": str(context_length),
    }


def source_name(checkpoint: Checkpoint) -> str:
    """The hub id, or a local folder's own name: where it lay on somebody's disk is nobody's business."""
    if isinstance(checkpoint, ArtifactSource):
        return checkpoint.origin.checkpoint
    is_local = Path(checkpoint.source).exists()
    return checkpoint.folder.resolve().name if is_local else checkpoint.source


def config_sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of the checkpoint's config.json as it stands in its folder."""
    if isinstance(checkpoint, ArtifactSource):
        return checkpoint.origin.config_sha256
    return file_digest(checkpoint.folder / CONFIG_NAME)


def source_of(checkpoint: Checkpoint, files: Sequence[SourceFile], notes: Sequence[str]) -> Source:
    """The manifest's record of the checkpoint. files: its weight files. notes: what of it is not used as it says."""
    return Source.of(source_name(checkpoint), config_sha256(checkpoint), files, notes)


def model_facts(checkpoint: Checkpoint, context_length: int) -> ModelFacts:
    """The manifest's record of the model."""
    config = checkpoint.config
    return ModelFacts(config.model_type, parameter_count(checkpoint.config), config.layer_types, context_length)


def tool_versions() -> dict[str, str]:
    """The libraries that decide the bytes of the files."""
    return {name: importlib.metadata.version(name) for name in _TOOLS}


def build_manifest(
    checkpoint: Checkpoint,
    precision: Precision,
    ops_profile: OpsProfile,
    context_length: int,
    tensors: Iterable[WeightTensor],
    source_files: Sequence[SourceFile],
    model_files: Sequence[ArtifactFile],
    other_files: Sequence[ArtifactFile],
    quantization: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Manifest:
    """The manifest of a folder with one variant. quantization: how its blocks were made. notes: see ``source_of``."""
    tensors = list(tensors)
    variant = Variant(
        model=f"onnx/{precision.model_file}",
        ops=ops_profile.value,
        opset=OPSET_VERSION,
        precision=precision_by_kind(tensors),
        files=tuple(file.path for file in model_files),
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        quantization=quantization,
    )
    steps = sorted({step for step in CONTEXT_STEPS if step < context_length} | {context_length})
    itemsize = precision.activations.itemsize
    return Manifest(
        source=source_of(checkpoint, source_files, notes),
        model=model_facts(checkpoint, context_length),
        variants={precision.name: variant},
        files=(*model_files, *other_files),
        tools=tool_versions(),
        memory_bytes_by_context={str(step): state_bytes(checkpoint.config, step, itemsize) for step in steps},
    )


def precision_by_kind(tensors: Iterable[WeightTensor]) -> dict[str, dict[str, Any]]:
    """Per tensor class: its dtype or block format, number of weights, and bytes with scales and zero points.

    A class whose weights have several block formats has dtype "mixed" and their counts by name.
    """
    by_kind: dict[str, list[WeightTensor]] = {}
    for tensor in tensors:
        by_kind.setdefault(_tensor_class(tensor.weight.kind), []).append(tensor)
    return {kind: _stored(members) for kind, members in by_kind.items()}


_CLASSES = {
    TensorKind.CONV: "linear",
    TensorKind.ATTENTION: "linear",
    TensorKind.FEED_FORWARD: "linear",
    TensorKind.EXPERTS: "expert",
    TensorKind.SHORT_CONV: "conv",
}


def _tensor_class(kind: TensorKind) -> str:
    """The kind's name in the manifest."""
    return _CLASSES.get(kind, kind.value)


def _stored(tensors: list[WeightTensor]) -> dict[str, Any]:
    weights = [tensor for tensor in tensors if not tensor.is_scales_or_zero_points]
    first = weights[0]
    blocks = Counter(tensor.blocks.name for tensor in weights if tensor.blocks is not None)
    if len(blocks) > 1:
        stored: dict[str, Any] = {"dtype": "mixed", "formats": dict(sorted(blocks.items()))}
    else:
        stored = first.blocks.to_dict() if first.blocks is not None else {"dtype": first.dtype.name}
    return {**stored, "tensors": len(weights), "bytes": sum(tensor.nbytes for tensor in tensors)}
