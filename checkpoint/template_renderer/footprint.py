"""Memory of another process on macOS, which keeps no limit of address space: whoever started it has to look."""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache

_RUSAGE_INFO_V0 = 0
# rusage_info_v0: a UUID of 16 bytes, then 64-bit counters of which this is the eighth.
_PHYSICAL_FOOTPRINT = 16 + 7 * 8
_RUSAGE_INFO_BYTES = 96


def footprint(pid: int) -> int:
    """Bytes of memory that are the process's own; 0 where there is no such process (any more)."""
    info = ctypes.create_string_buffer(_RUSAGE_INFO_BYTES)
    if _system_library().proc_pid_rusage(pid, _RUSAGE_INFO_V0, info) != 0:
        return 0
    return ctypes.c_uint64.from_buffer(info, _PHYSICAL_FOOTPRINT).value


@cache
def _system_library() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("System"))
