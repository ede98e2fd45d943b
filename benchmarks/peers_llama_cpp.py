"""llama.cpp as a peer: converts and quantizes the checkpoint with its own code, and decodes through its C API."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

INSTALL = "pip install gguf llama-cpp-python (compiles llama.cpp)"
FILE_TYPES = {"Q4_0": 2, "Q4_K_M": 15}  # llama_ftype
# llama.cpp's own default for the tokens that it computes at once.
_BATCH = 512


def installed() -> bool:
    """Whether both packages are there."""
    from importlib.util import find_spec

    return find_spec("llama_cpp") is not None and find_spec("gguf") is not None


def quantize(source: Path, target: Path, file_type: str, threads: int) -> None:
    """Write ``source`` (GGUF, 16 or 32 bits) to ``target`` in one of FILE_TYPES."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = threads, FILE_TYPES[file_type]
    if llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not quantize {source} to {file_type}")


class LlamaCppEngine:
    """One GGUF file; settings: file, threads, max_tokens."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import llama_cpp

        self._library = llama_cpp
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(settings["file"].encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = settings["max_tokens"]
        context.n_batch = context.n_ubatch = _BATCH
        context.n_threads = context.n_threads_batch = settings["threads"]
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot load {settings['file']}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def restart(self, tokens: int) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            tokens = (ctypes.c_int32 * len(part))(*part)  # the batch only points to it
            batch = self._library.llama_batch_get_one(tokens, len(part))
            if self._library.llama_decode(self._context, batch):
                raise RuntimeError("llama_decode failed")
        logits = self._library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, shape=(self._vocab_size,))

    def step(self, token_id: int) -> np.ndarray:
        return self.feed([token_id])


if __name__ == "__main__":
    import llama_cpp  # noqa: F401  (its import is no part of loading a model)
    from lfm_onnx.runtime.bench_worker import serve

    serve(LlamaCppEngine)
