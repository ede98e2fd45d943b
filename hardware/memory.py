"""Memory of this machine and this process in bytes, a container's limits counted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from .control_groups import control_groups, read_number, read_text

MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")


def total_memory_bytes() -> int | None:
    """Memory that this process could have at the most; None where the system does not say."""
    if sys.platform == "win32":
        return _windows_memory("ullTotalPhys")
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min([total, *(limit for limit, _ in _group_limits())])


def available_memory_bytes() -> int | None:
    """Memory that can be had now without swapping; None where the system does not say."""
    if sys.platform == "win32":
        return _windows_memory("ullAvailPhys")
    available = _kilobytes(MEMINFO, "MemAvailable")
    if available is None:
        return None
    return min([available, *(max(limit - used, 0) for limit, used in _group_limits())])


def peak_rss_bytes() -> int:
    """Most memory that this process ever held at a time, mapped files included."""
    peak = _kilobytes(_STATUS, "VmHWM")
    if peak is not None:  # not getrusage: its maximum is inherited from the parent process
        return peak
    if sys.platform == "win32":
        return _windows_peak_rss_bytes()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _kilobytes(path: Path, key: str) -> int | None:
    for line in read_text(path).splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def _group_limits() -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of each control group around this process that has one.

    File pages that nothing has read lately count as free: the kernel gives them up first.
    """
    for folder in control_groups("memory"):
        for names in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = read_number(folder / names[0]), read_number(folder / names[1])
            if limit is not None and used is not None:
                stat = dict(
                    line.split(" ", 1) for line in read_text(folder / "memory.stat").splitlines() if " " in line
                )
                yield limit, used - int(stat.get(names[2], 0))


def _windows_memory(field: str) -> int | None:
    import ctypes

    sizes = ("ullTotalPhys", "ullAvailPhys", "ullTotalPageFile", "ullAvailPageFile", "ullTotalVirtual")

    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = (
            ("dwLength", ctypes.c_uint32),
            ("dwMemoryLoad", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in (*sizes, "ullAvailVirtual", "ullAvailExtendedVirtual")),
        )

    status = Status()
    status.dwLength = ctypes.sizeof(status)
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    return int(getattr(status, field)) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _windows_peak_rss_bytes() -> int:
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS
        _fields_ = (
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    kernel.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD)
    kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    result: int = counters.PeakWorkingSetSize
    return result
