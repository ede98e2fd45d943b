"""Where each tensor of a model lies in its files: every layout that transformers loads, and no tensor left over."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import ml_dtypes
import numpy as np

from ..errors import CheckpointError
from ..strict_json import shown
from .config import LfmConfig
from .expected_tensors import EMBEDDING, LM_HEAD, expected_tensors
from .safetensors_file import SafetensorsFile
from .tensor_names import foreign_names

FLOAT_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_NAMED_IN_ERRORS = 3
# Elements of the head that are compared with the embeddings at a time.
_COMPARED = 1 << 20
# Buffers that some training code saves with the weights; the model computes them itself.
_BUFFER = re.compile(r"(model\.)?(pos_emb|rotary_emb|layers\.\d+\.self_attn\.rotary_emb)\.(original_)?inv_freq")
_EXPERT = re.compile(r"(model\.layers\.\d+\.feed_forward\.experts\.)(\d+)\.w([123])\.weight")


@dataclass(frozen=True)
class TensorLocation:
    """A canonical tensor as a contiguous range of one stored tensor, ``start`` elements from its beginning."""

    file: SafetensorsFile
    stored_name: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorLocations:
    """The tensors of a model by canonical name, in its order.

    config: as given, but untied where the files hold a head that differs from the embeddings. notes: one line on each
    thing that is not as config.json says, or not read.
    """

    config: LfmConfig
    by_name: dict[str, TensorLocation]
    notes: tuple[str, ...]


def locate_tensors(folder: Path, config: LfmConfig, files: list[SafetensorsFile]) -> TensorLocations:
    """CheckpointError unless ``files`` hold exactly the tensors that ``config`` asks for."""
    stored = _StoredTensors(folder, files)
    located: dict[str, TensorLocation] = {}
    missing, missing_count = [], 0
    for name, shape in expected_tensors(config):
        location = stored.take(name, shape) or _locate_in_fused(config, stored, name, shape)
        if location is None and name == EMBEDDING and config.tie_word_embeddings:
            location = stored.take(LM_HEAD, shape)  # of two names of one tensor the other was saved
        if location is not None:
            located[name] = location
            continue
        missing_count += 1
        if missing_count <= _NAMED_IN_ERRORS:
            missing.append(name)
    if missing_count:
        text = f"{_listing('missing', missing, missing_count)} (config.json asks for them)"
        foreign = foreign_names(stored.left, (name for name, _ in expected_tensors(config)))
        raise CheckpointError(f"{folder}: {text if foreign is None else f'{foreign}; {text}'}")
    notes = []
    head = stored.take(LM_HEAD, (config.vocab_size, config.hidden_size)) if LM_HEAD in stored.left else None
    if head is not None and not _equal(located[EMBEDDING], head):
        config, located[LM_HEAD] = replace(config, tie_word_embeddings=False), head
        notes.append(
            "config.json ties the head to the embeddings, but lm_head.weight differs from them: it is kept as a head "
            "of its own, as transformers does"
        )
    extra = sorted(name for name in stored.left if not _BUFFER.fullmatch(name))
    if extra:
        raise CheckpointError(
            f"{folder}: {_listing('unexpected', extra, len(extra))} (config.json describes no such tensors)"
        )
    if stored.left:
        notes.append(f"not read, since rope_theta says the same: {', '.join(map(shown, sorted(stored.left)[:3]))}")
    return TensorLocations(config, located, tuple(notes))


class _StoredTensors:
    """The tensors of all files by stored name, each taken once; what nobody takes is left over."""

    def __init__(self, folder: Path, files: list[SafetensorsFile]) -> None:
        self._by_name: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.tensors:
                if name in self._by_name:
                    first = self._by_name[name].path.name
                    raise CheckpointError(f"{folder}: tensor {shown(name)} is in both {first} and {file.path.name}")
                self._by_name[name] = file
        self.left = set(self._by_name)

    def take(self, name: str, shape: tuple[int, ...]) -> TensorLocation | None:
        """Where the tensor lies, None if nowhere; CheckpointError if shape or dtype is not usable.

        A file that was saved from the base model has the names without "model.".
        """
        stored_name = name if name in self._by_name else name.removeprefix("model.")
        file = self._by_name.get(stored_name)
        if file is None:
            return None
        entry = file.tensors[stored_name]
        if entry.shape != shape:
            raise CheckpointError(
                f"{file.path}: tensor {shown(stored_name)} has shape {list(entry.shape)}, config.json asks for "
                f"{list(shape)}"
            )
        if entry.dtype not in FLOAT_DTYPES:
            remedy = "quantized checkpoints cannot be exported, take the bf16, fp16 or fp32 one"
            if entry.dtype == "F64":
                remedy = "convert the checkpoint to float32 or bfloat16"
            raise CheckpointError(
                f"{file.path}: tensor {shown(stored_name)} has dtype {entry.dtype}, only {', '.join(FLOAT_DTYPES)} are "
                f"supported: {remedy}"
            )
        self.left.discard(stored_name)
        return TensorLocation(file, stored_name, 0, shape)


def _locate_in_fused(
    config: LfmConfig, stored: _StoredTensors, name: str, shape: tuple[int, ...]
) -> TensorLocation | None:
    """One expert's matrix within gate_up_proj [E, 2M, H] (w1's rows, then w3's) or down_proj [E, H, M]."""
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    prefix, expert, matrix = match[1], int(match[2]), match[3]
    experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
    if matrix == "2":
        fused, fused_shape, position = prefix + "down_proj", (experts, hidden, width), expert
    else:
        fused, fused_shape = prefix + "gate_up_proj", (experts, 2 * width, hidden)
        position = 2 * expert + (matrix == "3")
    whole = stored.take(fused, fused_shape)
    return None if whole is None else replace(whole, start=position * width * hidden, shape=shape)


def _equal(first: TensorLocation, second: TensorLocation) -> bool:
    """Whether two matrices of one shape hold the same values, in whichever dtypes."""
    rows, columns = first.shape
    step = max(1, _COMPARED // columns)
    try:
        for row in range(0, rows, step):
            shape = (min(step, rows - row), columns)
            one, other = (at.file.view(at.stored_name, at.start + row * columns, shape) for at in (first, second))
            if not np.array_equal(one.astype(np.float32), other.astype(np.float32)):
                return False
        return True
    finally:
        for location in (first, second):
            location.file.release(location.stored_name)


def _listing(kind: str, names: Iterable[str], count: int) -> str:
    few = ", ".join(shown(name) for name in islice(names, _NAMED_IN_ERRORS))
    rest = f" and {count - _NAMED_IN_ERRORS} more" if count > _NAMED_IN_ERRORS else ""
    return f"{count} {kind} tensor{'s' if count > 1 else ''}: {few}{rest}"
