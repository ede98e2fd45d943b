"""`lfm-onnx export`."""

from __future__ import annotations

from typing import Any

import click

from ..checkpoint import Checkpoint
from .export_request import ExportRequest, export_options, print_result, run_export


@click.command()
@click.argument("checkpoint")
@click.option("--revision", help="Branch, tag or commit, where CHECKPOINT is a hub id.")
@export_options
def export(checkpoint: str, revision: str | None, **options: Any) -> None:
    """Export CHECKPOINT, a local folder or a hub id (org/name), to an ONNX artifact.

    Weights stream from file to file: memory does not grow with the model. The output folder appears when it is
    complete; an export that was interrupted goes on from the weight files it had finished. With --budget or --max-kld
    the exit code is 1, and nothing is written, where the promise cannot be kept.
    """
    request = ExportRequest(**options)
    source = Checkpoint.open(checkpoint, revision=revision, progress=lambda line: click.echo(line, err=True))
    print_result(run_export(source, request), as_json=request.as_json)
