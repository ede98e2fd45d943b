"""An fp32 or fp16 artifact read as the checkpoint that it was made from: the same names, layouts and values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from ..artifact.artifact import Artifact
from ..artifact.graph_weights import GraphWeight, Layout, current_name
from ..checkpoint.checkpoint import Checkpoint, read_float32, require_finite
from ..checkpoint.config import CONFIG_NAME, read_config_file
from ..checkpoint.expected_tensors import expected_tensors
from ..errors import ArtifactError, CheckpointError
from ..strict_json import shown
from .decoder import model_weights

_STORED = {onnx.TensorProto.FLOAT: "F32", onnx.TensorProto.FLOAT16: "F16"}
_NUMPY: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


@dataclass(frozen=True)
class _Stored:
    """An initializer of the graph: at ``offset`` of a file, or ``inline``."""

    dtype: str
    shape: tuple[int, ...]
    path: Path | None = None
    offset: int = 0
    inline: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class _TensorRows:
    """One tensor of the checkpoint: rows ``first``, ``first + step`` … of a stored one, flattened to rows.

    ``taps``: the stored one is a convolution's [L, hidden], the checkpoint's [hidden, 1, L].
    """

    stored: _Stored
    shape: tuple[int, ...]
    first: int = 0
    step: int = 1
    taps: bool = False


class ArtifactSource(Checkpoint):
    """The weights of one variant of an artifact under the names of its checkpoint.

    ``origin``: the manifest's record of that checkpoint (its name, files and digests), which an export from here
    states as its own source. ``context_length``: positions that the artifact supports.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.folder = artifact.folder
        self.source = str(artifact.folder)
        self.raw_config = read_config_file(artifact.folder / CONFIG_NAME)
        self.config = artifact.config
        self.context_length = artifact.context_length
        self.origin = artifact.manifest.source
        self.notes = self.origin.notes
        stored = _stored_tensors(artifact)
        self._shapes = dict(expected_tensors(self.config))
        table = model_weights(self.config, blocks=False)
        tensors = dict(named for weight in table for named in self._rows_of(stored, weight))
        self._rows = {name: tensors[name] for name in self._shapes}

    @classmethod
    def open(cls, source: str | Path, variant: str | None = None, **_: Any) -> ArtifactSource:
        """Open an artifact's folder. ArtifactError where it is damaged, or quantized already."""
        try:
            return cls(Artifact.open(source, variant))
        except OSError as error:
            raise ArtifactError(f"{source}: cannot be read: {error.strerror or error}") from None

    def names(self) -> list[str]:
        """Canonical names of all tensors of the checkpoint, in the model's order."""
        return list(self._rows)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape in the checkpoint's layout. CheckpointError where the model has no tensor of that name."""
        return self._rows_named(name).shape

    def dtype(self, name: str) -> str:
        """Stored dtype in the artifact: "F32" or "F16"."""
        return self._rows_named(name).stored.dtype

    def nbytes(self, name: str) -> int:
        """Bytes of the tensor's values in the artifact's dtype."""
        tensor = self._rows_named(name)
        return math.prod(tensor.shape) * _NUMPY[tensor.stored.dtype].itemsize

    def raw(self, name: str) -> npt.NDArray[Any]:
        """The tensor in its stored dtype: a read-only view of the mapped file, or a new array where need be."""
        tensor = self._rows_named(name)
        stored = tensor.stored
        if stored.inline is not None or stored.path is None or tensor.taps:
            return self.float32(name).astype(_NUMPY[stored.dtype])
        whole = np.memmap(stored.path, _NUMPY[stored.dtype], "r", stored.offset, stored.shape)
        count = tensor.shape[0]
        rows = whole.reshape(-1, *tensor.shape[1:])
        return rows[tensor.first : tensor.first + count * tensor.step : tensor.step]

    def release(self, name: str) -> None:
        """No more than a check of the name (CheckpointError): no mapping outlives the arrays that ``raw`` returns."""
        self._rows_named(name)

    def float32(self, name: str, rows: slice | None = None) -> npt.NDArray[np.float32]:
        """The tensor, or ``rows`` of its first axis (step 1), as a new float32 array.

        CheckpointError for a value that is not a number; ValueError for another step.
        """
        tensor = self._rows_named(name)
        begin, end, step = (rows or slice(None)).indices(tensor.shape[0])
        if step != 1:
            raise ValueError(f"rows must be a slice of step 1, not {step}")
        end = max(begin, end)
        if tensor.taps:
            taps = self._read(tensor.stored, 0, tensor.stored.shape[0])
            values = np.ascontiguousarray(taps.T[begin:end, None, :])
        else:
            first, count = tensor.first + begin * tensor.step, (end - begin) * tensor.step
            values = np.ascontiguousarray(self._read(tensor.stored, first, count, tensor.shape[1:])[:: tensor.step])
        require_finite(values, name, tensor.stored.path or self.artifact.model_path, begin)
        return values

    def fingerprint(self) -> str:
        """Identity of the files without reading the weights: sha256 over config, sizes, times and digests on record."""
        digest = hashlib.sha256((self.folder / CONFIG_NAME).read_bytes())
        for file in self.artifact.model_files:
            status = (self.folder / file.path).stat()
            digest.update(f"{file.path} {status.st_size} {status.st_mtime_ns} {file.sha256}\n".encode())
        return digest.hexdigest()

    def weight_files(self) -> list[Path]:
        """The artifact's model files: the graph and its external weights."""
        return [self.folder / file.path for file in self.artifact.model_files]

    def _read(
        self, stored: _Stored, first: int, count: int, row_shape: tuple[int, ...] | None = None
    ) -> npt.NDArray[np.float32]:
        """Rows of the last axes ``row_shape`` (the last one alone, if None)."""
        row_shape = stored.shape[1:] if row_shape is None else row_shape
        size = math.prod(row_shape)
        if stored.inline is not None:
            rows = stored.inline.reshape(-1, *row_shape)[first : first + count]
            return rows.astype(np.float32)
        assert stored.path is not None
        offset = stored.offset + first * size * _NUMPY[stored.dtype].itemsize
        return read_float32(stored.path, stored.dtype, offset, (count, *row_shape))

    def _rows_named(self, name: str) -> _TensorRows:
        try:
            return self._rows[name]
        except KeyError:
            raise CheckpointError(f"{self.folder}: no tensor {shown(name)} in this model") from None

    def _rows_of(self, stored: dict[str, _Stored], weight: GraphWeight) -> Iterator[tuple[str, _TensorRows]]:
        """The tensors of the checkpoint that the weight is made of, by name."""
        if not weight.sources:
            return
        tensor = self._take(stored, weight)
        for expert, sources in weight.sources_by_expert():
            first = (expert or 0) * weight.rows_per_expert
            for index, source in enumerate(sources):
                shape = self._shapes[source]
                if weight.layout is Layout.PAIRS:
                    yield source, _TensorRows(tensor, shape, first + index, 2)
                    continue
                yield source, _TensorRows(tensor, shape, first, taps=weight.layout is Layout.TAPS)
                first += shape[0]

    def _take(self, stored: dict[str, _Stored], weight: GraphWeight) -> _Stored:
        tensor = stored.get(weight.name)
        if tensor is None or tensor.shape != weight.shape:
            expected = list(weight.shape)
            what = "is missing" if tensor is None else f"has shape {list(tensor.shape)}, expected {expected}"
            raise ArtifactError(
                f"{self.artifact.model_path}: the weight {weight.name} {what}; expected an artifact that this version "
                'exported with `precision="fp32"` or fp16'
            )
        return tensor


