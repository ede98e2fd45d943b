"""How fast this machine reads memory with a given number of threads: the limit that decoding is compared with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import InputError

_SMALLEST_BUFFER = 256 << 20
_LARGEST_BUFFER = 2 << 30
# Of a buffer read in order again and again, four times the cache's size leaves next to nothing in the cache.
_BUFFER_PER_CACHE = 4
_PASSES = 5
_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_CPU_FOLDER = Path("/sys/devices/system/cpu")


class MemoryBandwidth:
    """Reads a buffer well above the caches with ``threads`` threads; ``measure`` as often as wanted."""

    def __init__(self, threads: int, buffer_bytes: int | None = None) -> None:
        if threads < 1:
            raise InputError(f"threads: expected 1 or more, found {threads}")
        size = buffer_bytes or min(max(_SMALLEST_BUFFER, _BUFFER_PER_CACHE * last_level_cache_bytes()), _LARGEST_BUFFER)
        self._parts = np.array_split(np.empty(size // 8, np.int64), threads)
        self._pool = ThreadPoolExecutor(threads)
        # Each thread touches its part first, so that the system places it in memory near that thread.
        list(self._pool.map(lambda part: part.fill(1), self._parts))

    def measure(self) -> float:
        """Bytes per second, the best of a few passes: what the machine can do at this moment."""
        return max(self._read() for _ in range(_PASSES))

    def _read(self) -> float:
        started = time.perf_counter()
        # numpy releases the GIL here, and an OR of int64 is a loop of vector loads: nothing else limits it.
        list(self._pool.map(np.bitwise_or.reduce, self._parts))
        return sum(part.nbytes for part in self._parts) / (time.perf_counter() - started)


def physical_cores() -> int:
    """Cores that this process may use, each counted once whatever its hardware threads: ONNX Runtime's own default."""
    siblings = {_read(_CPU_FOLDER / f"cpu{cpu}/topology/thread_siblings_list") for cpu in _usable_cpus()}
    # Where the system says nothing of its topology, every CPU counts.
    return len(siblings) if siblings and "" not in siblings else max(len(list(_usable_cpus())), 1)


def last_level_cache_bytes() -> int:
    """Bytes of all last-level caches of the usable CPUs; 0 where the system does not say."""
    caches: dict[tuple[int, str], int] = {}
    for cpu in _usable_cpus():
        for cache in (_CPU_FOLDER / f"cpu{cpu}/cache").glob("index*"):
            level, shared_by, size = (_read(cache / name) for name in ("level", "shared_cpu_list", "size"))
            if level.isdigit() and size[:-1].isdigit() and size[-1] in _SIZE_UNITS:
                caches[int(level), shared_by] = int(size[:-1]) * _SIZE_UNITS[size[-1]]
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def _usable_cpus() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):  # Linux and Android
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
