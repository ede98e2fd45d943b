"""The command `lfm-onnx check`: what an execution provider makes of an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    PATH,
    artifact_argument,
    json_option,
    reference_help,
    soc_option,
    target_option,
    variant_option,
)
from .output import print_json
from .progress import say

_MISSED = 1
TARGETS = ("qnn", "openvino", "nnapi", "xnnpack", "windows-ml")


@click.command()
@artifact_argument
@target_option(*TARGETS, required=True)
@variant_option
@soc_option
@click.option("--every-context", is_flag=True, help="qnn: all exported context lengths, not the shortest alone.")
@click.option("--reference", metavar="CHECKPOINT", help=reference_help)
@click.option("--python", "interpreter", metavar="FILE", type=PATH, help="openvino, windows-ml: Python that has it.")
@json_option
@click.pass_context
def check(context: click.Context, /, artifact: Path, target: str, as_json: bool, **options: Any) -> None:
    """Say what a target makes of ARTIFACT; openvino and windows-ml compare it with --reference, in float32.

    Exit code 0: all requirements are met; 1: one is missed; 2: it could not be checked.
    """
    from ..mobile_bridge.check.run import run_check

    report = run_check(artifact, target, progress=say, **options)
    if as_json:
        print_json(report.to_dict())
    else:
        from .check_console import print_check

        print_check(report)
    if not report.passed:
        context.exit(_MISSED)
