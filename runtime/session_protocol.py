"""What a loaded model asks of whatever runs its graphs: one protocol for the CPU, the NPU, and both in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from ..artifact.artifact import Artifact
from ..errors import InputError
from .state import Snapshot

StateKind = TypeVar("StateKind")


class SequenceState(Protocol):
    """What a session remembers of the tokens fed so far: ``length`` tokens, of at most ``limit``, in ``batch`` rows."""

    @property
    def batch(self) -> int:
        """Number of sequences that the state holds side by side."""
        ...

    @property
    def length(self) -> int:
        """Number of tokens fed so far."""
        ...

    @property
    def limit(self) -> int:
        """The most tokens that the context holds."""
        ...

    def check(self, total: int) -> None:
        """InputError if ``total`` tokens are more than the context holds."""

    def snapshot(self) -> Snapshot:
        """Remember this point."""

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to ``snapshot``, taken of this state before; what was fed since is forgotten."""

    def clear(self) -> None:
        """Forget everything; the buffers stay."""


class Session(Protocol):
    """Runs the graphs of one model. Its states are its own: another session's are refused with InputError."""

    @property
    def providers(self) -> list[str]:
        """Who runs the graphs: ONNX Runtime's names of execution providers, or a device's."""

    def new_state(self, batch: int, capacity: int, limit: int) -> SequenceState:
        """An empty state of ``batch`` sequences, with room for ``capacity`` tokens at first and ``limit`` at most."""

    def run(
        self, state: SequenceState, input_ids: np.ndarray, *, new_mask: np.ndarray | None = None, keep: int = 1
    ) -> np.ndarray:
        """Feed ``input_ids`` [batch, new] int64 and advance ``state``; logits [batch, rows, vocab].

        new_mask: [batch, new], 0 for padding; all ones by default. keep: logits of the last ``keep`` tokens of a row,
        0 for all. The logits may be a buffer that the next call overwrites. InputError when the context is full.
        """


@dataclass(frozen=True)
class OpenedSession:
    """The artifact that answers, what runs it, and how many tokens its states hold at the most."""

    artifact: Artifact
    session: Session
    context_length: int


def own_state(state: SequenceState, kind: type[StateKind]) -> StateKind:
    """``state`` if it is of the kind that a session makes, else InputError."""
    if not isinstance(state, kind):
        raise InputError(f"the state is another model's: expected a {kind.__name__}, found a {type(state).__name__}")
    return state
