"""Seconds that `import lfm_onnx` takes a new process, beside those of Python itself."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 20


def median_seconds(program: str) -> float:
    """Of new processes that run ``program``."""
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    alone, imported = median_seconds("pass"), median_seconds("import lfm_onnx")
    print(f"python {alone * 1e3:.1f} ms, import lfm_onnx {(imported - alone) * 1e3:.1f} ms more (limit: 50 ms)")
