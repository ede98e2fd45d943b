"""The judge: a checkpoint's model in float32, by one of two implementations that share no code with the artifact."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...checkpoint.expected_tensors import parameter_count
from ...errors import CheckpointError, InputError
from ...hardware.memory import available_memory_bytes
from ...reporting.byte_size import byte_size

if TYPE_CHECKING:
    from ...checkpoint.checkpoint import Checkpoint
    from ...reference.model import TokenIds

Array = npt.NDArray[np.float32]
BACKENDS = ("numpy", "transformers")
# The artifact, and what a forward pass needs, take the rest.
_SHARE_OF_MEMORY = 0.6


class ReferenceModel(Protocol):
    """What the comparison asks of either implementation; see ``Reference``."""

    def forward(
        self, input_ids: TokenIds, *, hidden: list[Array] | None = None, logits: Literal["all", "last"] = "all"
    ) -> tuple[Array, object]:
        """Float32 logits of ``input_ids`` [T]: [T, V], or [1, V] of the last token; and the state after them.

        To ``hidden`` are appended num_hidden_layers + 2 arrays [T, H], as ``Reference.forward`` describes them.
        """
        ...

    def greedy(self, input_ids: TokenIds, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """The likeliest continuation token by token, up to max_new_tokens or an end token, which is included."""
        ...


@dataclass(frozen=True)
class Judge:
    """The reference with the name of its implementation."""

    backend: str
    model: ReferenceModel


def open_judge(
    checkpoint: Checkpoint, backend: str | None, threads: int | None, progress: Callable[[str], None]
) -> Judge:
    """The reference that was asked for, or the one that shares least with the export: transformers where it can be.

    None takes transformers, which has its own reader of checkpoints, where it is installed, knows the model and fits
    into memory, else numpy; ``progress`` is told which one and why. Raises what ``open_reference`` raises.
    """
    if backend is not None:
        progress(f"the judge is {backend}, as asked for")
        return Judge(backend, open_reference(checkpoint, backend, threads))
    reason = _against_transformers(checkpoint)
    if reason is None:
        try:
            judge = Judge("transformers", open_reference(checkpoint, "transformers", threads))
        except (InputError, CheckpointError) as error:
            reason = str(error)
        else:
            progress("the judge is transformers, which reads the checkpoint with code of its own")
            return judge
    progress(f"the judge is numpy: {reason}")
    return Judge("numpy", open_reference(checkpoint, "numpy", threads))


def _against_transformers(checkpoint: Checkpoint) -> str | None:
    """Why transformers cannot be the judge, as far as that is known without importing it."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f'{" and ".join(missing)} not installed (pip install "lfm-onnx[parity]")'
    if not checkpoint.config.attention_layers:
        return "transformers cannot decode a model without attention layers"
    needed, available = 4 * parameter_count(checkpoint.config), available_memory_bytes()
    if available is not None and needed > _SHARE_OF_MEMORY * available:
        return f"transformers would need {byte_size(needed)} in float32, and {byte_size(available)} of memory are free"
    return None


def open_reference(checkpoint: Checkpoint, backend: str, threads: int | None) -> ReferenceModel:
    """The reference model in float32: "numpy" (any size) or "transformers" (needs torch).

    Either reads the files by another way than export did: a fault in that way would be in a copy, too.
    """
    if backend == "numpy":
        from ...reference.model import Reference
        from ...reference.safetensors_weights import SafetensorsWeights

        return Reference(SafetensorsWeights(checkpoint.folder))
    if backend != "transformers":
        raise InputError(f"unknown reference backend {backend!r}; there are {' and '.join(BACKENDS)}")
    if not checkpoint.config.attention_layers:
        raise InputError('transformers cannot decode a model without attention layers: use `backend="numpy"`')
    from ...reference.torch_model import TorchReference

    reference = TorchReference(checkpoint)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return reference
