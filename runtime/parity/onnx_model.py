"""Runs an artifact's graph plainly, arrays in and arrays out, so that parity looks at the file and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ArtifactError, InputError, reason_of
from ..native_library import register_native_ops

if TYPE_CHECKING:
    from ...artifact.artifact import Artifact

Array = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_SHORT_NAMES = {"dml": "DmlExecutionProvider"}


@dataclass(frozen=True)
class OnnxState:
    """What a batch leaves behind: its attention mask so far, int64 ``[B, T]``, and the past inputs of the next call."""

    mask: Int64s
    past: dict[str, npt.NDArray[Any]]


class OnnxModel:
    """One ONNX Runtime session over an artifact's model.

    native: False runs the ops' definitions, None the native library where it is there.
    hidden_states: names of inner values that become outputs as well, see ``forward``. Raises ArtifactError where the
    model does not load or run, InputError for a provider that this ONNX Runtime does not have.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        provider: str | None = None,
        threads: int | None = None,
        native: bool | None = None,
        hidden_states: Sequence[str] = (),
    ) -> None:
        self.hidden_states = tuple(hidden_states)
        self._model_path = artifact.model_path
        self.provider = resolve_provider(provider)
        self._session = self._open(threads, native)
        pasts = [i for i in self._session.get_inputs() if i.name.startswith(("past_key_values.", "past_conv."))]
        self._pasts = {i.name: (_DTYPES.get(i.type), i.shape) for i in pasts}
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._check_contract()

    def forward(
        self, input_ids: Int64s, state: OnnxState | None = None, *, mask: Int64s | None = None, keep: int = 0
    ) -> tuple[Array, OnnxState, dict[str, Array]]:
        """One call of the graph: ``input_ids [B, S]`` after what ``state`` has seen.

        mask: 1 for a token and 0 for padding, ``[B, S]``, all ones if not given. keep: num_logits_to_keep, 0 for all.
        Returns float32 logits ``[B, S or keep, V]``, the state after the call, and the hidden states asked for.
        """
        batch = input_ids.shape[0]
        new = np.ones_like(input_ids) if mask is None else mask
        whole = new if state is None else np.concatenate([state.mask, new], axis=1)
        feeds = {
            "input_ids": input_ids,
            "attention_mask": whole,
            "num_logits_to_keep": np.asarray(keep, np.int64),
            **(self._empty_past(batch) if state is None else state.past),
        }
        try:
            found = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        except Exception as error:  # the exceptions of ONNX Runtime share no other base
            raise ArtifactError(f"{self._model_path}: ONNX Runtime failed to run it: {reason_of(error)}") from error
        past = {name: found[_present_name(name)] for name in self._pasts}
        hidden = {name: found[name] for name in self.hidden_states}
        return found["logits"].astype(np.float32, copy=False), OnnxState(whole, past), hidden

    def logits(self, ids: Sequence[int] | Int64s) -> Array:
        """All logits ``[T, V]`` of one sequence read in one call."""
        result: Array = self.forward(np.asarray(ids, np.int64)[None])[0][0]
        return result

    def greedy(self, ids: Sequence[int] | Int64s, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """The most likely continuation token by token; an end token is the last, and included."""
        tokens: list[int] = []
        step, state = np.asarray(ids, np.int64)[None], None
        while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in eos_token_ids):
            logits, state, _ = self.forward(step, state, keep=1)
            tokens.append(int(logits[0, -1].argmax()))
            step = np.asarray([tokens[-1:]], np.int64)
        return tokens

    def _open(self, threads: int | None, native: bool | None) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        # What fails is said by the error; warnings say that logits have more rows than declared, which is asked for.
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        register_native_ops(options, [self.provider], native)
        try:
            source: str | bytes = str(self._model_path)
            if self.hidden_states:
                folder = str(self._model_path.parent)
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
                source = with_outputs(self._model_path, self.hidden_states)
            session = ort.InferenceSession(source, options, providers=[self.provider])
        except ArtifactError:
            raise
        except Exception as error:  # as above
            raise ArtifactError(f"{self._model_path}: ONNX Runtime cannot load it: {reason_of(error)}") from error
        if session.get_providers()[0] != self.provider:
            raise InputError(
                f'ONNX Runtime could not start {self.provider}; see what it printed, or use `provider="cpu"`'
            )
        return session

    def _check_contract(self) -> None:
        inputs = {i.name for i in self._session.get_inputs() + self._session.get_overridable_initializers()}
        missing = sorted({"input_ids", "attention_mask", "num_logits_to_keep"} - inputs)
        missing += sorted({"logits", *map(_present_name, self._pasts)} - set(self._outputs))
        missing += [name for name, (dtype, _) in self._pasts.items() if dtype is None]
        if missing or not self._pasts:
            raise ArtifactError(
                f"{self._model_path}: the graph lacks or mistypes {', '.join(missing[:3]) or 'every past input'}; "
                "parity needs a model that `lfm-onnx export` wrote"
            )

    def _empty_past(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """Zero convolution columns and KV caches without columns."""
        return {
            name: np.zeros([batch, *(size if isinstance(size, int) else 0 for size in shape[1:])], dtype)
            for name, (dtype, shape) in self._pasts.items()
        }


def _present_name(past: str) -> str:
    return past.replace("past_key_values.", "present.").replace("past_conv.", "present_conv.")


def with_outputs(model_path: Path, names: Sequence[str]) -> bytes:
    """The model file with inner values as further outputs; weights stay where they are. ArtifactError if not there."""
    import onnx

    model = onnx.load(str(model_path), load_external_data=False)
    graph = model.graph
    known = {value for node in graph.node for value in node.output}
    missing = [name for name in names if name not in known]
    if missing:
        raise ArtifactError(f"{model_path}: the graph has no value {missing[0]}; export the checkpoint again")
    present = {output.name for output in graph.output}
    for name in names:
        if name not in present:
            graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return bytes(model.SerializeToString())


def resolve_provider(name: str | None) -> str:
    """ONNX Runtime's full name of a provider given as "cpu", "CUDA" or in full; InputError if it is not there."""
    import onnxruntime as ort

    available = ort.get_available_providers()
    if name is None:
        return "CPUExecutionProvider"
    wanted = _SHORT_NAMES.get(name.lower(), name).lower().removesuffix("executionprovider")
    for provider in available:
        if provider.lower().removesuffix("executionprovider") == wanted:
            return str(provider)
    short = ", ".join(provider.removesuffix("ExecutionProvider").lower() for provider in available)
    raise InputError(f"provider {name!r} is not in this ONNX Runtime; it has: {short}")
