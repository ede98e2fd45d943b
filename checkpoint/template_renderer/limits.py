"""Limits that a process puts on itself and the operating system keeps, also inside one long call of C code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

if sys.platform == "win32":
    from .windows_job import limit_memory, processor_time
else:
    import mmap
    import resource
    import signal

    def limit_memory(nbytes: int) -> None:
        """Let this process allocate ``nbytes`` more; behind that Python raises MemoryError.

        macOS keeps no such limit: there the process that started this one watches it (``footprint``).
        """
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a conversation does not belong into a core dump
        if sys.platform == "darwin":
            return
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = _address_space() + nbytes
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    @contextmanager
    def processor_time(seconds: float) -> Iterator[None]:
        """End this process by SIGPROF should the body take more than ``seconds`` of processor time."""
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _address_space() -> int:
        """Bytes mapped by this process; where the system does not say, what a Python process stays below."""
        try:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[0]) * mmap.PAGESIZE
        except OSError:
            return 256 << 20


__all__ = ["limit_memory", "processor_time"]
