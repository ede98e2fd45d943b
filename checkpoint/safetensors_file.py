"""One safetensors file, opened as if hostile: the whole header is checked against the file before any byte is used."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from ..strict_json import parse_json, require_regular_file, shown

MAX_HEADER_BYTES = 100_000_000

# Bits per element of every dtype that the format defines.
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
_NUMPY_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32,
    "F64": np.float64, "C64": np.complex64,
}  # fmt: skip
_MAX_RANK = 32
_MAX_DIMENSION = (1 << 63) - 1


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: ``offset`` and ``nbytes`` are bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """The tensors of one file. Opening checks everything that the header claims; reading maps pages on demand.

    ``tensors`` lists the entries in the order of their data, ``header_sha256`` identifies header and layout.
    CheckpointError names the file and, where it is about one, the tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            require_regular_file(self.path, CheckpointError)
            with open(self.path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                header = self._read_header(file)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        self.header_sha256 = hashlib.sha256(header).hexdigest()
        self.tensors = self._entries(header)
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor as a read-only view of the mapped file, in its stored dtype: no copy, pages read when touched."""
        return self.view(name, 0, self._entry(name).shape)

    def view(self, name: str, start: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A contiguous part of a tensor: ``shape`` elements from element ``start`` on, as a read-only view."""
        entry = self._entry(name)
        dtype = _NUMPY_DTYPES.get(entry.dtype)
        if dtype is None:
            raise self._fault(f"tensor {shown(name)} has dtype {entry.dtype}, which cannot be read as an array")
        itemsize = np.dtype(dtype).itemsize
        begin, length = entry.offset + start * itemsize, int(np.prod(shape, dtype=np.int64)) * itemsize
        if start < 0 or begin + length > entry.offset + entry.nbytes:
            raise ValueError(f"{shape} from element {start} on is outside tensor {name} of shape {entry.shape}")
        result: npt.NDArray[Any] = self._bytes[begin : begin + length].view(dtype).reshape(shape)
        return result

    def release(self, name: str) -> None:
        """Drop the tensor's mapped pages from this process's memory; they are read again when touched again."""
        entry = self._entry(name)
        if entry.nbytes and hasattr(self._map, "madvise"):
            begin = entry.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, begin, entry.offset + entry.nbytes - begin)

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.tensors[name]
        except KeyError:
            raise self._fault(f"no tensor {shown(name)} in this file") from None

    def _fault(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}")

    def _read_header(self, file: Any) -> bytes:
        if self.size < 8:
            raise self._fault(f"not a safetensors file, or truncated: {self.size} bytes, at least 8 expected")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER_BYTES:
            raise self._fault(f"not a safetensors file: the header claims {length} bytes, at most {MAX_HEADER_BYTES}")
        if length > self.size - 8:
            raise self._fault(f"truncated: the header claims {length} bytes, the file has {self.size} in all")
        header: bytes = file.read(length)
        if len(header) != length:
            raise self._fault(f"truncated: the header ends after {len(header)} of {length} bytes")
        return header

    def _entries(self, header: bytes) -> dict[str, TensorEntry]:
        try:
            members = parse_json(header)
        except ValueError as error:
            raise self._fault(f"corrupt header: {error}") from None
        if not isinstance(members, dict) or header[:1] != b"{":
            raise self._fault("corrupt header: it is not a JSON object")
        metadata = members.pop("__metadata__", None)
        if metadata is not None and not (
            isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        ):
            raise self._fault("corrupt header: __metadata__ must map names to strings")
        start = 8 + len(header)
        entries = [self._tensor_entry(name, value, start) for name, value in members.items()]
        entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
        self._check_layout(entries, start)
        return {entry.name: entry for entry in entries}

    def _tensor_entry(self, name: str, value: object, start: int) -> TensorEntry:
        def fault(problem: str) -> CheckpointError:
            return self._fault(f"tensor {shown(name)}: {problem}")

        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise fault("its entry must have exactly dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
            raise fault(f"dtype {shown(dtype)} is not one that the safetensors format defines")
        if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_size(n) for n in shape):
            raise fault(f"shape {shown(shape)} is not a list of up to {_MAX_RANK} sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
            raise fault(f"data_offsets {shown(offsets)} is not [begin, end]")
        begin, end = offsets
        if begin > end:
            raise fault(f"data_offsets {shown(offsets)} end before they begin")
        if start + end > self.size:
            missing = start + end - self.size
            raise fault(f"its data ends {missing} bytes after the end of the file (truncated, or a corrupt header)")
        bits = _DTYPE_BITS[dtype]
        for size in shape:
            bits *= size
        if bits != (end - begin) * 8:
            raise fault(f"shape {shown(shape)} of {dtype} takes {shown(bits // 8)} bytes, data_offsets {end - begin}")
        return TensorEntry(name, dtype, tuple(shape), start + begin, end - begin)

    def _check_layout(self, entries: list[TensorEntry], start: int) -> None:
        position = start
        for entry in entries:
            if entry.offset != position:
                problem = "overlaps the tensor before it" if entry.offset < position else "leaves a gap before it"
                raise self._fault(
                    f"tensor {shown(entry.name)} {problem}: it begins at byte {entry.offset}, expected {position}"
                )
            position += entry.nbytes
        if position != self.size:
            raise self._fault(f"the tensors end at byte {position}, the file at {self.size}: bytes that belong to none")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_DIMENSION
