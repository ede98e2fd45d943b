"""A checkpoint of LFM2 / LFM2.5 under canonical tensor names, whichever way its files lay the tensors out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from ..strict_json import shown
from .config import CONFIG_NAME, TIE_FIELDS, LfmConfig, read_config_file
from .files import open_weight_files, require_checkpoint_folder, require_own_file, unread_files
from .hub import download_checkpoint, looks_like_hub_id
from .named_templates import TEMPLATE_FOLDER
from .tensor_locations import FLOAT_DTYPES, TensorLocation, locate_tensors

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
# Bytes read at a time when converting to float32: few enough to stay in the processor's cache in between.
READ_BYTES = 1 << 20
# Elements looked at a time: few enough that what is looked at stays in the processor's cache.
_CHECKED_ELEMENTS = 1 << 18


class Checkpoint:
    """Weights and config of one checkpoint folder, all checked on opening, read lazily.

    Names and shapes (V vocabulary, H hidden, L conv_L_cache, E experts, M moe_intermediate_size) are those that
    ``expected_tensors`` yields. ``source`` is what the user gave, ``folder`` where the files lie. ``context_length``:
    the positions that an export supports unless it is asked for less. ``raw_config`` is
    config.json, ``config`` what it comes to, both untied where the weights are. ``notes``: one line on each thing that
    is not as config.json says, or not read.
    """

    def __init__(self, folder: Path, source: str) -> None:
        require_checkpoint_folder(folder)
        self.folder = folder
        self.source = source
        self.raw_config: dict[str, Any] = read_config_file(folder / CONFIG_NAME)
        config = LfmConfig.from_dict(self.raw_config, file=str(folder / CONFIG_NAME))
        self._files = open_weight_files(folder)
        located = locate_tensors(folder, config, self._files)
        self.config, self._locations = located.config, located.by_name
        self.context_length = located.config.max_position_embeddings
        if config.tie_word_embeddings and not located.config.tie_word_embeddings:
            self.raw_config |= {name: False for name in TIE_FIELDS if name in self.raw_config or name == TIE_FIELDS[0]}
        self.notes: tuple[str, ...] = (*located.notes, *unread_files(folder, self.weight_files()))

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Checkpoint:
        """Open a local folder, or a hub id "org/name" (``revision``: branch, tag or commit), downloading if needed.

        CheckpointError or ConfigError: nothing there, unreadable, or not exactly the tensors that config.json asks
        for. ``progress`` is called with one line of text before anything that may take long.
        """
        folder = Path(source)
        try:
            if isinstance(source, str) and looks_like_hub_id(source) and not folder.exists():
                folder = download_checkpoint(source, revision=revision, progress=progress)
            return cls(folder, str(source))
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be read: {error.strerror or error}") from None

    def names(self) -> list[str]:
        """Canonical names of all tensors, in the model's order."""
        return list(self._locations)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, of one expert's matrix where experts are fused; CheckpointError for an unknown name."""
        return self._location(name).shape

    def dtype(self, name: str) -> str:
        """Stored dtype: "BF16", "F16" or "F32"."""
        location = self._location(name)
        return location.file.tensors[location.stored_name].dtype

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in its file."""
        result: int = int(np.prod(self.shape(name), dtype=np.int64)) * FLOAT_DTYPES[self.dtype(name)].itemsize
        return result

    def raw(self, name: str) -> npt.NDArray[Any]:
        """The tensor in its stored dtype (ml_dtypes.bfloat16 for BF16), a read-only view of the mapped file."""
        location = self._location(name)
        return location.file.view(location.stored_name, location.start, location.shape)

    def release(self, name: str) -> None:
        """Drop what ``raw`` has paged in of this tensor (or of the fused one that holds it) from memory."""
        location = self._location(name)
        location.file.release(location.stored_name)

    def float32(self, name: str, rows: slice | None = None) -> npt.NDArray[np.float32]:
        """The tensor, or ``rows`` of its first axis (step 1), as a new float32 array.

        Reads the file in small pieces rather than through the mapping, so that memory holds the result and little
        else. CheckpointError for a value that is not a number.
        """
        location = self._location(name)
        shape, start, begin = location.shape, location.start, 0
        if rows is not None:
            begin, end, step = rows.indices(shape[0])
            if step != 1:
                raise ValueError(f"rows must be a slice of step 1, not {step}")
            start += begin * int(np.prod(shape[1:], dtype=np.int64))
            shape = (max(end - begin, 0), *shape[1:])
        entry = location.file.tensors[location.stored_name]
        offset = entry.offset + start * FLOAT_DTYPES[entry.dtype].itemsize
        values = read_float32(location.file.path, entry.dtype, offset, shape)
        require_finite(values, name, location.file.path, begin)
        return values

    def gather(self, name: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows ``indices`` of a table as a new float32 array, without converting the others or keeping them mapped."""
        rows: npt.NDArray[np.float32] = self.raw(name)[indices].astype(np.float32)
        self.release(name)
        return rows

    def fingerprint(self) -> str:
        """Identity of the files without reading the weights: sha256 over config, file sizes, times and headers."""
        digest = hashlib.sha256()
        config = (self.folder / CONFIG_NAME).read_bytes()
        digest.update(b"%d\n%b" % (len(config), config))
        for file in self._files:
            status = file.path.stat()
            identity = f"{status.st_size} {status.st_mtime_ns} {file.header_sha256}\n"
            digest.update(os.fsencode(file.path.name) + b" " + identity.encode())
        return digest.hexdigest()

    def weight_files(self) -> list[Path]:
        """The safetensors files that hold the weights."""
        return [file.path for file in self._files]

    def tokenizer_files(self) -> list[Path]:
        """Tokenizer, chat template and generation config files that the folder holds.

        CheckpointError for one that is no regular file, or a link that leads elsewhere.
        """
        named = sorted((self.folder / TEMPLATE_FOLDER).glob("*.jinja"))
        paths = [path for path in (*(self.folder / name for name in TOKENIZER_FILES), *named) if os.path.lexists(path)]
        for path in paths:
            require_own_file(path, self.folder)
        return paths

    def _location(self, name: str) -> TensorLocation:
        try:
            return self._locations[name]
        except KeyError:
            raise CheckpointError(f"{self.folder}: no tensor {shown(name)} in this model") from None


