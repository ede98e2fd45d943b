"""A Python process that answers requests: one JSON object a line on its stdin and stdout, what it logs on stderr.

A reply is {"result": {…}}, or {"error": text, "kind": word} after a mistake that it can name. The parent's side is
``WorkerProcess``, the child's ``serve``. Work goes to such a process where libraries crash, keep memory, or are another
Python's.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ..errors import LfmOnnxError, OutputError

Worker = TypeVar("Worker", bound="WorkerProcess")
_LONGEST_SHOWN = 400


class WorkerError(LfmOnnxError):
    """A worker gave no result.

    kind: "missing" where it cannot be started, "killed" by signal 9, "ended" in another way, "garbled" after a line
    that is no reply; or the worker's own word for a mistake.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


class WorkerProcess:
    """A process started by ``command``; a context manager, which ends it, at once when an error leaves the block.

    name: the process in messages. environment: variables beside those of this process. log_file: where its stderr
    goes and stays, a temporary file by default. Raises WorkerError where it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        *,
        environment: Mapping[str, str] | None = None,
        log_file: Path | None = None,
    ) -> None:
        self.name = name
        try:
            self._messages = tempfile.TemporaryFile() if log_file is None else log_file.open("w+b")  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"the log {log_file} cannot be written: {error.strerror or error}") from error
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                env={**os.environ, **(environment or {})},
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._messages.close()
            raise WorkerError(f"{command[0]} cannot be started: {error.strerror or error}", "missing") from error

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The result of one request. Raises WorkerError: an error reply, the end of the process, or another text."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its last words are read below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._ended()
        reply = _parsed(line)
        if reply is None:
            self._process.kill()
            shown = ascii(line.strip())[:_LONGEST_SHOWN]
            raise WorkerError(f"{self.name} wrote something that is no reply: {shown}", "garbled")
        if "error" in reply:
            raise WorkerError(str(reply["error"]), str(reply.get("kind", "")))
        result: dict[str, Any] = reply["result"]
        return result

    def log(self) -> str:
        """What the process has written to its stderr so far."""
        self._messages.seek(0)
        return self._messages.read().decode(errors="replace")

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        if code == -9:
            return WorkerError(f"{self.name} was ended by signal 9, mostly a sign that memory ran out", "killed")
        if code < 0:
            return WorkerError(f"{self.name} was ended by signal {-code}", "ended")
        lines = self.log().strip().splitlines()
        words = lines[-1][:_LONGEST_SHOWN] if lines else "it said nothing"
        return WorkerError(f"{self.name} ended with exit code {code}: {words}", "ended")

    def __enter__(self: Worker) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None:  # Ctrl-C, too: it must not go on alone
            self._process.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._messages.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests from stdin until it ends; an LfmOnnxError becomes a reply, any other one ends the process.

    What libraries print to stdout goes to stderr instead.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply: dict[str, Any] = {"result": answer(json.loads(line))}
        except LfmOnnxError as error:
            reply = {"error": str(error), "kind": getattr(error, "kind", "")}
        print(json.dumps(reply), file=replies, flush=True)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_reply = isinstance(reply, dict) and ("error" in reply or isinstance(reply.get("result"), dict))
    return reply if is_reply else None
