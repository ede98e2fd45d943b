"""The command `lfm-onnx quantize`: from an fp32 or fp16 artifact to a quantized one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .export_console import print_exported, print_plan
from .export_options import export_options, taken_options
from .interrupt import end_like_an_interrupt
from .options import artifact_argument, report_option, variant_option
from .progress import byte_progress, say


@click.command()
@artifact_argument
@variant_option
@report_option
@click.option(
    "--context-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of context to support [default: ARTIFACT's].",
)
@export_options
def quantize(
    artifact: Path,
    output: Path,
    variant: str | None,
    report: Path | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantize ARTIFACT, a folder that was exported with --precision fp32 or fp16.

    It is the same work as exporting the checkpoint with the same options: an fp32 artifact gives the same bytes.
    --report also measures other ways to store the weights, to compare with; that takes a pass of the model for each.
    """
    from ..export import resolve_export
    from ..export.artifact_quantization import quantize_artifact, require_quantization
    from ..export.artifact_source import ArtifactSource
    from ..export.quality_report import quality_report
    from ..quantize.report.document import write_report
    from ..reporting.file import require_report_file

    settings = taken_options(options)
    if report is not None:
        require_report_file(report)
        if settings.precision in ("fp32", "fp16"):
            raise InputError(f"--report is on quantized weights, and {settings.precision} has none: leave it out")
    end_like_an_interrupt()
    if dry_run:
        require_quantization(settings)
        plan = resolve_export(ArtifactSource.open(artifact, variant), settings, progress=say)
        print_plan(plan, output, as_json=as_json)
        return
    with byte_progress("Exporting") as on_bytes:
        exported = quantize_artifact(artifact, output, settings, variant=variant, progress=say, on_bytes=on_bytes)
    print_exported(exported, as_json=as_json)
    if report is not None:
        write_report(report, quality_report(exported, say))
        say(f"wrote {report}")
