"""What the comparison of engines found: tables on the terminal, a plot, and the machine it was measured on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_PACKAGES = ("lfm-onnx", "onnxruntime", "onnxruntime-genai", "llama-cpp-python", "numpy")


@dataclass(frozen=True)
class Measured:
    """One engine: ``contexts`` maps a prompt's tokens to medians and percentiles of what was measured there."""

    key: str
    name: str
    load: dict[str, float]
    bytes_per_token: int
    file_bytes: int
    kld: float | None
    contexts: dict[int, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the JSON file."""
        return asdict(self)


def machine(threads: int) -> dict[str, Any]:
    """Processor, threads, and versions of what ran."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"processor": _processor(), "threads": threads, "versions": versions}


def print_report(measured: list[Measured], threads: int) -> None:
    """Two tables: speed by context, and what does not depend on it; then the ratios to each peer."""
    console = Console(highlight=False, width=160)
    info = machine(threads)
    console.print(f"{info['processor']}, {threads} threads, {info['versions']}", markup=False)
    speed = Table(title="medians", title_justify="left")
    for heading in ("context", "engine", "prefill tok/s", "decode tok/s", "p5 - p95", "GB/s", "of limit", "peak MB"):
        speed.add_column(heading, justify="left" if heading == "engine" else "right")
    for length in _lengths(measured):
        for item in measured:
            found = item.contexts[length]
            speed.add_row(
                str(length),
                item.name,
                f"{found['prefill_tokens_per_s']:.0f}",
                f"{found['decode_tokens_per_s']:.1f}",
                f"{_spread(found, 'p5'):.1f} - {_spread(found, 'p95'):.1f}",
                f"{found['read_bandwidth_bytes_per_s'] / 1e9:.1f}",
                f"{found['bandwidth_fraction']:.0%}",
                f"{found['peak_rss_bytes'] / 1e6:.0f}",
            )
        speed.add_section()
    console.print(speed)
    fixed = Table()
    for heading in ("engine", "load s", "file MB", "MB per token", "KLD from float32"):
        fixed.add_column(heading, justify="left" if heading == "engine" else "right")
    for item in measured:
        kld = "" if item.kld is None else f"{item.kld:.2e}"
        sizes = (f"{item.file_bytes / 1e6:.0f}", f"{item.bytes_per_token / 1e6:.0f}")
        fixed.add_row(item.name, f"{item.load['load_s']:.2f}", *sizes, kld)
    console.print(fixed)
    for line in _ratios(measured):
        console.print(line, markup=False)


def _ratios(measured: list[Measured]) -> Iterable[str]:
    ours = next((item for item in measured if item.key == "native"), None)
    for other in measured:
        if ours is None or other is ours:
            continue
        for length in _lengths(measured):
            mine, theirs = ours.contexts[length], other.contexts[length]
            decode = mine["decode_tokens_per_s"] / theirs["decode_tokens_per_s"]
            prefill = mine["prefill_tokens_per_s"] / theirs["prefill_tokens_per_s"]
            yield f"{ours.name} / {other.name}, context {length}: decode {decode:.2f} x, prefill {prefill:.2f} x"


def plot(measured: list[Measured], path: Path) -> None:
    """Decode and prefill by context; beside the decode bars, what each engine's bytes and the bandwidth allow."""
    try:
        import matplotlib
    except ImportError:
        Console(stderr=True).print("no plot: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    lengths = _lengths(measured)
    width = 0.8 / max(len(measured), 1)
    for axis, key, title in (
        (axes[0], "decode_tokens_per_s", "decode, tokens/s (line: limit of the memory bandwidth)"),
        (axes[1], "prefill_tokens_per_s", "prefill, tokens/s"),
    ):
        for i, item in enumerate(measured):
            at = [place + i * width for place in range(len(lengths))]
            found = [item.contexts[length] for length in lengths]
            bars = axis.bar(at, [values[key] for values in found], width * 0.9, label=item.name)
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
            if key == "decode_tokens_per_s":
                limits = [values["read_bandwidth_bytes_per_s"] / item.bytes_per_token for values in found]
                axis.hlines(limits, [x - width / 2 for x in at], [x + width / 2 for x in at], "black", linewidth=1)
        axis.set_xticks([place + 0.4 - width / 2 for place in range(len(lengths))], [str(n) for n in lengths])
        axis.set_xlabel("tokens of context")
        axis.set_title(title)
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _lengths(measured: list[Measured]) -> list[int]:
    return sorted({length for item in measured for length in item.contexts})


def _spread(found: dict[str, float], end: str) -> float:
    return found.get(f"decode_tokens_per_s_{end}", found["decode_tokens_per_s"])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
