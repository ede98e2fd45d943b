"""What the model remembers of the tokens fed so far: KV cache and conv columns, in buffers allocated ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    import onnxruntime

FIRST_CAPACITY = 256


@dataclass(frozen=True)
class StateLayout:
    """Names, shapes and dtypes of a graph's state inputs and outputs.

    key_values, convs: (past name, present name), in the order of the graph. A KV tensor is
    [batch, kv_heads, columns, head_dim], a conv state [batch, hidden, conv_length].
    shared: GroupQueryAttention writes new columns into the past buffer itself, which has room to spare; otherwise the
    present is past + new columns, without a gap.
    """

    key_values: tuple[tuple[str, str], ...]
    kv_heads: int
    head_dim: int
    kv_dtype: np.dtype
    convs: tuple[tuple[str, str], ...]
    hidden: int
    conv_length: int
    conv_dtype: np.dtype
    shared: bool


@dataclass(frozen=True)
class Snapshot:
    """A point to which a state can go back: its length and the conv columns there (earlier KV columns never change)."""

    length: int
    convs: tuple[np.ndarray, ...]


class DecoderState:
    """State of ``batch`` sequences: ``length`` columns of at most ``limit``; buffers grow by doubling, copying once.

    A shared KV cache is one buffer per tensor; the other kind two, read and written in turn, like the conv states.
    """

    def __init__(self, layout: StateLayout, batch: int, capacity: int, limit: int) -> None:
        self.layout = layout
        self.batch = batch
        self.limit = limit
        self.length = 0
        self.capacity = min(max(capacity, 1), limit)
        self.attention_mask = np.zeros((batch, self.capacity), np.int64)
        shape = (batch, layout.hidden, layout.conv_length)
        self._convs = [[np.zeros(shape, layout.conv_dtype) for _ in layout.convs] for _ in range(2)]
        self._turn = 0
        self._key_values = [self._new_key_values() for _ in range(1 if layout.shared else 2)]
        # Bindings of the buffers to the session, one per turn; made by the session, void once a buffer moves.
        self.bindings: dict[int, onnxruntime.IOBinding] = {}
        self._logits = np.empty(0, np.float32)

    @property
    def turn(self) -> int:
        """Which of the alternating buffers is the past now: 0 or 1."""
        return self._turn

    def past_key_values(self) -> list[np.ndarray]:
        """KV tensors to read: whole buffers when shared, else views of ``length`` columns."""
        return self._columns(self._key_values[self._turn % len(self._key_values)], self.length)

    def present_key_values(self, total: int) -> list[np.ndarray]:
        """KV tensors to write when the state will hold ``total`` columns."""
        return self._columns(self._key_values[(self._turn + 1) % len(self._key_values)], total)

    def past_convs(self) -> list[np.ndarray]:
        """Conv states to read."""
        return self._convs[self._turn]

    def present_convs(self) -> list[np.ndarray]:
        """Conv states to write."""
        return self._convs[1 - self._turn]

    def check(self, total: int) -> None:
        """InputError if ``total`` columns are more than the context holds."""
        if total > self.limit:
            raise InputError(
                f"{total} tokens do not fit into the context of {self.limit}: shorten the text, or allow a longer "
                "context where the model was exported for it"
            )

    def reserve(self, total: int) -> None:
        """Make room for ``total`` columns. InputError above ``limit``."""
        self.check(total)
        if total <= self.capacity:
            return
        past = self.past_key_values()
        self.capacity = min(max(2 * self.capacity, _rounded(total)), self.limit)
        columns = min(self.length, past[0].shape[2]) if past else 0
        self._key_values = [self._new_key_values() for _ in self._key_values]
        for old, new in zip(past, self.past_key_values(), strict=True):
            new[:, :, :columns] = old[:, :, :columns]
        mask = np.zeros((self.batch, self.capacity), np.int64)
        mask[:, : self.length] = self.attention_mask[:, : self.length]
        self.attention_mask = mask
        self.bindings.clear()

    def advance(self, total: int) -> None:
        """The session has written the present: it is the past from now on."""
        self.length = total
        self._turn = 1 - self._turn

    def logits_buffer(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Room for logits of ``shape``, allocated when it changes: once for all decode steps."""
        if self._logits.shape != shape or self._logits.dtype != dtype:
            self._logits = np.empty(shape, dtype)
        return self._logits

    def snapshot(self) -> Snapshot:
        """Remember this point. Costs the conv columns, not the KV cache."""
        return Snapshot(self.length, tuple(conv.copy() for conv in self.past_convs()))

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to ``snapshot``, taken of this state before; what was fed since is forgotten."""
        if not self.layout.shared:
            for old in self._key_values[self._turn]:
                kept = self._view(old, self.length)[:, :, : snapshot.length].copy()
                self._view(old, snapshot.length)[:] = kept
        for conv, columns in zip(self.past_convs(), snapshot.convs, strict=True):
            conv[:] = columns
        self.length = snapshot.length

    def clear(self) -> None:
        """Forget everything; the buffers stay."""
        for conv in self.past_convs():
            conv[:] = 0
        self.length = 0

    def _new_key_values(self) -> list[np.ndarray]:
        # np.zeros takes untouched pages from the system: memory is used only as columns are written.
        elements = self.batch * self.layout.kv_heads * self.capacity * self.layout.head_dim
        return [np.zeros(elements, self.layout.kv_dtype) for _ in self.layout.key_values]

    def _columns(self, buffers: list[np.ndarray], columns: int) -> list[np.ndarray]:
        return [self._view(buffer, self.capacity if self.layout.shared else columns) for buffer in buffers]

    def _view(self, buffer: np.ndarray, columns: int) -> np.ndarray:
        shape = (self.batch, self.layout.kv_heads, columns, self.layout.head_dim)
        return buffer[: int(np.prod(shape))].reshape(shape)


def _rounded(columns: int) -> int:
    return -(-columns // FIRST_CAPACITY) * FIRST_CAPACITY
