"""An NPU export as parity sees it: logits of whole sequences, token by token as well, and greedy continuations."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ...artifact.npu_manifest import NpuManifest
from .backends import Backend
from .session import NpuSession
from .state import NpuState

Array = np.ndarray


class NpuRunner:
    """One backend over an NPU export; errors of the backend are errors here. Raises LfmOnnxError."""

    def __init__(self, manifest: NpuManifest, backend: Backend) -> None:
        self.manifest = manifest
        self.session = NpuSession(manifest, backend)

    @property
    def provider(self) -> str:
        """Who runs the graphs."""
        return self.session.backend.name

    def new_state(self) -> NpuState:
        """An empty state."""
        return NpuState(self.manifest, self.manifest.context_lengths[-1])

    def logits(self, ids: Sequence[int]) -> Array:
        """All logits [T, V] of one sequence, by prefill."""
        return self.compare(ids)[0]

    def compare(self, ids: Sequence[int], layers: Sequence[int] = ()) -> tuple[Array, dict[int, Array]]:
        """Logits [T, V] by prefill, and the residual stream [T, H] after each of ``layers``."""
        return self.session.compare_prefill(self.new_state(), np.asarray(ids, np.int64), layers)

    def decode_logits(self, prompt: Sequence[int], following: Sequence[int]) -> Array:
        """Logits [1 + len(following), V]: of the prompt's last token by prefill, then one by one."""
        state = self.new_state()
        rows = [self._feed(state, prompt), *(self._feed(state, [token]) for token in following)]
        return np.stack(rows)

    def greedy(self, ids: Sequence[int], max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """The most likely continuation token by token; an end token is the last, and included."""
        state = self.new_state()
        tokens: list[int] = []
        step = list(ids)
        while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in eos_token_ids):
            tokens.append(int(self._feed(state, step).argmax()))
            step = tokens[-1:]
        return tokens

    def _feed(self, state: NpuState, ids: Sequence[int]) -> Array:
        return self.session.run(state, np.asarray(ids, np.int64)[None])[0, -1].copy()
