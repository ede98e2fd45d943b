"""The command `lfm-onnx bench`: measures an exported folder and prints the figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    artifact_argument,
    json_option,
    native_option,
    run_options,
    taken_run_options,
    threads_option,
    variant_option,
)
from .output import console, print_json

if TYPE_CHECKING:
    from ..runtime.bench.bench import BenchResult


@click.command()
@artifact_argument
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens of a prompt.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens decoded after.")
@threads_option
@click.option("--repeat", type=click.IntRange(min=1), default=5, show_default=True, help="Measurements of each figure.")
@variant_option
@native_option
@run_options
@json_option
def bench(artifact: Path, as_json: bool, **options: Any) -> None:
    """Measure the speed and memory of ARTIFACT on random tokens.

    The memory's read bandwidth is measured beside it: decoding can at most read the weights at that speed.
    """
    from ..runtime.bench.bench import BenchOptions
    from ..runtime.bench.bench import bench as measure

    npu = taken_run_options(options)
    if npu.get("cpu_artifact"):
        npu["cpu_artifact"] = str(npu["cpu_artifact"])
    result = measure(artifact, BenchOptions(**options, npu=npu or None))
    if as_json:
        print_json(result.to_dict())
    else:
        _print_result(result, options["prompt_tokens"], options["new_tokens"])


def _print_result(result: BenchResult, prompt_tokens: int, new_tokens: int) -> None:
    from rich.table import Table

    title = f"{result.variant}, {result.threads} threads, {prompt_tokens} prompt tokens, {new_tokens} new"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("median", "5 %", "95 %"):
        table.add_column(heading, justify="right")
    values = result.to_dict()
    for label, key, scale, unit in (
        ("prefill", "prefill_tokens_per_s", 1.0, " tokens/s"),
        ("decode", "decode_tokens_per_s", 1.0, " tokens/s"),
        ("time to first token", "ttft_s", 1.0, " s"),
        ("load", "load_s", 1.0, " s"),
        ("peak memory", "peak_rss_bytes", 1e-6, " MB"),
        ("weights read per token", "bytes_per_token", 1e-6, " MB"),
        ("memory read bandwidth", "read_bandwidth_bytes_per_s", 1e-9, " GB/s"),
        ("decode / bandwidth limit", "bandwidth_fraction", 100.0, " %"),
    ):
        cells = [values.get(key + suffix) for suffix in ("", "_p5", "_p95")]
        table.add_row(label, *("" if cell is None else _number(cell * scale) + unit for cell in cells))
    console().print(table)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
