"""State of one sequence on static graphs: quantized conv columns, and KV caches filled from the left."""

from __future__ import annotations

import numpy as np

from ...artifact.npu_manifest import NpuManifest, State
from ...artifact.npu_parts import STATE_ROLES, NpuGraph
from ...errors import InputError
from ..state import Snapshot
from .quantization import empty


class NpuState:
    """``length`` tokens of at most ``limit``; the caches have ``capacity`` columns, one of the exported lengths.

    arrays: state input name -> array, per part: what the next call reads. A call's results are kept apart until all
    parts have succeeded (``commit``): a call that fails leaves the state as it was.
    """

    batch = 1

    def __init__(self, manifest: NpuManifest, limit: int) -> None:
        self._manifest = manifest
        self.limit = limit
        self.length = 0
        self.capacity = manifest.context_lengths[0]
        self.arrays = [self._zeros(part.graph("decode", self.capacity)) for part in manifest.parts]
        self._spare = [
            {state.input: np.empty_like(self.arrays[state.part][state.input]) for state in manifest.states
             if state.part == part.index and not state.append}
            for part in manifest.parts
        ]  # fmt: skip

    def spare(self, state: State) -> np.ndarray:
        """Where a call writes the replacement of ``state``; it becomes current at the next commit."""
        return self._spare[state.part][state.input]

    def commit(self, count: int, appended: dict[tuple[int, str], np.ndarray]) -> None:
        """The call has read ``count`` valid tokens. appended: new columns by (part, state input)."""
        for state in self._manifest.states:
            arrays = self.arrays[state.part]
            if state.append:
                new = appended[state.part, state.input]
                kept = columns_of(state.axis, 0, count)
                arrays[state.input][columns_of(state.axis, self.length, self.length + count)] = new[kept]
            else:
                spare = self._spare[state.part]
                arrays[state.input], spare[state.input] = spare[state.input], arrays[state.input]
        self.length += count

    def check(self, total: int) -> None:
        """InputError if ``total`` tokens are more than the context holds."""
        if total > self.limit:
            raise InputError(
                f"{total} tokens do not fit into the context of {self.limit}: shorten the text, or export with a "
                "longer `context_length`"
            )

    def reserve(self, total: int) -> None:
        """Go to the shortest exported context that holds ``total`` tokens; the caches are copied once."""
        self.check(total)
        if total <= self.capacity:
            return
        self.capacity = next(length for length in self._manifest.context_lengths if length >= total)
        for part in self._manifest.parts:
            larger = self._zeros(part.graph("decode", self.capacity))
            old = self.arrays[part.index]
            for state in self._manifest.states:
                if state.part != part.index:
                    continue
                if state.append:
                    filled = columns_of(state.axis, 0, self.length)
                    larger[state.input][filled] = old[state.input][filled]
                    old[state.input] = larger[state.input]

    def snapshot(self) -> Snapshot:
        """Remember this point: the conv columns; cache columns before it never change."""
        return Snapshot(self.length, tuple(self._conv(state).copy() for state in self._convs()))

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to ``snapshot``; the mask hides the columns after it until they are written anew."""
        for state, columns in zip(self._convs(), snapshot.convs, strict=True):
            self._conv(state)[:] = columns
        self.length = snapshot.length

    def clear(self) -> None:
        """Forget everything; the buffers stay."""
        for part in self._manifest.parts:
            for value in part.graph("decode", self.capacity).inputs:
                if value.role == "conv_state":
                    self.arrays[part.index][value.name][:] = value.zero_point
        self.length = 0

    def _convs(self) -> list[State]:
        return [state for state in self._manifest.states if not state.append]

    def _conv(self, state: State) -> np.ndarray:
        return self.arrays[state.part][state.input]

    def _zeros(self, graph: NpuGraph) -> dict[str, np.ndarray]:
        return {value.name: empty(value) for value in graph.inputs if value.role in STATE_ROLES}


def columns_of(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """The index of the columns start … stop - 1 of a cache whose columns lie along ``axis``."""
    return (slice(None),) * axis + (slice(start, stop),)
