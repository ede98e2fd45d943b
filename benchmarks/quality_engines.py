"""The engines whose quality is compared: logits of every position of a text, and greedy answers, by their own code.

The caches of keys and values are float32 everywhere, so that nothing but the weights (and how an engine rounds what it
multiplies them with) makes the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


class QualityEngine(Protocol):
    """One model file, loaded."""

    def logits(self, ids: Sequence[int]) -> Logits:
        """[T, V] of a sequence that begins with ``ids[0]``; ``ids`` may not be longer than ``max_tokens``."""

    def greedy(self, ids: Sequence[int], max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """The most likely continuation; an end token is the last, and included."""


def open_ours(folder: Path, threads: int, max_tokens: int) -> QualityEngine:
    """An exported folder on ONNX Runtime, with the native library where it is there."""
    from lfm_onnx.artifact.artifact import Artifact
    from lfm_onnx.runtime.parity.onnx_model import OnnxModel

    return OnnxModel(Artifact.open(folder), threads=threads)


class LlamaCpp:
    """A GGUF file through llama.cpp's C API, on the CPU."""

    def __init__(self, file: Path, threads: int, max_tokens: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(bytes(file), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = max_tokens
        context.n_threads = context.n_threads_batch = threads
        context.type_k = context.type_v = llama_cpp.GGML_TYPE_F32
        context.flash_attn_type = 0
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(max_tokens, 0, 1)

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._context)
            self._library.llama_model_free(self._model)

    def logits(self, ids: Sequence[int]) -> Logits:
        self._forget()
        return self._decode(ids, 0, every=True)

    def greedy(self, ids: Sequence[int], max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        self._forget()
        tokens: list[int] = []
        position, step = 0, list(ids)
        while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in eos_token_ids):
            tokens.append(int(self._decode(step, position, every=False)[-1].argmax()))
            position, step = position + len(step), tokens[-1:]
        return tokens

    def _forget(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def _decode(self, ids: Sequence[int], position: int, *, every: bool) -> Logits:
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = int(token), position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or i == len(ids) - 1
        if self._library.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        rows = len(ids) if every else 1
        found = np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (rows, self._vocab_size))
        return found.astype(np.float32, copy=True)


class Genai:
    """A folder of onnxruntime-genai's builder, made without pruning the logits to those of the last token."""

    def __init__(self, folder: Path, threads: int, max_tokens: int) -> None:
        import onnxruntime_genai

        self._library, self._max_tokens = onnxruntime_genai, max_tokens
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = onnxruntime_genai.Model(config)

    def logits(self, ids: Sequence[int]) -> Logits:
        result: Logits = self._begin(ids).get_output("logits")[0].astype(np.float32)
        return result

    def greedy(self, ids: Sequence[int], max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        generator = self._begin(ids)
        tokens: list[int] = []
        while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in eos_token_ids):
            if tokens:
                generator.append_tokens(np.asarray(tokens[-1:], np.int32))
            tokens.append(int(np.asarray(generator.get_logits()).reshape(-1).argmax()))
        return tokens

    def _begin(self, ids: Sequence[int]) -> Any:
        params = self._library.GeneratorParams(self._model)
        params.set_search_options(max_length=self._max_tokens, do_sample=False)
        generator = self._library.Generator(self._model, params)
        generator.append_tokens(np.asarray(ids, np.int32))
        return generator


OpenEngine = Callable[[Path, int, int], QualityEngine]
"""(model's file or folder, threads, most tokens of a sequence) -> engine."""
