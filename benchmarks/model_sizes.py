"""What a model weighs: bytes of its tensors, counted alike in GGUF files and ONNX models, and of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Size:
    """Bytes of all tensors in the model's files, tables of rotary angles among them, and of the files."""

    tensor_bytes: int
    file_bytes: int


def gguf_size(path: Path) -> Size:
    """Of a GGUF file."""
    import gguf

    return Size(sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors), path.stat().st_size)


def onnx_size(folder: Path) -> Size:
    """Of the one model in a folder: the .onnx file and the files with its weights."""
    import onnx

    files = [file for file in folder.rglob("*.onnx*") if file.is_file()]
    model = onnx.load(next(file for file in files if file.suffix == ".onnx"), load_external_data=False)
    tensors = sum(_tensor_bytes(tensor) for tensor in model.graph.initializer)
    return Size(tensors, sum(file.stat().st_size for file in files))


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    bits = {1: 32, 6: 32, 7: 64, 10: 16, 16: 16, 21: 4, 22: 4}.get(tensor.data_type, 8)
    return int(np.prod(tensor.dims, dtype=np.int64)) * bits // 8
