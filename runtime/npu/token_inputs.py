"""What the host computes for a call from the tokens' positions: rotation angles, the mask, embedding rows."""

from __future__ import annotations

import numpy as np

from ...artifact.npu_manifest import NpuManifest
from ...artifact.npu_parts import NpuPort
from ...errors import ArtifactError
from .quantization import quantize

# Added to a score that must not count; the mask's quantization reaches exactly this far.
HIDDEN = -100.0


class EmbeddingTable:
    """Rows of the table, straight from the mapped file: only the rows that are looked up are read."""

    def __init__(self, manifest: NpuManifest) -> None:
        embedding = manifest.embedding
        self.dtype, self.width = embedding.dtype, embedding.width
        self._zero_point = embedding.zero_point
        shape = (embedding.rows, embedding.width)
        self._rows = np.memmap(manifest.embedding_path, embedding.dtype, "r", embedding.offset, shape)

    def fill(self, target: np.ndarray, ids: np.ndarray) -> None:
        """Write rows ``ids`` [n] into ``target`` [1, S, H]; the rows after them become zero."""
        target[0, : len(ids)] = self._rows[ids]
        target[0, len(ids) :] = self._zero_point


class RotaryTable:
    """cos and sin of all positions of the longest context, in the quantization of the graphs."""

    def __init__(self, manifest: NpuManifest) -> None:
        half = manifest.head_dim // 2
        # In float64, rounded to float32 once, as the reference model's frequencies come out.
        frequencies = (1.0 / manifest.rotary_theta ** (np.arange(half) / half)).astype(np.float32)
        positions = np.arange(manifest.context_lengths[-1], dtype=np.float32)
        angles = positions[:, None] * frequencies
        self._real = {"cos": np.cos(angles), "sin": np.sin(angles)}
        self._stored: dict[tuple[str, float | None], np.ndarray] = {}

    def fill(self, target: np.ndarray, value: NpuPort, start: int, count: int) -> None:
        """Rows of positions start to start + count into ``target`` [1, S, 1, D/2]; the rest stays as it is."""
        key = (value.role, value.scale)
        if key not in self._stored:
            self._stored[key] = quantize(self._real[value.role], value)
        target[0, :count, 0] = self._stored[key][start : start + count]


class MaskTable:
    """The additive mask [1, 1, S, C + S] of a graph; only the cache's columns change from call to call."""

    def __init__(self, value: NpuPort) -> None:
        if len(value.shape) != 4 or value.shape[3] <= value.shape[2]:
            raise ArtifactError(f"{value.name} has shape {list(value.shape)}, expected [1, 1, S, C + S]")
        tokens = value.shape[2]
        self._columns = value.shape[3] - tokens
        visible, hidden = (int(q) if value.scale else q for q in quantize(np.array([0.0, HIDDEN], np.float32), value))
        self._visible = visible
        self.array = np.full(value.shape, hidden, value.dtype)
        self._hidden = hidden
        causal = np.tril(np.ones((tokens, tokens), bool))
        self.array[0, 0, :, self._columns :][causal] = visible
        self._filled = 0

    def show(self, filled: int) -> None:
        """Make the first ``filled`` columns of the cache visible, and no others."""
        low, high = sorted((filled, self._filled))
        self.array[..., low:high] = self._visible if filled > self._filled else self._hidden
        self._filled = filled
