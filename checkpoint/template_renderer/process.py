"""The renderer's process as this one sees it: started, asked, watched, and ended."""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ...errors import TokenizerError
from .budget import MEMORY_BYTES, TOO_LARGE, TOO_LONG, WALL_SECONDS
from .footprint import footprint
from .frames import read_frame, write_frame
from .outcome import Outcome

# The package under its own name but without its front door, from where this process has its modules.
PROGRAM = """\
import pickle, sys, types
sys.path[:], name, folder = pickle.load(sys.stdin.buffer)
package = sys.modules[name] = types.ModuleType(name)
package.__path__ = [folder]
__import__(name + ".checkpoint.template_renderer.worker", fromlist=["serve"]).serve()
"""
_PACKAGE, _FOLDER = __name__.partition(".")[0], Path(__file__).parents[2]
_WATCH_SECONDS = 0.02
# How Windows ends a process that has used up its job's time: ERROR_NOT_ENOUGH_QUOTA or STATUS_QUOTA_EXCEEDED.
_OUT_OF_TIME_CODES = (1816, 0xC0000044) if sys.platform == "win32" else (-signal.SIGPROF,)


class RendererProcess:
    """A process that runs ``worker.serve``; it ends with this one. TokenizerError where none can be started."""

    def __init__(self) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise TokenizerError(
                "a chat template is rendered by a Python process of its own, and this program has no interpreter to "
                "start it with; give the prompt as raw text or token ids"
            )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for us alone.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise TokenizerError(f"the process that renders chat templates cannot be started: {error}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.used = False
        """Whether it has been asked before, and so may hold memory of that."""
        with contextlib.suppress(OSError):  # it has ended already: the first request will find out
            pickle.dump((sys.path, _PACKAGE, str(_FOLDER)), self._requests)
            self._requests.flush()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet; does not wait for it."""
        return self._process.poll() is None

    def ask(self, request: bytes) -> tuple[Outcome, str]:
        """What comes of a request, and the text of that. Interrupted, or without a usual answer, the process ends."""
        self.used = True
        watch = _Watch(self._process)
        try:
            with contextlib.suppress(OSError):  # the reason for its end is read below
                write_frame(self._requests, request)
            answer = read_frame(self._answers)
        except BaseException:
            self.end()
            raise
        finally:
            watch.done.set()
        if answer is None:
            code = self._process.wait()
            watch.join()
            self.end()
            if watch.verdict is not None:
                return watch.verdict
            if code in _OUT_OF_TIME_CODES:
                return Outcome.OUT_OF_TIME, TOO_LONG
            return Outcome.ENDED, f"the process that rendered it ended with exit code {code}"
        outcome = Outcome(answer[:1])
        if outcome is Outcome.OUT_OF_MEMORY:
            self.end()
        return outcome, answer[1:].decode("utf-8", "surrogatepass")

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        with contextlib.suppress(OSError):  # what is left of a request has no reader
            self._requests.close()
        self._answers.close()
        self._process.wait()


class _Watch(threading.Thread):
    """Kills a process that does not answer for too long or, where the system keeps no limit, takes too much memory."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(name="template-renderer-watch", daemon=True)
        self.done = threading.Event()
        self.verdict: tuple[Outcome, str] | None = None
        self._process = process
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + WALL_SECONDS
        looks = sys.platform == "darwin"
        while not self.done.wait(_WATCH_SECONDS if looks else WALL_SECONDS):
            if looks and footprint(self._process.pid) > MEMORY_BYTES:
                self.verdict = Outcome.OUT_OF_MEMORY, TOO_LARGE
            elif time.monotonic() >= deadline:
                self.verdict = Outcome.OUT_OF_TIME, f"it takes more than {WALL_SECONDS:g} s"
            else:
                continue
            self._process.kill()
            return
