"""One ONNX Runtime session of an exported model: finds the states by name and runs on buffers bound in place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.artifact import Artifact
from ..errors import ArtifactError, InputError, reason_of
from ..hardware.cores import check_threads
from .native_library import register_native_ops
from .session_protocol import OpenedSession, SequenceState, own_state
from .state import DecoderState, StateLayout

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, NodeArg

_DTYPES: dict[str, np.dtype] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
_PAST_KEY_VALUE = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_PAST_CONV = re.compile(r"past_conv\.(\d+)")
_LOG_FATAL_ONLY = 4  # what fails is said by the error that is raised


class DecoderSession:
    """Runs a decoder graph whose inputs and outputs have the names that exported models share.

    ``layout`` describes the states.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        shared: bool,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        native: bool | None = None,
    ) -> None:
        """Load ``model_path``. shared: whether past and present KV may be one buffer (GroupQueryAttention).

        providers: execution providers in order of preference, the CPU alone by default. threads: None takes every
        core. native: False goes without the native library, None takes it where it is there. Raises InputError for an
        unknown provider, ArtifactError for a model that cannot be loaded.
        """
        self._session = _load(model_path, providers, threads, native)
        self.layout = _layout(self._session, model_path, shared)
        outputs = {value.name: value for value in self._session.get_outputs()}
        self._logits_dtype = _dtype(outputs["logits"], model_path)
        self._vocab_size = _static(outputs["logits"].shape[2], "logits", model_path)
        self._keeps_rows = any(
            value.name == "num_logits_to_keep" for value in self._session.get_overridable_initializers()
        )

    @classmethod
    def of_artifact(
        cls,
        artifact: Artifact,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        native: bool | None = None,
    ) -> DecoderSession:
        """The session of an export for the CPU."""
        shared = artifact.ops_profile == "custom"
        return cls(artifact.model_path, shared=shared, providers=providers, threads=threads, native=native)

    @property
    def providers(self) -> list[str]:
        """The execution providers in use."""
        result: list[str] = self._session.get_providers()
        return result

    def new_state(self, batch: int, capacity: int, limit: int) -> DecoderState:
        """Empty buffers for ``batch`` sequences, of ``capacity`` tokens at first, which grow up to ``limit``."""
        return DecoderState(self.layout, batch, capacity, limit)

    def run(
        self, state: SequenceState, input_ids: np.ndarray, *, new_mask: np.ndarray | None = None, keep: int = 1
    ) -> np.ndarray:
        """Feed ``input_ids`` [batch, new] int64 and advance ``state``; returns logits [batch, rows, vocab].

        The logits are a buffer of the state, overwritten by the next call.
        new_mask: [batch, new] int64, 0 for padding; all ones by default. keep: logits of the last ``keep`` tokens of
        a row, 0 for all. Raises InputError when the context is full.
        """
        state = own_state(state, DecoderState)
        new = input_ids.shape[1]
        total = state.length + new
        state.reserve(total)
        state.attention_mask[:, state.length : total] = 1 if new_mask is None else new_mask
        # Row b of the mask buffer ends at capacity: only a single row is contiguous without a copy.
        attention_mask = np.ascontiguousarray(state.attention_mask[:, :total])
        input_ids = np.ascontiguousarray(input_ids, np.int64)
        binding = state.bindings.get(state.turn)
        if binding is None:
            binding = state.bindings[state.turn] = self._session.io_binding()
            self._bind_fixed(binding, state, total)
        elif not state.layout.shared:
            self._bind_key_values(binding, state, total)
        _bind_input(binding, "input_ids", input_ids)
        _bind_input(binding, "attention_mask", attention_mask)
        if self._keeps_rows:
            kept_rows = np.array(keep, np.int64)
            _bind_input(binding, "num_logits_to_keep", kept_rows)
        elif keep != 1:
            raise ArtifactError("this model gives the logits of the last token only: it has no num_logits_to_keep")
        logits = state.logits_buffer((state.batch, 1, self._vocab_size), self._logits_dtype)
        if keep == 1:
            _bind_output(binding, "logits", logits)
        else:  # the graph declares one row, and no buffer of another size can be bound
            binding.bind_output("logits", "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # see _load
            raise ArtifactError(f"ONNX Runtime failed to run the model: {reason_of(error)}") from error
        state.advance(total)
        # The logits are bound after the states, so they are the last output.
        return logits if keep == 1 else binding.get_outputs()[-1].numpy()

    def _bind_fixed(self, binding: IOBinding, state: DecoderState, total: int) -> None:
        for (past, present), read, written in zip(
            self.layout.convs, state.past_convs(), state.present_convs(), strict=True
        ):
            _bind_input(binding, past, read)
            _bind_output(binding, present, written)
        self._bind_key_values(binding, state, total)

    def _bind_key_values(self, binding: IOBinding, state: DecoderState, total: int) -> None:
        for (past, present), read, written in zip(
            self.layout.key_values, state.past_key_values(), state.present_key_values(total), strict=True
        ):
            _bind_input(binding, past, read)
            _bind_output(binding, present, written)


def open_decoder(
    artifact: Artifact,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    context_length: int | None = None,
    native: bool | None = None,
) -> OpenedSession:
    """Load the graph of an export for the CPU; parameters as those of ``LfmModel.load``. Raises LfmOnnxError."""
    limit = limited_context_length(context_length, artifact.context_length)
    session = DecoderSession.of_artifact(artifact, providers=providers, threads=threads, native=native)
    return OpenedSession(artifact, session, limit)


def limited_context_length(asked: int | None, limit: int) -> int:
    """``asked``, or ``limit`` where nothing was; InputError for what the artifact's graphs do not hold."""
    if asked is not None and not 1 <= asked <= limit:
        raise InputError(f"context length: expected 1 to {limit}, as the artifact allows, found {asked}")
    return asked or limit


def _bind_input(binding: IOBinding, name: str, array: np.ndarray) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: IOBinding, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _load(
    model_path: Path, providers: Sequence[str] | None, threads: int | None, native: bool | None
) -> InferenceSession:
    import onnxruntime

    check_threads(threads)
    wanted = list(providers or ["CPUExecutionProvider"])
    available = onnxruntime.get_available_providers()
    unknown = [provider for provider in wanted if provider not in available]
    if unknown:
        raise InputError(f"no execution provider {unknown[0]} here: choose from {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    # Shapes differ at every token: patterns remembered by shape would only pile up.
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads or 0
    # Workers wait actively between the operators of one token, and sleep between tokens.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    register_native_ops(options, wanted, native)
    try:
        return onnxruntime.InferenceSession(str(model_path), options, providers=wanted)
    except Exception as error:  # ONNX Runtime has a dozen exception types without a common base
        raise ArtifactError(f"{model_path}: ONNX Runtime cannot load this model: {reason_of(error)}") from error


def _layout(session: InferenceSession, model_path: Path, shared: bool) -> StateLayout:
    key_values: list[tuple[str, str]] = []
    convs: list[tuple[str, str]] = []
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    for name in inputs:
        if _PAST_KEY_VALUE.fullmatch(name):
            key_values.append((name, name.replace("past_key_values.", "present.")))
        elif _PAST_CONV.fullmatch(name):
            convs.append((name, name.replace("past_conv.", "present_conv.")))
    missing = {"input_ids", "attention_mask"} - inputs.keys()
    missing |= {"logits", *(present for _, present in (*key_values, *convs))} - outputs
    unknown = inputs.keys() - {"input_ids", "attention_mask"} - {past for past, _ in (*key_values, *convs)}
    if missing or unknown:
        found = f"lacks {', '.join(sorted(missing))}" if missing else f"needs an input {min(unknown)} unknown here"
        raise ArtifactError(f"{model_path}: not a decoder exported by lfm-onnx: it {found}")
    kv = inputs[key_values[0][0]] if key_values else None
    conv = inputs[convs[0][0]] if convs else None
    return StateLayout(
        key_values=tuple(key_values),
        kv_heads=_static(kv.shape[1], kv.name, model_path) if kv else 1,
        head_dim=_static(kv.shape[3], kv.name, model_path) if kv else 1,
        kv_dtype=_dtype(kv, model_path) if kv else np.dtype(np.float32),
        convs=tuple(convs),
        hidden=_static(conv.shape[1], conv.name, model_path) if conv else 1,
        conv_length=_static(conv.shape[2], conv.name, model_path) if conv else 1,
        conv_dtype=_dtype(conv, model_path) if conv else np.dtype(np.float32),
        shared=shared,
    )


def _dtype(value: NodeArg, model_path: Path) -> np.dtype:
    if value.type not in _DTYPES:
        raise ArtifactError(f"{model_path}: {value.name}: expected float or float16, found {value.type}")
    return _DTYPES[value.type]


def _static(size: object, name: str, model_path: Path) -> int:
    if not isinstance(size, int) or size < 1:
        raise ArtifactError(f"{model_path}: {name}: expected a fixed size, found {size!r}")
    return size
