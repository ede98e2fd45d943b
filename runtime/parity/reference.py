"""The judge: a checkpoint's model in float32, by one of two implementations that share no code with the artifact."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import InputError

if TYPE_CHECKING:
    from ...checkpoint.checkpoint import Checkpoint
    from ...reference.model import TokenIds

Array = npt.NDArray[np.float32]
BACKENDS = ("numpy", "transformers")

_TORCH_BYTES = 6
"""For each parameter while transformers loads it: 4 as float32, and what is read of the file."""


class ReferenceModel(Protocol):
    """What the comparison asks of either implementation; see ``Reference``."""

    def forward(
        self, input_ids: TokenIds, *, hidden: list[Array] | None = None, logits: Literal["all", "last"] = "all"
    ) -> tuple[Array, object]: ...

    def greedy(self, input_ids: TokenIds, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]: ...


def default_backend(checkpoint: Checkpoint) -> str:
    """transformers where it is installed, can decode the model and finds the memory that it takes; else numpy."""
    from ...hardware.memory import available_memory_bytes
    from ...reference.torch_model import import_transformers

    elements = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    available = available_memory_bytes()
    if not checkpoint.config.attention_layers or (available is not None and elements * _TORCH_BYTES > available):
        return "numpy"
    try:
        import_transformers(checkpoint.config.model_type)
    except InputError:
        return "numpy"
    return "transformers"


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
