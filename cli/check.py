"""The command `lfm-onnx check`: what an execution provider makes of an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .progress import say

_MISSED = 1
TARGETS = ("qnn", "openvino", "nnapi", "xnnpack", "windows-ml")
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("folder", metavar="DIR", type=_PATH)
@click.option("--target", type=click.Choice(TARGETS), required=True, help="What DIR is to run on.")
@click.option("--variant", help="Precision to check; the artifact's first by default (qnn: the NPU export).")
@click.option("--soc", metavar="NAME", help="qnn: the chip to compile for, such as sm8750.")
@click.option("--every-context", is_flag=True, help="qnn: all exported context lengths, not the shortest alone.")
@click.option(
    "--reference", metavar="CHECKPOINT", help="openvino, windows-ml: compare with this checkpoint in float32."
)
@click.option("--python", "interpreter", metavar="FILE", type=_PATH, help="openvino, windows-ml: Python that has it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(context: click.Context, folder: Path, target: str, as_json: bool, **options: Any) -> None:
    """Say what TARGET makes of the model exported to DIR.

    Exit code 0: all requirements are met; 1: one is missed; 2: it could not be checked.
    """
    from ..mobile_bridge.check.run import run_check

    report = run_check(folder, target, progress=say, **options)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        from .check_console import print_check

        print_check(report)
    if not report.passed:
        context.exit(_MISSED)
