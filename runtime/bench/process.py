"""A process in which one engine is loaded and measured, as its parent sees it; ``worker`` is the other side."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ...errors import ArtifactError


class BenchWorker:
    """A process of its own that has loaded one engine; a context manager, which ends the process.

    command: a program that calls ``worker.serve``. load_s: seconds that loading took inside it.
    """

    def __init__(
        self, command: Sequence[str], settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        try:
            self.load_s = float(self._ask(settings)["load_s"])
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def run(self, prompt_ids: Sequence[int], next_ids: Sequence[int]) -> dict[str, Any]:
        """Feed the prompt at once and what follows token by token: prefill_s, decode_s, peak_rss_bytes."""
        return self._ask({"prompt_ids": list(prompt_ids), "next_ids": list(next_ids)})

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits float32 [len(ids), V] after each token, fed one at a time."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "logits.npy"
            self._ask({"logits_of": list(ids), "file": str(file)})
            return np.load(file)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its last words are read below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ArtifactError(f"the process that ran the model {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise ArtifactError(reply["error"])
        return reply

    def _last_words(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"was ended by signal {-code}; signal 9 mostly means that memory ran out"
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return f"ended with exit code {code}: {lines[-1][:400] if lines else 'it said nothing'}"

    def __enter__(self) -> BenchWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._messages.close()
