"""The judge's own way to a checkpoint's weights: the safetensors library, and no line of what export reads them with.

What counts as a weight is what transformers 5 makes of the files:

- a single model.safetensors goes before an index;
- experts lie one matrix each, or fused: gate_up_proj [E, 2M, H] (w1's rows, then w3's) and down_proj [E, H, M];
- names may lack ``model.``, as a base model is saved;
- where config.json ties the head to the embedding, a head in the file is one unless it is equal to the embedding, and
  of the two one may be missing.

The library checks headers, shapes and sizes against the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ..checkpoint.config import CONFIG_NAME, LfmConfig, read_config_file
from ..checkpoint.expected_tensors import EMBEDDING, LM_HEAD, expected_tensors
from ..errors import CheckpointError
from ..strict_json import JsonObject, shown

Array = npt.NDArray[np.float32]

_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.w([123])\.weight")
_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
"""The library finds bfloat16 by its name, which numpy knows once ml_dtypes is there."""

_MAPPED_BYTES = 32 << 20
"""Read through one mapping of the files before another takes its place: what was read counts as this process's memory
for as long as it is mapped."""

_COMPARED_ROWS = 1024


@dataclass(frozen=True)
class _Place:
    """A tensor within a stored one: the whole, or ``shape`` from row ``start`` of the matrix of one ``expert``."""

    stored: str
    shape: tuple[int, ...]
    expert: int | None = None
    start: int = 0


class SafetensorsWeights:
    """Reads the weights of a checkpoint folder by canonical name; a ``WeightReader``.

    ``config`` is config.json's, with the head tied or not as the files have it. CheckpointError: files that are
    missing or that the library refuses, tensors that are missing or of a dtype other than float32, bfloat16, float16.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._folder = folder
        self._open: dict[Path, Any] = {}
        self._read = 0
        self._files = {name: path for path in _weight_files(folder) for name in self._names(path)}
        self.config = LfmConfig.from_dict(read_config_file(folder / CONFIG_NAME), file=str(folder / CONFIG_NAME))
        self._require_shapes()
        if self.config.tie_word_embeddings and self._has_own_head():
            self.config = replace(self.config, tie_word_embeddings=False)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, of one expert's matrix where experts are fused; CheckpointError where there is none."""
        return self._place(name).shape

    def float32(self, name: str, rows: slice | None = None) -> Array:
        """The tensor, or ``rows`` of its first axis (step 1), as a new array."""
        place = self._place(name)
        first, last, _ = (rows or slice(None)).indices(place.shape[0])
        if last <= first:
            return np.empty((0, *place.shape[1:]), np.float32)
        inside = slice(place.start + first, place.start + last)
        return self._converted(place.stored, inside if place.expert is None else (place.expert, inside))

    def gather(self, name: str, indices: npt.NDArray[np.int64]) -> Array:
        """Rows ``indices`` of a table as a new array."""
        place = self._place(name)
        different, inverse = np.unique(indices, return_inverse=True)
        found = [self._converted(place.stored, slice(row, row + 1)) for row in different.tolist()]
        return np.concatenate(found)[inverse]

    def _place(self, name: str) -> _Place:
        stored = self._stored(name)
        if stored is not None:
            return _Place(stored, self._shape(stored))
        match = _EXPERT.fullmatch(name)
        fused = None if match is None else self._stored(match[1] + ("down_proj" if match[3] == "2" else "gate_up_proj"))
        if match is None or fused is None:
            raise CheckpointError(f"{self._folder}: no tensor {shown(name)} in its safetensors files")
        shape, expert = self._shape(fused), int(match[2])
        if len(shape) != 3 or expert >= shape[0]:
            raise CheckpointError(f"{self._folder}: {fused} has shape {list(shape)}, which holds no expert {expert}")
        _, rows, columns = shape
        if match[3] == "2":
            return _Place(fused, (rows, columns), expert)
        return _Place(fused, (rows // 2, columns), expert, rows // 2 if match[3] == "3" else 0)

    def _stored(self, name: str) -> str | None:
        """The name in the files; None where it is in none of them."""
        for candidate in (name, name.removeprefix("model.")):
            if candidate in self._files:
                return candidate
        return LM_HEAD if name == EMBEDDING and self.config.tie_word_embeddings and LM_HEAD in self._files else None

    def _has_own_head(self) -> bool:
        """Whether the files hold a head beside the embedding that is not equal to it, compared as float32."""
        if LM_HEAD not in self._files or self._place(EMBEDDING).stored == LM_HEAD:
            return False
        self._require_shape(LM_HEAD, self.shape(EMBEDDING))
        starts = range(0, self.config.vocab_size, _COMPARED_ROWS)
        pieces = (slice(first, first + _COMPARED_ROWS) for first in starts)
        return not all(np.array_equal(self.float32(LM_HEAD, rows), self.float32(EMBEDDING, rows)) for rows in pieces)

    def _require_shapes(self) -> None:
        for name, shape in expected_tensors(self.config):
            self._require_shape(name, shape)

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self.shape(name) != shape:
            found = list(self.shape(name))
            raise CheckpointError(f"{self._folder}: {name} has shape {found}, expected {list(shape)}")

    def _names(self, path: Path) -> list[str]:
        with _refusals(path):
            return list(self._file(path).keys())

    def _shape(self, stored: str) -> tuple[int, ...]:
        path = self._files[stored]
        with _refusals(path):
            return tuple(self._file(path).get_slice(stored).get_shape())

    def _converted(self, stored: str, index: slice | tuple[int, slice]) -> Array:
        path = self._files[stored]
        with _refusals(path):
            tensor = self._file(path).get_slice(stored)
            if tensor.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {shown(stored)} is {tensor.get_dtype()}, expected one of {', '.join(_DTYPES)}"
                )
            values = tensor[index]
        self._read += values.nbytes
        converted: Array = values.astype(np.float32)
        return converted

    def _file(self, path: Path) -> Any:
        if self._read > _MAPPED_BYTES:
            self._open.clear()
            self._read = 0
        if path not in self._open:
            self._open[path] = safe_open(path, framework="numpy")
        return self._open[path]


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    shards = JsonObject.read(index, CheckpointError).object("weight_map")
    names = sorted({shards.path_inside(tensor) for tensor in shards.data})
    return [folder / name for name in names]


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """What the library raises, as CheckpointError."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: the safetensors library cannot read it: {error}") from None
