"""Weights that are numbers: a checkpoint that a broken merge or an overflow left NaN in gives no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from ..strict_json import shown

# Elements looked at a time: few enough that what is looked at stays in the processor's cache.
_PIECE = 1 << 18


def require_finite(values: npt.NDArray[np.float32], name: str, path: Path, first_row: int = 0) -> None:
    """CheckpointError that names the tensor and the first value of it that is no number.

    first_row: of the tensor, where ``values`` begin. An expert's bias may be -inf: such an expert is never chosen.
    """
    flat = values.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
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
