"""The residual stream after each layer, model against reference: where a difference first appears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .onnx_runner import OnnxRunner
from .report.contents import LayerError

if TYPE_CHECKING:
    from ...artifact.artifact import Artifact
    from ...checkpoint.config import LfmConfig
    from ...reference.model import TokenIds

Array = npt.NDArray[np.float32]


class HiddenStates(Protocol):
    """A reference that shows its residual stream."""

    def forward(self, input_ids: TokenIds, *, hidden: list[Array]) -> tuple[Array, Any]: ...


def hidden_state_names(config: LfmConfig) -> list[tuple[str, str]]:
    """(name of the graph's value, what it follows): the embedding, every layer, the final norm."""
    names = [("hidden_states.embed", "embedding")]
    for i, kind in enumerate(config.layer_types):
        feed_forward = "experts" if config.is_moe_layer(i) else "feed-forward"
        names.append((f"hidden_states.{i}", f"{'conv' if kind == 'conv' else 'attention'}, {feed_forward}"))
    return [*names, ("hidden_states.final", "final norm")]


def compare_layers(
    artifact: Artifact,
    reference: HiddenStates,
    ids: Sequence[int],
    *,
    provider: str | None,
    threads: int | None,
    native: bool | None = None,
) -> list[LayerError]:
    """Hidden states of ``ids`` read in one call, in the order of the layers."""
    names = hidden_state_names(artifact.config)
    inner = [name for name, _ in names]
    runner = OnnxRunner(artifact, provider=provider, threads=threads, native=native, hidden_states=inner)
    found = runner.forward(np.asarray(ids, np.int64)[None], keep=1)[2]
    expected: list[Array] = []
    reference.forward(list(ids), hidden=expected)
    return [
        layer_error(name.removeprefix("hidden_states."), kind, state, found[name].reshape(state.shape))
        for (name, kind), state in zip(names, expected, strict=True)
    ]


def layer_error(name: str, kind: str, expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> LayerError:
    """|found - expected| / |expected|, the largest difference, and the cosine between both as one vector."""
    r, m = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    tiny = np.finfo(float).tiny
    norm_r, norm_m = float(np.linalg.norm(r)), float(np.linalg.norm(m))
    return LayerError(
        name,
        kind,
        relative=float(np.linalg.norm(m - r)) / max(norm_r, tiny),
        max_abs_diff=float(np.abs(m - r).max()),
        cosine=float(r @ m) / max(norm_r * norm_m, tiny),
    )
