"""The second reference: transformers' own LFM2 implementation in float32, behind the interface of ``Reference``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, InputError, reason_of
from .model import TokenIds, greedy_tokens, token_ids

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TorchState:
    """transformers' cache of conv columns, keys and values after ``length`` tokens."""

    length: int
    cache: Any


class TorchReference:
    """transformers' model of a checkpoint on the CPU, in float32 (4 bytes of memory per parameter).

    Code from the checkpoint is never run and pickled weights are never read. Raises InputError where torch or
    transformers is not installed or knows no LFM2, CheckpointError where transformers cannot load the folder.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._torch, self._transformers = import_transformers(self.config.model_type)
        try:
            with quiet(self._transformers):
                self.model = self._transformers.AutoModelForCausalLM.from_pretrained(
                    checkpoint.folder,
                    dtype=self._torch.float32,
                    attn_implementation="eager",
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                ).eval()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"transformers cannot load {checkpoint.folder}: {reason_of(error)}; the numpy reference does without it"
            ) from error

        # Its name since 5.24; the older one goes with 5.40.
        named = inspect.signature(self.model.forward).parameters
        self._cache = "cache" if "cache" in named else "past_key_values"

    def forward(
        self,
        input_ids: TokenIds,
        state: TorchState | None = None,
        *,
        hidden: list[Array] | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> tuple[Array, TorchState]:
        """As ``Reference.forward``: logits ``[T or 1, V]``, the state after the tokens; ``state`` stays as it was."""
        if state is None:
            return self._advance(input_ids, None, hidden, logits)
        # One token at a time: early 5.x releases of transformers drop the cached conv columns otherwise.
        state = copy.deepcopy(state)
        rows: list[Array] = []
        streams: list[list[Array]] = []
        for token in token_ids(input_ids, self.config.vocab_size):
            stream: list[Array] | None = None if hidden is None else []
            row, state = self._advance([int(token)], state, stream, "last")
            rows.append(row)
            streams.append(stream or [])
        if hidden is not None:
            hidden.extend(np.concatenate(tokens) for tokens in zip(*streams, strict=True))
        return np.concatenate(rows if logits == "all" else rows[-1:]), state

    def greedy(self, input_ids: TokenIds, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """As ``Reference.greedy``."""
        return greedy_tokens(
            lambda ids, state: self._advance(ids, state, None, "last"), input_ids, max_new_tokens, eos_token_ids
        )

    def _advance(
        self, input_ids: TokenIds, state: TorchState | None, hidden: list[Array] | None, logits: Literal["all", "last"]
    ) -> tuple[Array, TorchState]:
        """One forward pass; the cache in ``state`` is taken over and altered."""
        ids = token_ids(input_ids, self.config.vocab_size)
        seen: list[Array] = []
        hooks = self._record(seen) if hidden is not None else []
        try:
            with self._torch.no_grad(), quiet(self._transformers):
                output = self.model(
                    input_ids=self._torch.from_numpy(ids)[None],
                    use_cache=True,
                    logits_to_keep=0 if logits == "all" else 1,
                    **{self._cache: state.cache if state is not None else None},
                )
        finally:
            for hook in hooks:
                hook.remove()
        if hidden is not None:
            hidden.extend(seen)
        cache = getattr(output, self._cache)
        return output.logits[0].numpy(), TorchState((state.length if state else 0) + len(ids), cache)

    def _record(self, seen: list[Array]) -> list[Any]:
        """Hooks that append the output of embedding, layers and final norm.

        transformers' own output_hidden_states leaves out the residual stream after the last layer.
        """

        def record(_module: Any, _inputs: Any, output: Any) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output)[0].numpy().copy())

        model = self.model.model
        return [m.register_forward_hook(record) for m in (model.embed_tokens, *model.layers, model.embedding_norm)]


def import_transformers(model_type: str) -> tuple[Any, Any]:
    """The modules torch and transformers; InputError that says how to get them where they are missing."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise InputError(
            f"the transformers reference needs torch and transformers, found no {error.name}: "
            'run pip install "lfm-onnx[parity]", or use the numpy reference'
        ) from error
    if model_type not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"transformers {transformers.__version__} knows no model_type {model_type}: "
            'run pip install -U "lfm-onnx[parity]"'
        )
    return torch, transformers


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars or advice from transformers on the terminal meanwhile."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
