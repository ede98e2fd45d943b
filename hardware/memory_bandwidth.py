"""How fast this machine reads memory with a given number of threads: the limit that decoding is compared with."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .cores import check_threads, last_level_cache_bytes

_SMALLEST_BUFFER = 256 << 20
_LARGEST_BUFFER = 2 << 30
# Of a buffer read in order again and again, four times the cache's size leaves next to nothing in the cache.
_BUFFER_PER_CACHE = 4
_PASSES = 5


class MemoryBandwidth:
    """Reads a buffer well above the caches with ``threads`` threads; ``measure`` as often as wanted."""

    def __init__(self, threads: int, buffer_bytes: int | None = None) -> None:
        check_threads(threads)
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
