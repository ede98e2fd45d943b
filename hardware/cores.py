"""How many processors this process may use: by its affinity and its container's share, not by the machine's size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .control_groups import control_groups, read_number, read_text

MOST_THREADS = max(64, os.cpu_count() or 1)
"""More threads than the machine has processors only take turns, each with a stack and buffers of its own."""

CPU_FOLDER = Path("/sys/devices/system/cpu")
_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def usable_processors() -> int:
    """Processors that work in parallel for this process: hardware threads of its affinity, at most its time share."""
    count = len(_affinity())
    for share in _time_shares():
        count = min(count, -int(-share // 1))
    return max(count, 1)


def thread_count(threads: int | None) -> int:
    """``threads``, or one for each usable processor. InputError for a number that no machine has a use for."""
    check_threads(threads)
    return threads or usable_processors()


def check_threads(threads: int | None) -> None:
    """InputError unless ``threads`` is None or from 1 to ``MOST_THREADS``."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"`threads`: expected 1 to {MOST_THREADS}, found {threads}; more than there are processors only take turns"
        )


def physical_cores() -> int:
    """Cores that this process may use, each counted once whatever its hardware threads: ONNX Runtime's own default."""
    affinity = _affinity()
    siblings = {read_text(CPU_FOLDER / f"cpu{cpu}/topology/thread_siblings_list") for cpu in affinity}
    # Where the system says nothing of its topology, every processor counts.
    return len(siblings) if siblings and "" not in siblings else max(len(affinity), 1)


def last_level_cache_bytes() -> int:
    """Bytes of all last-level caches of the usable processors; 0 where the system does not say."""
    caches: dict[tuple[int, str], int] = {}
    for cpu in _affinity():
        for cache in (CPU_FOLDER / f"cpu{cpu}/cache").glob("index*"):
            level, shared_by, size = (read_text(cache / name) for name in ("level", "shared_cpu_list", "size"))
            if level.isdigit() and size[:-1].isdigit() and size[-1] in _SIZE_UNITS:
                caches[int(level), shared_by] = int(size[:-1]) * _SIZE_UNITS[size[-1]]
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):  # Linux and Android
        return os.sched_getaffinity(0)
    process_count = getattr(os, "process_cpu_count", os.cpu_count)  # since Python 3.13
    return set(range(process_count() or 1))


def _time_shares() -> Iterator[float]:
    """Processors' worth of time that each control group around this process grants."""
    for folder in control_groups("cpu"):
        quota, period = read_number(folder / "cpu.cfs_quota_us"), read_number(folder / "cpu.cfs_period_us")
        words = read_text(folder / "cpu.max").split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            quota, period = int(words[0]), int(words[1])
        if quota is not None and period is not None and quota > 0 and period > 0:
            yield quota / period
