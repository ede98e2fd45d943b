"""The parts of an NPU export as one model: prefill in chunks, decode, with the states handed over in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...artifact.npu_manifest import NpuManifest
from ...artifact.npu_parts import NpuGraph, NpuPart, NpuPort
from ...errors import ArtifactError, InputError, LfmOnnxError, reason_of
from ..session_protocol import SequenceState, own_state
from .backends import Backend
from .graph_variants import comparison_variant
from .provider import NpuUnavailable
from .quantization import dequantize, empty
from .state import NpuState
from .token_inputs import EmbeddingTable, MaskTable, RotaryTable

Notice = Callable[[str], None]


class NpuSession:
    """Runs one sequence at a time through all parts; the graphs give logits of the last token only."""

    def __init__(
        self,
        manifest: NpuManifest,
        backend: Backend,
        *,
        fallback: Callable[[], Backend] | None = None,
        notice: Notice | None = None,
    ) -> None:
        """fallback: what takes over when the backend fails, None to fail as well. notice: is told so, one line."""
        self.manifest = manifest
        self.backend = backend
        self._fallback = fallback
        self._notice = notice or (lambda _line: None)
        self._embedding = EmbeddingTable(manifest)
        self._rotary = RotaryTable(manifest)
        self._calls: dict[tuple[Any, ...], _Call] = {}
        try:
            self._call("decode", manifest.context_lengths[0])
            self._call("prefill", manifest.context_lengths[0])
        except LfmOnnxError as error:
            self._fall_back(error)

    @property
    def providers(self) -> list[str]:
        """Who runs the graphs."""
        return [self.backend.name]

    def new_state(self, batch: int, capacity: int, limit: int) -> NpuState:
        """The state of one sequence, in the shortest exported context. InputError for a batch: graphs are static."""
        if batch != 1:
            raise InputError(f"the NPU's graphs take one sequence at a time, found a batch of {batch}")
        return NpuState(self.manifest, limit)

    def run(
        self, state: SequenceState, input_ids: np.ndarray, *, new_mask: np.ndarray | None = None, keep: int = 1
    ) -> np.ndarray:
        """Feed ``input_ids`` [1, n] and advance ``state``; float32 logits [1, keep, vocab] of the last ``keep`` tokens.

        A single token goes through the decode graph, more through prefill chunks. The logits are a buffer of the
        session where keep is 1. keep above 1 feeds the last tokens one by one; 0 means all. InputError when the
        context is full, or for a batch or padding (a static graph has one sequence).
        """
        if input_ids.shape[0] != 1 or (new_mask is not None and not new_mask.all()):
            raise InputError("the NPU's graphs take one sequence without padding: expected input_ids of shape [1, n]")
        state = own_state(state, NpuState)
        ids = np.asarray(input_ids[0], np.int64)
        singles = min(keep or len(ids), len(ids))
        state.check(state.length + len(ids))
        first = len(ids) - singles + 1
        logits = self._feed(state, ids[:first])
        if singles == 1:
            return logits
        rows = [logits.copy(), *(self._feed(state, ids[at : at + 1]).copy() for at in range(first, len(ids)))]
        return np.concatenate(rows, axis=1)

    def compare_prefill(
        self, state: NpuState, input_ids: np.ndarray, layers: Sequence[int] = ()
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Logits float32 [n, vocab] of all ``input_ids`` [n] through the prefill graphs, and the residual stream [n, H]
        after each of ``layers``; advances ``state``. Runs variants of the graphs that give all rows, see
        ``comparison_variant``.
        """
        rows: list[np.ndarray] = []
        hidden: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
        for start in range(0, len(input_ids), self.manifest.chunk):
            ids = input_ids[start : start + self.manifest.chunk]
            state.reserve(state.length + len(ids))
            key = ("compare", state.capacity, *layers)
            if key not in self._calls:
                self._calls[key] = _Call(
                    self.manifest, "prefill", state.capacity, self.backend, self._embedding, self._rotary, layers
                )
            call = self._calls[key]
            call.run(state, ids)
            # Copies: of float graphs these are the buffers themselves, which the next chunk overwrites.
            rows.append(call.logits()[0, : len(ids)].copy())
            for layer, values in call.hidden_states().items():
                hidden[layer].append(values[: len(ids)].copy())
            call.commit(state, len(ids))
        return np.concatenate(rows), {layer: np.concatenate(found) for layer, found in hidden.items()}

    def _feed(self, state: NpuState, ids: np.ndarray) -> np.ndarray:
        step = 1 if len(ids) == 1 else self.manifest.chunk
        for start in range(0, len(ids), step):
            piece = ids[start : start + step]
            state.reserve(state.length + len(piece))
            wanted = start + step >= len(ids)
            call = self._run(state, piece, head=wanted)
        return call.logits()

    def _run(self, state: NpuState, ids: np.ndarray, *, head: bool) -> _Call:
        phase = "decode" if len(ids) == 1 else "prefill"
        while True:
            try:
                call = self._call(phase, state.capacity)
                call.run(state, ids, head=head)
            except LfmOnnxError as error:
                self._fall_back(error)
                continue
            call.commit(state, len(ids))
            return call

    def _call(self, phase: str, context_length: int) -> _Call:
        key = (phase, context_length)
        if key not in self._calls:
            self._calls[key] = _Call(self.manifest, phase, context_length, self.backend, self._embedding, self._rotary)
        return self._calls[key]

    def _fall_back(self, error: LfmOnnxError) -> None:
        if self._fallback is None or not isinstance(error, (NpuUnavailable, ArtifactError)):
            raise error
        self.backend, self._fallback = self._fallback(), None
        self._calls.clear()
        self._notice(f"{error}; going on with {self.backend.name}")


