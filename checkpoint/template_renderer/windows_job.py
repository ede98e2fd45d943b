"""Limits on Windows: a job object that holds this process alone."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PROCESS_TIME, _PROCESS_MEMORY = 0x2, 0x100
_EXTENDED_LIMITS = 9
_TICKS_PER_SECOND = 10_000_000


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("per_process_user_time", ctypes.c_int64),
        ("per_job_user_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("minimum_working_set", ctypes.c_size_t),
        ("maximum_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority_class", ctypes.c_uint32),
        ("scheduling_class", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("basic", _BasicLimits),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


if sys.platform == "win32":
    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.CreateJobObjectW.restype = _kernel.GetCurrentProcess.restype = ctypes.c_void_p
    _limits = _ExtendedLimits()
    _job = ctypes.c_void_p()

    def limit_memory(nbytes: int) -> None:
        """Let this process commit ``nbytes`` in all; behind that Python raises MemoryError."""
        _job.value = _kernel.CreateJobObjectW(None, None)
        # What the interpreter takes itself, some 15 MB, is too little to count apart.
        _limits.basic.flags, _limits.process_memory = _PROCESS_MEMORY, nbytes
        _apply_limits()
        if not _kernel.AssignProcessToJobObject(_job, ctypes.c_void_p(_kernel.GetCurrentProcess())):
            raise ctypes.WinError(ctypes.get_last_error())

    @contextmanager
    def processor_time(seconds: float) -> Iterator[None]:
        """End this process should the body take more than ``seconds`` of processor time."""
        _limits.basic.flags |= _PROCESS_TIME
        _limits.basic.per_process_user_time = int((os.times().user + seconds) * _TICKS_PER_SECOND)
        _apply_limits()
        try:
            yield
        finally:
            _limits.basic.flags &= ~_PROCESS_TIME
            _apply_limits()

    def _apply_limits() -> None:
        size = ctypes.c_uint32(ctypes.sizeof(_limits))
        if not _kernel.SetInformationJobObject(_job, _EXTENDED_LIMITS, ctypes.byref(_limits), size):
            raise ctypes.WinError(ctypes.get_last_error())
