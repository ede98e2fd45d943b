"""`lfm-onnx export`."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from ..checkpoint import Checkpoint
from ..errors import InputError
from ..progress import byte_progress
from ..quantize.formats import SCALE_DTYPES
from ..quantize.precision import PRECISIONS
from .exporter import ExportOptions, ExportPlan, export_checkpoint, plan_export
from .ops import BodyStyle


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="fp32", show_default=True)
@click.option(
    "--ops",
    type=click.Choice([style.value for style in BodyStyle]),
    default=BodyStyle.CUSTOM.value,
    show_default=True,
    help="custom: with ONNX Runtime's contrib ops, fastest there; standard: ai.onnx alone, for any runtime.",
)
@click.option("--block-size", type=click.Choice(["32", "64", "128"]), help="q4, q8: weights per scale [default: 32].")
@click.option("--scale-dtype", type=click.Choice(SCALE_DTYPES), help="q4, q8: type of the scales [default: float16].")
@click.option("--zero-points", is_flag=True, help="q4, q8: store a zero point per block.")
@click.option("--context-length", type=click.IntRange(min=1), help="Positions to support [default: the model's].")
@click.option("--revision", help="Branch, tag or commit, where CHECKPOINT is a hub id.")
@click.option("--tokenizer/--no-tokenizer", default=True, help="Require and copy the tokenizer files.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Replace an artifact that stands in the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def export(
    checkpoint: str,
    output: Path,
    precision: str,
    ops: str,
    block_size: str | None,
    scale_dtype: str | None,
    zero_points: bool,
    context_length: int | None,
    revision: str | None,
    tokenizer: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT, a local folder or a hub id (org/name), to an ONNX artifact.

    Weights stream from file to file: memory stays below 1.5 GB whatever the model's size. The output folder appears
    when it is complete; an export that was interrupted goes on from the weight files it had finished.
    """
    # A plain kill ends like Ctrl-C: finished files stay for the next run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = Checkpoint.open(checkpoint, revision=revision, progress=lambda line: click.echo(line, err=True))
    try:
        stored = PRECISIONS[precision].with_blocks(
            int(block_size) if block_size else None, scale_dtype, zero_points=zero_points
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    options = ExportOptions(stored, BodyStyle(ops), context_length, force, tokenizer)
    plan = plan_export(source, options)
    if dry_run:
        result = {"dry_run": True, "output": str(output), **plan.to_dict()}
    else:
        started = time.perf_counter()
        with byte_progress("Exporting", plan.data_bytes) as on_bytes:
            manifest = export_checkpoint(source, output, options, on_bytes=on_bytes, plan=plan)
        result = _summary(output, plan, manifest, time.perf_counter() - started)
    click.echo(json.dumps(result, indent=2) if as_json else _text(result))
    sys.stdout.flush()


def _summary(output: Path, plan: ExportPlan, manifest: dict[str, Any], seconds: float) -> dict[str, Any]:
    total = sum(file["bytes"] for file in manifest["files"])
    return {
        "output": str(output),
        "model": f"{output / 'onnx' / plan.options.precision.model_file}",
        **plan.to_dict(),
        "parameters": manifest["model"]["parameters"],
        "bytes": total,
        "seconds": round(seconds, 3),
        "seconds_per_gb": round(seconds / (total / 1e9), 3),
    }


def _text(result: dict[str, Any]) -> str:
    state = sum(result["state_bytes"].values())
    lines = [
        f"{'would write' if result.get('dry_run') else 'wrote'} {result['output']}: {result['precision']}, "
        f"{result['ops']} ops, {result['data_bytes'] / 1e6:.1f} MB of weights in {len(result['data_files'])} file(s)",
        f"context {result['context_length']} tokens, {state / 1e6:.1f} MB of state at that length",
    ]
    if "seconds" in result:
        lines.append(
            f"{result['parameters'] / 1e6:.1f} M parameters in {result['seconds']:.1f} s "
            f"({result['seconds_per_gb']:.2f} s per GB written)"
        )
    return "\n".join(lines)
