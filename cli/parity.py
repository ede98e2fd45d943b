"""The command `lfm-onnx parity`: compares an exported folder with its checkpoint and says whether parity holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .finite_float import FiniteFloat

_MISSED = 1
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("folder", metavar="DIR", type=_PATH)
@click.option("--reference", "checkpoint", metavar="CHECKPOINT", required=True, help="Checkpoint that DIR came from.")
@click.option(
    "--backend",
    type=click.Choice(["numpy", "transformers"]),
    help="The reference model [default: transformers where it is installed and fits into memory, else numpy].",
)
@click.option("--variant", metavar="fp32|fp16", help="Precision to compare; the artifact's first by default.")
@click.option("--prompts", metavar="FILE", type=_PATH, help='Plain text, or .jsonl with "text" or "messages".')
@click.option("--tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="Most tokens in all.")
@click.option("--tasks", metavar="FILE", type=_PATH, help="Tasks (.jsonl) to answer; also the prompts, unless given.")
@click.option("--reference-tasks", is_flag=True, help="Let the reference answer the tasks, too.")
@click.option("--greedy-tokens", type=click.IntRange(min=0), default=32, show_default=True, help="Of each prompt.")
@click.option("--provider", help="Execution provider such as cpu or cuda.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; every core by default.")
@click.option("--no-native", "native", flag_value=False, default=None, help="Go without the native library.")
@click.option("--target", type=click.Choice(["cpu", "qnn"]), help="qnn: the export for the NPU.")
@click.option("--npu-backend", type=click.Choice(["qnn", "cpu"]), default="qnn", help="qnn: NPU or emulator, or cpu.")
@click.option("--soc", metavar="NAME", help="qnn: the chip, such as sm8750.")
@click.option("--most-tasks", type=click.IntRange(min=1), help="Answer so many of the tasks.")
@click.option("--layers", is_flag=True, help="Compare the hidden state after each layer.")
@click.option("--report", "report_file", metavar="FILE.html|.md", type=_PATH, help="Write a report.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--max-kld", metavar="NATS", type=FiniteFloat(), help="Limit of the mean KLD.")
@click.option("--min-top1", metavar="SHARE", type=FiniteFloat(), help="Least top-1 agreement, 0 to 1.")
@click.option(
    "--max-logit-diff", metavar="STDS", type=FiniteFloat(), help="Limit of a logit's difference, in std of logits."
)
@click.option("--min-accuracy", metavar="SHARE", type=FiniteFloat(), help="Least share of tasks right, 0 to 1.")
@click.pass_context
def parity(
    context: click.Context,
    folder: Path,
    checkpoint: str,
    variant: str | None,
    report_file: Path | None,
    as_json: bool,
    target: str | None,
    **options: Any,
) -> None:
    """Compare the model exported to DIR with the checkpoint it came from.

    Exit code 0: parity holds; 1: a limit is missed; 2: it could not be compared.
    """
    from ..artifact.artifact import Artifact
    from ..checkpoint.checkpoint import Checkpoint
    from ..reporting.file import require_report_file
    from ..runtime.parity.compare import compare
    from ..runtime.parity.options import ParityOptions
    from ..runtime.parity.report.document import write_report

    def progress(line: str) -> None:
        click.echo(line, err=True)

    if report_file is not None:
        require_report_file(report_file)
    artifact = Artifact.open(folder, variant or ("qnn" if target == "qnn" else None))
    reference = Checkpoint.open(checkpoint, progress=progress)
    report = compare(artifact, reference, ParityOptions(**options), progress)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        from rich.console import Console

        from .parity_console import print_report

        print_report(report, Console())
    if report_file is not None:  # after the verdict, which a full disk must not cost
        write_report(report, report_file)
        progress(f"wrote {report_file}")
    if not report.passed:
        context.exit(_MISSED)