class _Call:
    """All parts of one phase at one context length, with the buffers that are bound to their inputs and outputs."""

    def __init__(
        self,
        manifest: NpuManifest,
        phase: str,
        context_length: int,
        backend: Backend,
        embedding: EmbeddingTable,
        rotary: RotaryTable,
        compare: Sequence[int] | None = None,
    ) -> None:
        """compare: layers whose residual stream is wanted, with logits of all rows; None: the graphs as they are."""
        self._manifest, self._embedding, self._rotary = manifest, embedding, rotary
        self._every_row = compare is not None
        self._runs = [
            _PartRun(manifest, part, part.graph(phase, context_length), backend, compare) for part in manifest.parts
        ]
        first = self._runs[0].by_role("hidden")
        if first is None or first.dtype != embedding.dtype or first.shape[2] != embedding.width:
            raise ArtifactError("the first part's hidden states do not fit the embedding table; export again")
        # Part k's result is part k + 1's input: one buffer.
        for before, after in zip(self._runs, self._runs[1:], strict=False):
            after.buffers[after.role_name("hidden")] = before.buffers[before.role_name("hidden", output=True)]
        self._position_inputs = self._shared_inputs()

    def run(self, state: NpuState, ids: np.ndarray, *, head: bool = True) -> None:
        """Compute; ``commit`` makes it count. head: logits are wanted, of the last token or of every row."""
        self._embedding.fill(self._runs[0].buffers[self._runs[0].role_name("hidden")], ids)
        count = len(ids)
        for value, target in self._position_inputs:
            if value.role == "mask":
                assert isinstance(target, MaskTable)
                target.show(state.length)
            elif value.role in ("cos", "sin"):
                self._rotary.fill(target, value, state.length, count)
            elif value.role == "expert_index":
                target[:] = np.arange(len(target))
            elif value.role == "state_columns":
                target[:] = np.arange(count, count + len(target))
            else:
                target[:] = np.arange(len(target)) if self._every_row else count - 1
        for run in self._runs:
            if head or not run.head_alone:
                run.run(state)

    def commit(self, state: NpuState, count: int) -> None:
        """The last ``run`` has happened: advance ``state`` by ``count`` tokens."""
        appended = {
            (item.part, item.input): self._runs[item.part].buffers[item.output]
            for item in self._manifest.states
            if item.append
        }
        state.commit(count, appended)

    def logits(self) -> np.ndarray:
        """float32 [1, 1, V] of the last run."""
        run = self._runs[-1]
        value = run.output("logits")
        return dequantize(run.buffers[value.name], value)

    def hidden_states(self) -> dict[int, np.ndarray]:
        """float32 [S, H] after each layer that was asked for."""
        found = {}
        for run in self._runs:
            for layer, value in run.hidden.items():
                found[layer] = dequantize(run.buffers[value.name][0], value)
        return found

    def _shared_inputs(self) -> list[tuple[NpuPort, Any]]:
        """Inputs that depend on positions alone: one buffer for all parts that take the same."""
        shared: dict[tuple[object, ...], tuple[NpuPort, Any]] = {}
        for run in self._runs:
            for value in run.graph.inputs:
                if value.role not in ("mask", "cos", "sin", "state_columns", "last_token", "expert_index"):
                    continue
                key = (value.role, value.shape, value.scale, value.zero_point)
                if key not in shared:
                    shared[key] = (value, MaskTable(value) if value.role == "mask" else empty(value))
                target = shared[key][1]
                run.buffers[value.name] = target.array if isinstance(target, MaskTable) else target
        return list(shared.values())


