"""The speed and memory of an exported model, beside what this machine's memory allows at the most."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...artifact.artifact import Artifact
from ...errors import InputError
from ...hardware.cores import check_threads, physical_cores
from ...hardware.memory_bandwidth import MemoryBandwidth
from ..inspection import inspect_artifact
from .process import BenchWorker

PERCENTILES = (5, 95)
MOST_REPETITIONS = 1000
"""Percentiles change no more long before."""
_WORKER = (sys.executable, "-m", f"{__package__}.worker")


@dataclass(frozen=True)
class BenchOptions:
    """``prompt_tokens`` are fed at once, then ``new_tokens`` one at a time; ``repeat`` times, after one to warm up.

    threads: None takes every core. native: False runs without the native library, None as the environment says.
    npu: keywords of ``NpuRunOptions`` for an NPU export.
    """

    prompt_tokens: int = 512
    new_tokens: int = 128
    threads: int | None = None
    repeat: int = 5
    variant: str | None = None
    native: bool | None = None
    npu: dict[str, Any] | None = None

    def check(self) -> None:
        """InputError where a number is below 1, or asks for more than anybody waits for."""
        check_threads(self.threads)
        for name in ("prompt_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}`: expected 1 or more, found {getattr(self, name)}")
        if not 1 <= self.repeat <= MOST_REPETITIONS:
            raise InputError(f"`repeat`: expected 1 to {MOST_REPETITIONS}, found {self.repeat}")


@dataclass(frozen=True)
class RunTimes:
    """One prompt and what followed it, in seconds; the process's peak memory until then; the bandwidth just before."""

    prefill_s: float
    decode_s: float
    peak_rss_bytes: int
    read_bandwidth_bytes_per_s: float


@dataclass(frozen=True)
class BenchResult:
    """Measured values, one per repetition, in the order they were measured.

    ttft_s: seconds from the prompt to its first token. load_s: opening the artifact in a fresh process whose imports
    are done. bytes_per_token: weights that decoding one token reads. read_bandwidth_bytes_per_s: measured before each
    repetition with as many threads. bandwidth_fraction: decode_tokens_per_s * bytes_per_token / bandwidth.
    """

    variant: str
    threads: int
    prefill_tokens_per_s: tuple[float, ...]
    decode_tokens_per_s: tuple[float, ...]
    ttft_s: tuple[float, ...]
    load_s: tuple[float, ...]
    peak_rss_bytes: int
    bytes_per_token: int
    read_bandwidth_bytes_per_s: tuple[float, ...]
    bandwidth_fraction: tuple[float, ...]

    def to_dict(self) -> dict[str, float | int]:
        """Medians under the plain names, the 5th and 95th percentiles as ``…_p5`` and ``…_p95`` where repeated."""
        figures: dict[str, float | int] = {}
        for name in REPORTED:
            value = getattr(self, name)
            figures |= statistics(name, value) if isinstance(value, tuple) else {name: value}
        return figures


REPORTED = (
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "ttft_s",
    "load_s",
    "peak_rss_bytes",
    "bytes_per_token",
    "read_bandwidth_bytes_per_s",
    "bandwidth_fraction",
)
"""The keys of a result, in the order of the report."""


def statistics(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, and percentiles of more than one value."""
    figures = {name: float(np.median(values))}
    if len(values) > 1:
        figures |= {f"{name}_p{percent}": float(np.percentile(values, percent)) for percent in PERCENTILES}
    return figures


def bench(folder: str | Path, options: BenchOptions | None = None) -> BenchResult:
    """Measure the artifact in ``folder`` on random tokens. Raises InputError or ArtifactError."""
    options = options or BenchOptions()
    options.check()
    artifact = Artifact.open(folder, options.variant)
    needed = options.prompt_tokens + options.new_tokens
    if needed > artifact.context_length:
        raise InputError(
            f"{options.prompt_tokens} prompt tokens and {options.new_tokens} new ones do not fit into the context of "
            f"{artifact.context_length}: ask for fewer"
        )
    bytes_per_token = _bytes_per_token(artifact)
    threads = options.threads or physical_cores()
    settings = {"folder": str(folder), "variant": options.variant, "threads": threads, "npu": options.npu}
    environment = {} if options.native is None else {"LFM_ONNX_NATIVE": str(int(options.native))}
    loads = []
    for _ in range(options.repeat - 1):
        with BenchWorker(_WORKER, settings, environment) as worker:
            loads.append(worker.load_s)
    with BenchWorker(_WORKER, settings, environment) as worker:
        loads.append(worker.load_s)
        runs = repeated_runs(
            worker,
            MemoryBandwidth(threads),
            prompt_tokens=options.prompt_tokens,
            new_tokens=options.new_tokens,
            repeat=options.repeat,
            vocab_size=artifact.config.vocab_size,
        )
    decode = [options.new_tokens / run.decode_s for run in runs]
    bandwidths = [run.read_bandwidth_bytes_per_s for run in runs]
    return BenchResult(
        variant=artifact.variant,
        threads=threads,
        prefill_tokens_per_s=tuple(options.prompt_tokens / run.prefill_s for run in runs),
        decode_tokens_per_s=tuple(decode),
        ttft_s=tuple(run.prefill_s for run in runs),
        load_s=tuple(loads),
        peak_rss_bytes=runs[-1].peak_rss_bytes,
        bytes_per_token=bytes_per_token,
        read_bandwidth_bytes_per_s=tuple(bandwidths),
        bandwidth_fraction=tuple(
            rate * bytes_per_token / bandwidth for rate, bandwidth in zip(decode, bandwidths, strict=True)
        ),
    )


def _bytes_per_token(artifact: Artifact) -> int:
    from ...artifact.npu_manifest import NpuManifest, is_npu_artifact

    if is_npu_artifact(artifact):
        return sum(part.token_bytes for part in NpuManifest.read(artifact).parts)
    return inspect_artifact(artifact.folder, artifact.variant, verify="none").touched_bytes_per_token


def repeated_runs(
    worker: BenchWorker, memory: MemoryBandwidth, *, prompt_tokens: int, new_tokens: int, repeat: int, vocab_size: int
) -> list[RunTimes]:
    """``repeat`` runs on different random tokens, after one to warm up."""
    runs = []
    for seed in range(repeat + 1):
        ids = random_ids(prompt_tokens + new_tokens, vocab_size, seed)
        bandwidth = memory.measure()
        times = worker.run(ids[:prompt_tokens], ids[prompt_tokens:])
        runs.append(RunTimes(**times, read_bandwidth_bytes_per_s=bandwidth))
    return runs[1:]


def random_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    """``count`` token ids, the same for the same seed."""
    result: list[int] = np.random.default_rng(seed).integers(0, vocab_size, count).tolist()
    return result
