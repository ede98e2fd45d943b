"""The command `lfm-onnx export`: for the CPU, or with --target qnn for Qualcomm's NPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..checkpoint.checkpoint import Checkpoint
from ..errors import InputError
from ..export import ExportOptions, export_checkpoint, resolve_export
from .export_console import print_exported, print_plan
from .export_options import export_options, taken_options
from .finite_float import FiniteFloat
from .interrupt import end_like_an_interrupt
from .options import memory_budget_option, socs_option, target_option
from .progress import byte_progress, say
from .values import ContextLengths, Size

_CPU_ONLY = {
    "ops": "--ops",
    "block_size": "--block-size",
    "scale_dtype": "--scale-dtype",
    "zero_points": "--zero-points",
    "budget": "--budget",
    "max_kld": "--max-kld",
    "recipe": "--recipe",
}
_NPU_ONLY = {
    "socs": "--soc",
    "chunk": "--chunk",
    "weight_budget": "--weight-budget",
    "memory_budget": "--memory-budget",
    "share_experts": "--share-experts",
    "headroom": "--headroom",
}


@click.command()
@click.argument("checkpoint")
@click.option("--revision", help="Branch, tag or commit, where CHECKPOINT is a hub id.")
@target_option(
    "cpu",
    "qnn",
    default="cpu",
    show_default=True,
    help="What to export for; qnn: Qualcomm's NPU, static graphs, --precision q4 (default) or q8.",
)
@socs_option
@click.option("--chunk", type=click.IntRange(min=2), help="qnn: tokens of a prefill call [default: 128].")
@click.option("--weight-budget", type=Size(), metavar="SIZE", help="qnn: weights of a part at most [default: 3GB].")
@memory_budget_option
@click.option(
    "--share-experts",
    is_flag=True,
    help="qnn: prefill takes one expert after another from decode's weights: half the bytes, a slower prefill.",
)
@click.option(
    "--headroom",
    type=FiniteFloat(min=1, max=64),
    metavar="FACTOR",
    help="qnn: room for activations beyond those of the calibration text [default: 1.25, or 4 with the shipped text].",
)
@click.option(
    "--context-length",
    "context_lengths",
    type=ContextLengths(),
    multiple=True,
    metavar="N[,N...]",
    help="Tokens of context to support [default: the model's; qnn: 1024]. qnn: several are graphs of the same weights.",
)
@export_options
@click.pass_context
def export(
    ctx: click.Context,
    /,
    checkpoint: str,
    revision: str | None,
    target: str,
    socs: str | None,
    chunk: int | None,
    weight_budget: int | None,
    memory_budget: int | None,
    share_experts: bool,
    headroom: float | None,
    context_lengths: tuple[tuple[int, ...], ...],
    output: Path,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Export CHECKPOINT, a local folder or a hub id (org/name), to an ONNX artifact.

    Weights stream from file to file: memory does not grow with the model. The output folder appears when it is
    complete; an export that was interrupted goes on from the weight files it had finished. With --budget or --max-kld
    the exit code is 1, and nothing is written, where the promise cannot be kept.

    With --target qnn the model is cut into parts for the NPU; --dry-run prints them with the memory and time that
    compiling takes. Without --soc the artifact waits for `lfm-onnx compile`.
    """
    lengths = tuple(length for given in context_lengths for length in given)
    foreign = _NPU_ONLY if target == "cpu" else _CPU_ONLY
    for name, flag in foreign.items():
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise InputError(_out_of_place(flag, target))
    end_like_an_interrupt()
    source = Checkpoint.open(checkpoint, revision=revision, progress=say)
    if target == "cpu":
        if len(lengths) > 1:
            raise InputError("several context lengths are for --target qnn; a CPU artifact takes all up to one")
        settings = taken_options({**options, "context_length": lengths[0] if lengths else None})
        _for_cpu(source, output, settings, dry_run=dry_run, as_json=as_json)
        return
    if not options["tokenizer"]:
        raise InputError("--target qnn calibrates on text, which needs a tokenizer: leave out --no-tokenizer")
    from ..export.npu_request import NpuRequest
    from ..hardware.chips import chips
    from .export_npu import export_for_npu

    tokens_given = ctx.get_parameter_source("calibration_tokens") is not ParameterSource.DEFAULT
    request = NpuRequest(
        output=output,
        precision=options["precision"],
        context_lengths=lengths,
        chunk=chunk,
        weight_budget=weight_budget,
        memory_budget=memory_budget,
        share_experts=share_experts,
        headroom=headroom,
        method=options["method"],
        threads=options["threads"],
        calibration=options["calibration"],
        calibration_tokens=options["calibration_tokens"] if tokens_given else None,
        force=options["force"],
    )
    target_chips = chips(socs) if socs is not None else []
    export_for_npu(source, request, target_chips, dry_run=dry_run, as_json=as_json)


def _for_cpu(source: Checkpoint, output: Path, options: ExportOptions, *, dry_run: bool, as_json: bool) -> None:
    if dry_run:
        print_plan(resolve_export(source, options, progress=say), output, as_json=as_json)
        return
    with byte_progress("Exporting") as on_bytes:
        exported = export_checkpoint(source, output, options, progress=say, on_bytes=on_bytes)
    print_exported(exported, as_json=as_json)


def _out_of_place(flag: str, target: str) -> str:
    if target == "cpu":
        return f"{flag} is for --target qnn: add it, or leave out {flag}"
    hint = "; --weight-budget bounds the parts" if flag == "--budget" else ""
    return f"{flag} is for --target cpu, which --target qnn excludes: leave out one of the two{hint}"