class _PartRun:
    """One part's session with its bound buffers; states are bound at each run, since they take turns."""

    def __init__(
        self,
        manifest: NpuManifest,
        part: NpuPart,
        graph: NpuGraph,
        backend: Backend,
        compare: Sequence[int] | None = None,
    ) -> None:
        model = None
        self.hidden: dict[int, NpuPort] = {}
        if compare is not None:
            chosen = [layer for layer in compare if part.first_layer <= layer < part.last_layer]
            last = part.last_layer - 1  # at a part's end the stream is the part's own output
            inner = [layer for layer in chosen if part.head or layer != last]
            model, graph, added = comparison_variant(manifest.folder / graph.file, graph, inner)
            self.hidden = {int(name.rpartition(".")[2]): value for name, value in added.items()}
            if last in chosen and last not in inner:
                self.hidden[last] = next(value for value in graph.outputs if value.role == "hidden")
        self.part, self.graph = part, graph
        self.session = backend.open(graph, model)
        names = {value.name for value in self.session.get_inputs()} | {v.name for v in self.session.get_outputs()}
        missing = [value.name for value in (*graph.inputs, *graph.outputs) if value.name not in names]
        if missing:
            raise ArtifactError(f"{graph.file} has no value {missing[0]}, which its manifest lists; export again")
        self._states = {state.input: state for state in manifest.states if state.part == part.index}
        replaced = {state.output for state in self._states.values() if not state.append}
        values = (*graph.inputs, *graph.outputs)
        own = [value for value in values if value.name not in self._states and value.name not in replaced]
        self.buffers = {value.name: empty(value) for value in own}
        self.head_alone = part.head and part.first_layer == part.last_layer

    def by_role(self, role: str, *, output: bool = False) -> NpuPort | None:
        """The first input (output) that plays ``role``."""
        return next((v for v in (self.graph.outputs if output else self.graph.inputs) if v.role == role), None)

    def output(self, role: str) -> NpuPort:
        """The output that plays ``role``; ArtifactError without one."""
        value = self.by_role(role, output=True)
        if value is None:
            raise ArtifactError(f"{self.graph.file} has no output for {role}; export again")
        return value

    def role_name(self, role: str, *, output: bool = False) -> str:
        """Name of the value that plays ``role``; ArtifactError without one."""
        value = self.by_role(role, output=output)
        if value is None:
            raise ArtifactError(f"{self.graph.file} has no {'output' if output else 'input'} for {role}; export again")
        return value.name

    def run(self, state: NpuState) -> None:
        """One run: reads the state's arrays, writes its spare ones and the buffers."""
        binding = self.session.io_binding()
        for value in self.graph.inputs:
            array = state.arrays[self.part.index].get(value.name)
            _bind(binding.bind_input, value.name, self.buffers[value.name] if array is None else array)
        replaced = {s.output: s for s in self._states.values() if not s.append}
        for value in self.graph.outputs:
            target = replaced.get(value.name)
            _bind(binding.bind_output, value.name, self.buffers[value.name] if target is None else state.spare(target))
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise NpuUnavailable(f"{self.graph.file} did not run: {reason_of(error)}") from error


def _bind(bind: Callable[..., None], name: str, array: np.ndarray) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
