"""The command `lfm-onnx inspect`: what an artifact holds and costs."""

from __future__ import annotations

from pathlib import Path

import click

from .options import artifact_argument, json_option, variant_option
from .output import print_json


@click.command()
@artifact_argument
@variant_option
@click.option("--verify", is_flag=True, help="Compare the SHA-256 of every file first.")
@json_option
def inspect(artifact: Path, variant: str | None, verify: bool, as_json: bool) -> None:
    """Show what ARTIFACT holds and costs."""
    from ..runtime.inspection import inspect_artifact
    from ..runtime.npu.inspection import NpuInspection
    from .inspection_tables import print_inspection, print_npu_inspection

    inspection = inspect_artifact(artifact, variant, verify="full" if verify else "quick")
    if as_json:
        print_json(inspection.to_dict())
    elif isinstance(inspection, NpuInspection):
        print_npu_inspection(inspection)
    else:
        print_inspection(inspection)