def read_float32(path: Path, dtype: str, offset: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """``shape`` values of ``dtype`` (BF16, F16, F32) at a byte offset of a file, through a small buffer."""
    result = np.empty(shape, np.float32)
    flat = result.reshape(-1)
    stored_dtype = FLOAT_DTYPES[dtype]
    step = READ_BYTES // stored_dtype.itemsize
    buffer = np.empty(0 if dtype == "F32" else min(step, flat.size), stored_dtype)
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            for start in range(0, flat.size, step):
                piece = flat[start : start + step]
                if dtype == "F32":
                    _read_exactly(file, piece, path)
                else:
                    _read_exactly(file, buffer[: piece.size], path)
                    piece[:] = buffer[: piece.size]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    return result


def _read_exactly(file: Any, destination: npt.NDArray[Any], path: Path) -> None:
    view = destination.view(np.uint8).data
    while len(view):
        count = file.readinto(view)
        if not count:
            raise CheckpointError(f"{path}: ends earlier than when it was opened: the file was changed meanwhile")
        view = view[count:]


def require_finite(values: npt.NDArray[np.float32], name: str, path: Path, first_row: int = 0) -> None:
    """CheckpointError that names the tensor and the first value of it that is no number.

    first_row: of the tensor, where ``values`` begin. An expert's bias may be -inf: such an expert is never chosen.
    """
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHECKED_ELEMENTS):
        piece = flat[start : start + _CHECKED_ELEMENTS]
        wrong = ~np.isfinite(piece)
        if name.endswith("expert_bias"):
            wrong &= piece != -np.inf
        if not wrong.any():
            continue
        at = start + int(wrong.argmax())
        index = [int(i) for i in np.unravel_index(at, values.shape)]
        index[0] += first_row
        raise CheckpointError(
            f"{path}: tensor {shown(name)} holds {flat[at]} at {index}, which is not a number; take an intact copy of "
            "the checkpoint, or repeat the merge or training that made it"
        )
