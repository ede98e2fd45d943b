"""Runs a check's worker: a request as a file in, a result as a file out, its log kept as text."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import LfmOnnxError


class CheckError(LfmOnnxError):
    """A check could not be made."""


def run_worker(command: Sequence[str], request: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """(result, log). The result is None where the process wrote none: it crashed, and the log says what it can."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked, answered, log = folder / "request.json", folder / "result.json", folder / "log.txt"
        asked.write_text(json.dumps(request))
        with log.open("wb") as messages:
            try:
                process = subprocess.Popen(
                    [*command, str(asked), str(answered)],
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=subprocess.STDOUT,
                )
            except OSError as error:
                raise CheckError(f"{command[0]} cannot be started: {error.strerror}") from error
            try:
                code = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
        text = log.read_text(errors="replace")
        if answered.is_file():
            return json.loads(answered.read_text()), text
        lines = text.strip().splitlines()
        ending = f"it ended by signal {-code}" if code < 0 else f"it ended with code {code}"
        return None, f"{text}\n{ending}{': ' + lines[-1][:300] if lines else ''}"
