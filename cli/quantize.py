"""`lfm-onnx quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..export.artifact_source import ArtifactSource
from ..export.export_request import ExportRequest, run_export, with_context_length
from .export_console import print_result
from .export_options import export_options
from .interrupt import end_like_an_interrupt
from .progress import export_bytes, say


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--variant", help="Which of ARTIFACT's precisions to read; its first by default.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html|.md", help="Write a report of quality.")
@click.option("--context-length", type=click.IntRange(min=1), help="Positions to support [default: the artifact's].")
@export_options
def quantize(artifact: Path, variant: str | None, report: Path | None, **options: Any) -> None:
    """Quantize ARTIFACT, a folder that was exported with --precision fp32 or fp16.

    It is the same work as exporting the checkpoint with the same options: an fp32 artifact gives the same bytes.
    --report also measures other ways to store the weights, to compare with; that takes a pass of the model for each.
    """
    request = ExportRequest(**options)
    if report is not None:
        from ..reporting.file import require_report_file

        require_report_file(report)
    source = ArtifactSource.open(artifact, variant)
    request = with_context_length(request, source.context_length)
    end_like_an_interrupt()
    exported = run_export(source, request, say, export_bytes)
    print_result(exported, as_json=request.as_json)
    if report is not None and exported.plan.quantization is not None and not request.dry_run:
        from ..export.quality_report import quality_report
        from ..quantize.report.document import write_report

        write_report(report, quality_report(exported, say))
        say(f"wrote {report}")
