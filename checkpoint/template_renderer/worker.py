"""The renderer's own process: compiles and renders templates as it is asked on stdin, and answers on stdout.

Requests come pickled, from the program that started it; answers are plain text, since a hostile template may have a
part in them.
"""

from __future__ import annotations

import pickle
import sys
from functools import lru_cache
from typing import IO, Any

import jinja2

from .budget import MAX_CHARACTERS, MEMORY_BYTES, PROCESSOR_SECONDS, TOO_LARGE, TOO_MUCH_TEXT
from .frames import read_frame, write_frame
from .limits import limit_memory, processor_time
from .outcome import Outcome
from .sandbox import chat_environment


def serve() -> None:
    """Answer requests until stdin ends."""
    limit_memory(MEMORY_BYTES)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (request := read_frame(requests)) is not None:
        with processor_time(PROCESSOR_SECONDS):
            _answer(request, answers)


def _answer(request: bytes, answers: IO[bytes]) -> None:
    try:
        outcome, text = _result(*pickle.loads(request))
        answer = outcome.value + text.encode("utf-8", "surrogatepass")
    except MemoryError:
        answer = Outcome.OUT_OF_MEMORY.value + TOO_LARGE.encode()
    write_frame(answers, answer)


def _result(source: str, variables: dict[str, Any] | None) -> tuple[Outcome, str]:
    """The rendered text, or why there is none; variables None: whether the template compiles."""
    try:
        template = _compiled(source)
    except MemoryError:
        raise
    except Exception as error:  # a hostile source makes the compiler fail in any way: deep nesting, bad names
        return Outcome.FAILED, _reason(error)
    if variables is None:
        return Outcome.RENDERED, ""
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(**variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise jinja2.exceptions.SecurityError(TOO_MUCH_TEXT)
    except MemoryError:
        raise
    except Exception as error:
        return Outcome.FAILED, _reason(error)
    return Outcome.RENDERED, "".join(pieces)


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return chat_environment().from_string(source)


def _reason(error: Exception) -> str:
    reason = " ".join(str(error)[:3000].split()) or type(error).__name__
    line = getattr(error, "lineno", None)
    return reason[:300] + (f" (template line {line})" if line else "")
