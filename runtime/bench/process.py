"""A process in which one engine is loaded and measured, as its parent sees it; ``worker`` is the other side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..worker_process import WorkerProcess


class BenchWorker(WorkerProcess):
    """A process of its own that has loaded one engine.

    command: a program that calls ``worker.serve_engine``. load_s: seconds that loading took inside it.
    """

    def __init__(
        self, command: Sequence[str], settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(command, "the process that ran the model", environment=environment)
        try:
            self.load_s = float(self.ask(settings)["load_s"])
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def run(self, prompt_ids: Sequence[int], next_ids: Sequence[int]) -> dict[str, Any]:
        """Feed the prompt at once and what follows token by token: prefill_s, decode_s, peak_rss_bytes."""
        return self.ask({"prompt_ids": list(prompt_ids), "next_ids": list(next_ids)})

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits float32 [len(ids), V] after each token, fed one at a time."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "logits.npy"
            self.ask({"logits_of": list(ids), "file": str(file)})
            result: np.ndarray = np.load(file)
            return result
