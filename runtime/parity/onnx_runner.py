"""An export for the CPU as parity sees it: its graph in one ONNX Runtime session."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ...artifact.artifact import Artifact
from ...checkpoint.config import LfmConfig
from .consistency import consistency_checks
from .onnx_model import OnnxModel
from .options import ParityOptions
from .passages import Passage
from .report.contents import Check, Thresholds
from .runner import Array, LayerState


class OnnxRunner:
    """``OnnxModel`` as a ``Runner``. Raises what it raises."""

    layers_are_judged = True

    def __init__(self, artifact: Artifact, options: ParityOptions) -> None:
        self._artifact, self._options = artifact, options
        self._model = self._open()

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of it."""
        return self._model.provider

    def about(self) -> dict[str, str]:
        """Nothing beside what every report says."""
        return {}

    def logits(self, ids: Sequence[int]) -> Array:
        """See ``Runner``."""
        return self._model.logits(ids)

    def greedy(self, ids: Sequence[int], max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """See ``Runner``."""
        return self._model.greedy(ids, max_new_tokens, eos_token_ids)

    def layer_states(self, ids: Sequence[int]) -> list[LayerState]:
        """The embeddings, after every layer, after the final norm; loads the graph anew with these as outputs."""
        names = hidden_state_names(self._artifact.config)
        del self._model  # two sessions at once would double the memory that a large model takes
        self._model = self._open([name for name, _ in names])
        found = self._model.forward(np.asarray(ids, np.int64)[None], keep=1)[2]
        return [
            LayerState(name.removeprefix("hidden_states."), kind, i, found[name].reshape(len(ids), -1))
            for i, (name, kind) in enumerate(names)
        ]

    def own_checks(self, passages: Sequence[Passage], limits: Thresholds, logit_std: float) -> list[Check]:
        """Prefill against decode, padded batches against single rows."""
        pad_token_id = self._artifact.config.pad_token_id or 0
        return consistency_checks(self._model, passages, limits, logit_std, pad_token_id)

    def _open(self, hidden_states: Sequence[str] = ()) -> OnnxModel:
        options = self._options
        return OnnxModel(
            self._artifact,
            provider=options.provider,
            threads=options.threads,
            native=options.native,
            hidden_states=hidden_states,
        )


def hidden_state_names(config: LfmConfig) -> list[tuple[str, str]]:
    """(name of the graph's value, what it follows): the embedding, every layer, the final norm."""
    names = [("hidden_states.embed", "embedding")]
    for i, kind in enumerate(config.layer_types):
        feed_forward = "experts" if config.is_moe_layer(i) else "feed-forward"
        names.append((f"hidden_states.{i}", f"{'conv' if kind == 'conv' else 'attention'}, {feed_forward}"))
    return [*names, ("hidden_states.final", "final norm")]
