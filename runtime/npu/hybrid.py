"""Prefill on the NPU, decode on the CPU's kernels: one conversation whose state moves between both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...artifact.npu_manifest import NpuManifest, State
from ...artifact.npu_parts import NpuPort
from ...errors import ArtifactError
from ..session import DecoderSession
from ..session_protocol import SequenceState, own_state
from ..state import DecoderState, Snapshot
from .quantization import dequantize, quantize
from .session import NpuSession
from .state import NpuState, columns_of


@dataclass(frozen=True)
class _StatePair:
    """One state on both sides: where it is in the NPU's arrays, and its place among the CPU graph's states."""

    state: State
    value: NpuPort
    position: int


class HybridState:
    """Both states of one sequence. ``length`` tokens are known to the side that ran last; the other is brought up to
    date when it is its turn: columns that it has already are not converted again.
    """

    batch = 1

    def __init__(self, manifest: NpuManifest, npu: NpuState, cpu: DecoderState) -> None:
        self.npu, self.cpu = npu, cpu
        self.limit = npu.limit
        self.on_npu = True
        self._both = 0  # cache columns that both sides hold
        self._key_values, self._convs = _pairs(manifest, cpu)

    @property
    def length(self) -> int:
        """Tokens fed so far."""
        return self.npu.length if self.on_npu else self.cpu.length

    def check(self, total: int) -> None:
        """InputError if ``total`` tokens are more than the context holds."""
        self.npu.check(total)

    def to_cpu(self) -> DecoderState:
        """The CPU's state, up to date."""
        if self.on_npu:
            total = self.npu.length
            # Where past and present share a buffer columns stay where they are, elsewhere they lie without a gap.
            start = self._both if self.cpu.layout.shared else 0
            self.cpu.reserve(max(total, 1))
            self.cpu.attention_mask[:, :total] = 1
            self.cpu.length = total
            targets = self.cpu.past_key_values()
            for pair in self._key_values:
                columns = columns_of(pair.state.axis, start, total)
                real = dequantize(self.npu.arrays[pair.state.part][pair.state.input][columns], pair.value)
                targets[pair.position][:, :, start:total] = real if pair.state.axis == 2 else real.swapaxes(2, 3)
            for pair in self._convs:
                real = dequantize(self.npu.arrays[pair.state.part][pair.state.input], pair.value)
                target = self.cpu.past_convs()[pair.position]
                target[:, :, : -real.shape[1]] = 0
                target[:, :, -real.shape[1] :] = real.swapaxes(1, 2)
            self.on_npu, self._both = False, total
        return self.cpu

    def to_npu(self) -> NpuState:
        """The NPU's state, up to date."""
        if not self.on_npu:
            total = self.cpu.length
            self.npu.reserve(max(total, 1))
            sources = self.cpu.past_key_values()
            for pair in self._key_values:
                real = sources[pair.position][:, :, self._both : total]
                columns = columns_of(pair.state.axis, self._both, total)
                stored = quantize(real if pair.state.axis == 2 else real.swapaxes(2, 3), pair.value)
                self.npu.arrays[pair.state.part][pair.state.input][columns] = stored
            for pair in self._convs:
                array = self.npu.arrays[pair.state.part][pair.state.input]
                real = self.cpu.past_convs()[pair.position][:, :, -array.shape[1] :]
                array[:] = quantize(real.swapaxes(1, 2), pair.value)
            self.npu.length = total
            self.on_npu, self._both = True, total
        return self.npu

    def snapshot(self) -> Snapshot:
        """Remember this point."""
        return self.to_npu().snapshot()

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to ``snapshot``."""
        self.to_npu().rewind(snapshot)
        self._both = min(self._both, snapshot.length)

    def clear(self) -> None:
        """Forget everything; the buffers stay."""
        self.npu.clear()
        self.cpu.clear()
        self.on_npu, self._both = True, 0


class HybridSession:
    """Feeds several tokens to the NPU and single ones to the CPU."""

    def __init__(self, npu: NpuSession, cpu: DecoderSession) -> None:
        self.npu, self.cpu = npu, cpu

    @property
    def providers(self) -> list[str]:
        """Who runs prefill, then who runs decode."""
        return [*self.npu.providers, *self.cpu.providers]

    def new_state(self, batch: int, capacity: int, limit: int) -> HybridState:
        """The state of one sequence on both sides. InputError for a batch."""
        npu = self.npu.new_state(batch, capacity, limit)
        return HybridState(self.npu.manifest, npu, self.cpu.new_state(1, capacity, limit))

    def run(
        self, state: SequenceState, input_ids: np.ndarray, *, new_mask: np.ndarray | None = None, keep: int = 1
    ) -> np.ndarray:
        """As ``NpuSession.run``; logits float32 [1, keep, vocab]."""
        state = own_state(state, HybridState)
        state.check(state.length + input_ids.shape[1])
        if input_ids.shape[1] > 1:
            return self.npu.run(state.to_npu(), input_ids, new_mask=new_mask, keep=keep)
        return self.cpu.run(state.to_cpu(), input_ids).astype(np.float32, copy=False)


def _pairs(manifest: NpuManifest, cpu: DecoderState) -> tuple[list[_StatePair], list[_StatePair]]:
    key_values = {past: at for at, (past, _) in enumerate(cpu.layout.key_values)}
    convs = {past: at for at, (past, _) in enumerate(cpu.layout.convs)}
    pairs: tuple[list[_StatePair], list[_StatePair]] = ([], [])
    for state in manifest.states:
        graph = manifest.parts[state.part].graph("decode", manifest.context_lengths[0])
        value = next(value for value in graph.inputs if value.name == state.input)
        name = f"past_key_values.{state.layer}.{state.kind}" if state.append else f"past_conv.{state.layer}"
        position = (key_values if state.append else convs).get(name)
        if position is None:
            raise ArtifactError(f"the CPU's model has no state {name}: it is not an export of the same checkpoint")
        pairs[0 if state.append else 1].append(_StatePair(state, value, position))
    if len(pairs[0]) != len(key_values) or len(pairs[1]) != len(convs):
        raise ArtifactError("the CPU's model has other layers: it is not an export of the same checkpoint")
    return pairs