def _stored_tensors(artifact: Artifact) -> dict[str, _Stored]:
    """The float initializers of the graph by the names that they have today."""
    path = artifact.model_path
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise ArtifactError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}; export it again") from None
    files = {PurePosixPath(file.path).name: artifact.folder / file.path for file in artifact.model_files}
    tensors = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.UINT8:
            raise ArtifactError(
                f"{path} is quantized already; take the fp32 or fp16 artifact, or the checkpoint with lfm-onnx export"
            )
        dtype = _STORED.get(tensor.data_type)
        if dtype is None:
            continue
        name, shape = current_name(tensor.name), tuple(tensor.dims)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            tensors[name] = _Stored(dtype, shape, inline=numpy_helper.to_array(tensor))
            continue
        tensors[name] = _external(tensor, dtype, shape, files, path)
    return tensors


def _external(
    tensor: onnx.TensorProto, dtype: str, shape: tuple[int, ...], files: dict[str, Path], path: Path
) -> _Stored:
    info = ExternalDataInfo(tensor)
    file = files.get(info.location)
    offset, nbytes = info.offset or 0, math.prod(shape) * _NUMPY[dtype].itemsize
    if file is None or offset < 0 or min(shape, default=1) < 0 or offset + nbytes > file.stat().st_size:
        raise ArtifactError(f"{path}: the weight {shown(tensor.name)} lies outside of the artifact's files")
    return _Stored(dtype, shape, file, offset)
