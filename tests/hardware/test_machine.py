"""Processors and memory are what this process may use: its affinity and its container's limits count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lfm_onnx.hardware import control_groups, cores, memory
from lfm_onnx.hardware.cores import last_level_cache_bytes, physical_cores, thread_count, usable_processors
from lfm_onnx.hardware.memory import available_memory_bytes, peak_rss_bytes, total_memory_bytes

GIB = 1 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for /sys/fs/cgroup, with this process in the group /a/b of version 2."""
    mount, own = tmp_path / "cgroup", tmp_path / "own"
    (mount / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    monkeypatch.setattr(control_groups, "MOUNT", mount)
    monkeypatch.setattr(control_groups, "OWN_GROUPS", own)
    return mount


def test_cores_and_caches_are_those_of_this_machine() -> None:
    import psutil

    assert 1 <= physical_cores() <= psutil.cpu_count(logical=True)
    assert 1 <= usable_processors() <= psutil.cpu_count(logical=True)
    assert 0 <= last_level_cache_bytes() < 16 << 30


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_held_to_one_processor_takes_one_thread() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from lfm_onnx.hardware.cores import physical_cores, thread_count\n"
        "print(thread_count(None), physical_cores(), thread_count(3))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "1 1 3\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"a/cpu.max": "20000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ({"a/b/cpu.max": "max 100000"}, 8),
        ({"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "garbage"}, 8),
    ],
)
def test_a_containers_share_of_processor_time_bounds_the_threads(
    files: dict[str, str], expected: int, groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        (groups / name).write_text(text)
    assert usable_processors() == thread_count(None) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="available memory is read from /proc")
def test_memory_is_at_most_the_containers_with_file_pages_counted_as_free(groups: Path) -> None:
    (groups / "memory.max").write_text("max")
    (groups / "a" / "memory.max").write_text(str(GIB))
    (groups / "a" / "memory.current").write_text(str(GIB - 1000))
    (groups / "a" / "memory.stat").write_text("anon 5\ninactive_file 400\n")
    assert total_memory_bytes() == GIB
    assert available_memory_bytes() == 1400


@pytest.mark.skipif(sys.platform != "linux", reason="available memory is read from /proc")
def test_without_limits_memory_is_the_machines() -> None:
    import psutil

    total, available = total_memory_bytes(), available_memory_bytes()
    assert total is not None and available is not None
    assert available <= total <= psutil.virtual_memory().total * 1.1


def test_a_system_that_says_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, name in ((control_groups, "OWN_GROUPS"), (cores, "CPU_FOLDER"), (memory, "MEMINFO")):
        monkeypatch.setattr(module, name, tmp_path / "nothing")
    assert usable_processors() >= 1 and physical_cores() >= 1
    assert last_level_cache_bytes() == 0
    assert sys.platform == "win32" or available_memory_bytes() is None


def test_more_memory_in_use_raises_the_peak() -> None:
    before = peak_rss_bytes()
    size = before + (64 << 20)
    np.ones(size, np.uint8)
    assert peak_rss_bytes() >= size
