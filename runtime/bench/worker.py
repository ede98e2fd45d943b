"""The process whose speed and memory a benchmark measures: loads one engine, then runs what it is asked on stdin.

The first request holds the engine's settings. Every other one either runs tokens ({"prompt_ids": [...], "next_ids":
[...]}) or saves logits ({"logits_of": [...], "file": "….npy"}).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ...hardware.memory import peak_rss_bytes
from ..generation import PREFILL_CHUNK
from ..model import LfmModel
from ..npu.run_options import NpuRunOptions
from ..worker_process import serve


class Engine(Protocol):
    """A loaded model that continues one sequence of tokens."""

    def restart(self, tokens: int) -> None:
        """Forget the sequence; the next one will have at most ``tokens``."""

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Append ``ids``; logits float [V] of the last one, valid until the next call."""

    def step(self, token_id: int) -> np.ndarray:
        """Append one token the way this engine's own decoding does; logits [V]."""


class OnnxEngine:
    """An exported folder through ``LfmModel``."""

    def __init__(self, settings: dict[str, Any]) -> None:
        npu = settings.get("npu")
        self._model = LfmModel.load(
            settings["folder"],
            variant=settings.get("variant"),
            threads=settings.get("threads"),
            npu=None if npu is None else NpuRunOptions(**npu),
        )

    def restart(self, tokens: int) -> None:
        """A new, empty context in place of the old one; ``tokens`` is not needed."""
        self._context = self._model.new_context()

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits float [V] of the last of ``ids`` (at least one), which are fed PREFILL_CHUNK at a time."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            logits = self._context.feed(ids[start : start + PREFILL_CHUNK])
        return logits

    def step(self, token_id: int) -> np.ndarray:
        """Logits float [V] after one more token, valid until the next call."""
        return self._context.feed([token_id])


def serve_engine(open_engine: Callable[[dict[str, Any]], Engine]) -> None:
    """Open an engine with the first request's settings, then run what the others ask."""
    engine: Engine | None = None

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal engine
        if engine is None:
            started = time.perf_counter()
            engine = open_engine(request)
            return {"load_s": time.perf_counter() - started}
        result = _save_logits(engine, request) if "logits_of" in request else _timed_run(engine, request)
        return {**result, "peak_rss_bytes": peak_rss_bytes()}

    serve(answer)


def _timed_run(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    prompt, following = request["prompt_ids"], request["next_ids"]
    engine.restart(len(prompt) + len(following))
    started = time.perf_counter()
    engine.feed(prompt).argmax()
    first = time.perf_counter()
    for token_id in following:
        engine.step(token_id).argmax()
    return {"prefill_s": first - started, "decode_s": time.perf_counter() - first}


def _save_logits(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    ids = request["logits_of"]
    engine.restart(len(ids))
    np.save(request["file"], np.stack([np.array(engine.feed([token_id]), np.float32) for token_id in ids]))
    return {}


if __name__ == "__main__":
    import onnxruntime  # noqa: F401  (its import is no part of loading a model)

    serve_engine(OnnxEngine)
