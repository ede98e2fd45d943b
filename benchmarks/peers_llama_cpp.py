"""llama.cpp as a peer: converts and quantizes the checkpoint with its own code, and decodes through its C API."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INSTALL = "pip install gguf llama-cpp-python (compiles llama.cpp)"
FILE_TYPES = ("Q4_0", "Q4_K_M")
"""Those whose speed is compared."""
_FTYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18}  # llama_ftype
# llama.cpp's own default for the tokens that it computes at once.
_BATCH = 512


def installed() -> bool:
    """Whether both packages are there."""
    from importlib.util import find_spec

    return find_spec("llama_cpp") is not None and find_spec("gguf") is not None


def silence() -> None:
    """Let llama.cpp log nothing for the rest of the process."""
    import llama_cpp

    global _silent
    _silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept: C holds a pointer to it
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))


_silent: Any = None


def quantize(
    source: Path, target: Path, file_type: str, threads: int, importance: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write ``source`` (GGUF, 16 or 32 bits) to ``target`` as F32, Q4_0, Q4_K_M, Q6_K or Q8_0.

    importance: llama.cpp's importance matrix, by GGUF name of a tensor: mean squares of its input's columns, those of
    experts one after the other.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = threads, _FTYPES[file_type]
    if importance is not None:
        columns = {name.encode(): np.ascontiguousarray(values, np.float32) for name, values in importance.items()}
        entries = (llama_cpp.llama_model_imatrix_data * (len(columns) + 1))()  # the last one, without a name, ends it
        for entry, (name, values) in zip(entries, columns.items(), strict=False):
            entry.name, entry.size = name, values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
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
    from lfm_onnx.runtime.bench.worker import serve_engine

    serve_engine(LlamaCppEngine)
