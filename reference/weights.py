"""Float32 weights for the reference, one at a time: small models stay converted, large ones never stay in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..checkpoint.config import LfmConfig

Array = npt.NDArray[np.float32]

CACHE_BYTES = 512 << 20
# Rows of the LM head are converted in pieces of at most this many bytes of float32.
CHUNK_BYTES = 32 << 20


class WeightReader(Protocol):
    """What reads a checkpoint's tensors by canonical name, such as ``checkpoint.checkpoint.Checkpoint``.

    ``config`` describes the tensors that there are. CheckpointError where one cannot be read.
    """

    @property
    def config(self) -> LfmConfig:
        """Sizes and switches of the model that the tensors belong to."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor of that canonical name."""
        ...

    def float32(self, name: str, rows: slice | None = None) -> Array:
        """The tensor, or ``rows`` of its first axis (step 1), as a new array; no other memory is kept."""
        ...

    def gather(self, name: str, indices: npt.NDArray[np.int64]) -> Array:
        """Rows ``indices`` of a table as a new array."""
        ...


@dataclass
class ConvertedWeights:
    """Converted weights that stay, up to ``budget`` bytes in total, whichever came first.

    Nothing is ever evicted: the layers are read in the same order for every token, and there a cache that evicts the
    least recently used weight of a model larger than itself would miss every time.
    """

    budget: int = CACHE_BYTES
    used: int = 0
    arrays: dict[tuple[str, int], Array] = field(default_factory=dict)

    def keep(self, key: tuple[str, int], array: Array) -> None:
        """Keeps ``array`` where it fits into what is left of the budget; otherwise nothing changes."""
        if self.used + array.nbytes <= self.budget:
            self.arrays[key] = array
            self.used += array.nbytes


@dataclass(frozen=True)
class Weights:
    """Weights of a checkpoint by name under ``prefix``, as float32."""

    reader: WeightReader
    converted: ConvertedWeights = field(default_factory=ConvertedWeights)
    prefix: str = ""

    def scope(self, prefix: str) -> Weights:
        """The same weights, and the same memory of converted ones, under ``self.prefix + prefix``."""
        return replace(self, prefix=self.prefix + prefix)

    def __call__(self, name: str) -> Array:
        """The whole weight in float32. Do not write to it: it may be kept for the next call."""
        return self._read(self.prefix + name, 0, None)

    def gather(self, name: str, indices: npt.NDArray[np.int64]) -> Array:
        """Rows ``indices`` of a table, ``[len(indices), …]``, without converting or loading the others."""
        return self.reader.gather(self.prefix + name, indices)

    def row_pieces(self, name: str) -> Iterator[tuple[slice, Array]]:
        """All rows of a matrix in order, in pieces of at most CHUNK_BYTES of float32 each."""
        rows, columns = self.reader.shape(self.prefix + name)
        step = max(1, CHUNK_BYTES // (4 * columns))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield slice(first, last), self._read(self.prefix + name, first, last)

    def _read(self, name: str, first: int, last: int | None) -> Array:
        array = self.converted.arrays.get((name, first))
        if array is None:
            array = self.reader.float32(name, slice(first, last))
            self.converted.keep((name, first), array)
        return array
