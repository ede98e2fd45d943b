"""The command `lfm-onnx parity`: compares an exported folder with its checkpoint and says whether parity holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from .finite_float import FiniteFloat
from .options import (
    PATH,
    Respelled,
    artifact_argument,
    json_option,
    native_option,
    npu_backend_option,
    reference_help,
    report_option,
    soc_option,
    target_option,
    threads_option,
    variant_option,
)
from .output import console, print_json
from .progress import say

_MISSED = 1


@click.command()
@artifact_argument
@click.option("--reference", "checkpoint", metavar="CHECKPOINT", required=True, help=reference_help)
@click.option(
    "--reference-backend",
    "backend",
    cls=Respelled,
    former=["--backend"],
    type=click.Choice(["numpy", "transformers"]),
    help="The reference model [default: transformers where it is installed and fits into memory, else numpy].",
)
@variant_option
@click.option("--prompts", metavar="FILE", type=PATH, help='Plain text, or .jsonl with "text" or "messages".')
@click.option("--tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="Most tokens in all.")
@click.option("--tasks", metavar="FILE", type=PATH, help="Tasks (.jsonl) that both answer; also the prompts.")
@click.option("--reference-tasks", is_flag=True, hidden=True, expose_value=False, help="As always now.")
@click.option("--greedy-tokens", type=click.IntRange(min=0), default=32, show_default=True, help="Of each prompt.")
@click.option("--provider", help="Execution provider such as cpu or cuda.")
@threads_option
@native_option
@target_option("cpu", "qnn")
@npu_backend_option
@soc_option
@click.option(
    "--max-tasks",
    "most_tasks",
    cls=Respelled,
    former=["--most-tasks"],
    type=click.IntRange(min=1),
    metavar="N",
    help="Answer at most so many of the tasks.",
)
@click.option("--layers", is_flag=True, help="Compare the hidden state after each layer.")
@report_option
@json_option
@click.option("--max-kld", metavar="NATS", type=FiniteFloat(), help="Limit of the mean KLD.")
@click.option("--min-top1", metavar="SHARE", type=FiniteFloat(), help="Least top-1 agreement, 0 to 1.")
@click.option(
    "--max-logit-diff", metavar="STDS", type=FiniteFloat(), help="Limit of a logit's difference, in std of logits."
)
@click.option("--min-accuracy", metavar="SHARE", type=FiniteFloat(), help="Least share of tasks right, 0 to 1.")
@click.pass_context
def parity(
    context: click.Context,
    /,
    artifact: Path,
    checkpoint: str,
    variant: str | None,
    report: Path | None,
    as_json: bool,
    target: Literal["cpu", "qnn"] | None,
    npu_backend: str | None,
    **options: Any,
) -> None:
    """Compare ARTIFACT with the checkpoint it came from.

    Exit code 0: parity holds; 1: a limit is missed; 2: it could not be compared.
    """
    from ..reporting.file import require_report_file
    from ..runtime.parity.artifact import compare_artifact
    from ..runtime.parity.options import ParityOptions
    from ..runtime.parity.report.document import write_report
    from .parity_console import print_report

    if report is not None:
        require_report_file(report)
    settings = ParityOptions(**options, npu_backend=npu_backend or "qnn")
    result = compare_artifact(artifact, checkpoint, settings, variant=variant, target=target, progress=say)
    if as_json:
        print_json(result.to_dict())
    else:
        print_report(result, console())
    if report is not None:  # after the verdict, which a full disk must not cost
        write_report(result, report)
        say(f"wrote {report}")
    if not result.passed:
        context.exit(_MISSED)
