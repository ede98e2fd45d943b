"""What the comparison asks of an artifact's model, whatever runs it: one protocol for the CPU and the NPU."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .passages import Passage
from .report.contents import Check, Thresholds

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerState:
    """The residual stream ``values`` [T, H] at one place of the model.

    kind: what it follows, for the reader. index: its place among the reference's hidden states, the embeddings first.
    """

    name: str
    kind: str
    index: int
    values: npt.NDArray[Any]


class Runner(Protocol):
    """An artifact's model. Raises LfmOnnxError where it does not run."""

    @property
    def provider(self) -> str:
        """Who runs it, as reports say it."""

    @property
    def layers_are_judged(self) -> bool:
        """Whether a layer's error can miss parity; else it only informs."""

    def about(self) -> dict[str, str]:
        """What a report says of the artifact beside, or instead of, what every one's says."""

    def logits(self, ids: Sequence[int]) -> Array:
        """All logits [T, V] of one sequence read from an empty state."""

    def greedy(self, ids: Sequence[int], max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """The most likely continuation token by token; an end token is the last, and included."""

    def layer_states(self, ids: Sequence[int]) -> list[LayerState]:
        """Of one sequence, in the order of the layers."""

    def own_checks(self, passages: Sequence[Passage], limits: Thresholds, logit_std: float) -> list[Check]:
        """The checks that only this kind of runner has: its ways to read the same tokens must agree.

        logit_std: standard deviation of the reference's logits.
        """
