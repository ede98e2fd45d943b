"""The residual stream after each layer, model against reference: where a difference first appears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .report.contents import LayerError
from .runner import LayerState


def layer_errors(states: Sequence[LayerState], expected: Sequence[npt.NDArray[Any]]) -> list[LayerError]:
    """``states`` against the reference's hidden states, in their order."""
    return [layer_error(state.name, state.kind, expected[state.index], state.values) for state in states]


def layer_error(name: str, kind: str, expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> LayerError:
    """|found - expected| / |expected|, the largest difference, and the cosine between both as one vector."""
    r, m = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    tiny = np.finfo(float).tiny
    norm_r, norm_m = float(np.linalg.norm(r)), float(np.linalg.norm(m))
    return LayerError(
        name,
        kind,
        relative=float(np.linalg.norm(m - r)) / max(norm_r, tiny),
        max_abs_diff=float(np.abs(m - r).max()),
        cosine=float(r @ m) / max(norm_r * norm_m, tiny),
    )
