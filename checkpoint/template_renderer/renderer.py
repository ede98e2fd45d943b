"""The one renderer of this process: any thread may ask, and a process that ended is replaced."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import threading
from collections.abc import Mapping
from typing import Any

from ...errors import InputError, TokenizerError
from .outcome import Outcome
from .process import RendererProcess


class TemplateRenderer:
    """Renders templates in a process of its own, one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: RendererProcess | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Let the process come up meanwhile, some 0.1 s, if it does not run yet."""
        with self._lock, contextlib.suppress(TokenizerError):  # said when it is needed
            self._running()

    def compile(self, source: str) -> None:
        """TokenizerError unless ``source`` is a template."""
        self._ask(source, None, "cannot be compiled")

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text of the template ``source``.

        TokenizerError, one line, where the template fails or takes more than its budget. InputError for variables
        that cannot be handed to another process.
        """
        return self._ask(source, variables, "cannot render this conversation")

    def _ask(self, source: str, variables: Mapping[str, Any] | None, failing: str) -> str:
        try:
            request = pickle.dumps((source, variables))
        except Exception as error:  # whatever an object's own way of being pickled raises
            raise InputError(f"messages: expected plain data: {' '.join(str(error).split())[:200]}") from None
        with self._lock:
            process = self._running()
            used = process.used
            outcome, text = process.ask(request)
            if used and outcome in (Outcome.OUT_OF_MEMORY, Outcome.ENDED):
                # What was asked before may be the reason: only a new process's word counts.
                outcome, text = self._running().ask(request)
        if outcome is Outcome.RENDERED:
            return text
        raise TokenizerError(f"the chat template {failing}: {text}")

    def _running(self) -> RendererProcess:
        if self._process is None or not self._process.alive:
            self._process = RendererProcess()
        return self._process

    def close(self) -> None:
        """End the process; the next request starts another."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def forget(self) -> None:
        """After a fork the process belongs to the parent."""
        self.__init__()  # type: ignore[misc]


RENDERER = TemplateRenderer()
atexit.register(RENDERER.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RENDERER.forget)
