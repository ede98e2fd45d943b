"""External weights: which tensor lies where in which file, and writing one file in a single pass."""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .weights import WeightTensor

PAGE = 4096
"""Alignment of large tensors, so that a memory-mapped one starts on a page; small ones take a cache line."""

CACHE_LINE = 64
LARGE_TENSOR = 64 << 10

MAX_FILE_BYTES = 1_900_000_000
"""Size at which the next file begins: browsers cannot hold a file of 2 GiB in one buffer."""

WRITE_BYTES = 16 << 20
"""Bytes written at a time. Large writes at multiples of their size give the page cache large pages, where the file
system has them: the weights, mapped from there, are then read with far fewer address translations."""

_QUEUED_PIECES = 3


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor and its byte offset in its file."""

    tensor: WeightTensor
    offset: int


@dataclass(frozen=True)
class DataFile:
    """One file of external weights: its tensors in order of their offsets."""

    name: str
    tensors: tuple[PlacedTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the file: the end of its last tensor."""
        last = self.tensors[-1]
        return last.offset + last.tensor.nbytes


def plan_data_files(
    tensors: Iterable[WeightTensor], file_name: Callable[[int], str], max_bytes: int = MAX_FILE_BYTES
) -> list[DataFile]:
    """Lay the tensors out one after another, aligned, in files of at most ``max_bytes`` (a larger tensor: its own)."""
    files: list[list[PlacedTensor]] = [[]]
    end = 0
    for tensor in tensors:
        alignment = PAGE if tensor.nbytes >= LARGE_TENSOR else CACHE_LINE
        offset = -(-end // alignment) * alignment
        if files[-1] and offset + tensor.nbytes > max_bytes:
            files.append([])
            offset = 0
        files[-1].append(PlacedTensor(tensor, offset))
        end = offset + tensor.nbytes
    return [DataFile(file_name(index), tuple(placed)) for index, placed in enumerate(files) if placed]


def write_data_file(path: Path, file: DataFile, on_bytes: Callable[[int], None]) -> str:
    """Write ``file`` to ``path``, durable on return, and give its SHA-256.

    Converting runs in the caller's thread, hashing and writing in another; memory holds a few pieces at a time.
    """
    pieces: queue.Queue[memoryview | None] = queue.Queue(_QUEUED_PIECES)
    digest = hashlib.sha256()
    failure: list[BaseException] = []

    def drain() -> None:
        ended = False
        try:
            gathered, used = bytearray(WRITE_BYTES), 0
            with path.open("wb", buffering=0) as out:
                while (piece := pieces.get()) is not None:
                    digest.update(piece)
                    while piece:
                        taken = min(len(piece), WRITE_BYTES - used)
                        gathered[used : used + taken] = piece[:taken]
                        piece, used = piece[taken:], used + taken
                        if used == WRITE_BYTES:
                            _write_all(out, memoryview(gathered))
                            used = 0
                ended = True
                _write_all(out, memoryview(gathered)[:used])
                os.fsync(out.fileno())
        except BaseException as error:
            failure.append(error)
            # What is written last, such as on a disk that is full, fails when there is nothing more to come.
            while not ended and pieces.get() is not None:
                pass

    # A daemon, so that an interrupt between any two lines here leaves no thread that the process would wait for.
    writer = threading.Thread(target=drain, name="weights-writer", daemon=True)
    try:
        writer.start()
        for piece in _file_pieces(file):
            if failure:
                break
            pieces.put(piece)
            on_bytes(len(piece))
    finally:
        pieces.put(None)
        if writer.ident is not None:
            writer.join()
    if failure:
        raise failure[0]
    return digest.hexdigest()


def _write_all(out: io.FileIO, content: memoryview) -> None:
    while content:
        content = content[out.write(content) :]


def _file_pieces(file: DataFile) -> Iterator[memoryview]:
    end = 0
    for placed in file.tensors:
        if placed.offset > end:
            yield memoryview(bytes(placed.offset - end))
        end = placed.offset
        for piece in placed.tensor.pieces():
            if piece.nbytes:
                end += piece.nbytes
                yield np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        assert end == placed.offset + placed.tensor.nbytes, placed.tensor.name
