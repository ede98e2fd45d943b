"""`lfm-onnx export`: for the CPU, or with --target qnn for Qualcomm's NPU, where it may go on to compile.

Exporting is export/'s work, compiling that of mobile_bridge/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..checkpoint.checkpoint import Checkpoint
from ..errors import InputError
from ..export.export_request import ExportRequest, run_export
from ..reporting.byte_size import byte_size
from .export_console import print_result
from .export_options import ContextLengths, Size, export_options
from .finite_float import FiniteFloat
from .interrupt import end_like_an_interrupt
from .progress import export_bytes, say, step_progress

if TYPE_CHECKING:
    from ..export.npu_request import NpuPlan, NpuRequest
    from ..hardware.chips import Chip

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
@click.option(
    "--target",
    type=click.Choice(["cpu", "qnn"]),
    default="cpu",
    show_default=True,
    help="qnn: static graphs for Qualcomm's NPU, --precision q4 (default) or q8.",
)
@click.option("--soc", "socs", metavar="NAME[,NAME…]", help="qnn: compile for these chips too, such as sm8750,sm8650.")
@click.option("--chunk", type=click.IntRange(min=2), help="qnn: tokens of a prefill call [default: 128].")
@click.option("--weight-budget", type=Size(), metavar="SIZE", help="qnn: weights of a part at most [default: 3GB].")
@click.option("--memory-budget", type=Size(), metavar="SIZE", help="qnn: memory that compiling a part may take.")
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
    metavar="N[,N…]",
    help="Positions to support [default: the model's; qnn: 1024]. qnn: several are graphs of the same weights.",
)
@export_options
@click.pass_context
def export(
    ctx: click.Context,
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
    if target == "cpu":
        if len(lengths) > 1:
            raise InputError("several context lengths are for --target qnn; a CPU artifact takes all up to one")
        request = ExportRequest(**options, context_length=lengths[0] if lengths else None)
        end_like_an_interrupt()
        exported = run_export(_open(checkpoint, revision), request, say, export_bytes)
        print_result(exported, as_json=request.as_json)
        return
    if not options["tokenizer"]:
        raise InputError("--target qnn calibrates on text, which needs a tokenizer: leave out --no-tokenizer")
    from ..export.npu_request import NpuRequest

    tokens_given = ctx.get_parameter_source("calibration_tokens") is not ParameterSource.DEFAULT
    npu_request = NpuRequest(
        output=options["output"],
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
    _for_npu(checkpoint, revision, npu_request, socs, dry_run=options["dry_run"], as_json=options["as_json"])


def _for_npu(
    checkpoint: str, revision: str | None, request: NpuRequest, socs: str | None, *, dry_run: bool, as_json: bool
) -> None:
    from ..export.npu_request import plan_npu
    from ..hardware.chips import chips

    wanted = chips(socs) if socs is not None else []
    plan = plan_npu(_open(checkpoint, revision), request)
    result = _dry_run(plan, wanted) if dry_run else _export_npu(plan, wanted)
    for note in plan.notes:
        say(f"note: {note}")
    click.echo(json.dumps(result, indent=2) if as_json else _text(plan, result))


def _open(checkpoint: str, revision: str | None) -> Checkpoint:
    return Checkpoint.open(checkpoint, revision=revision, progress=say)


def _out_of_place(flag: str, target: str) -> str:
    if target == "cpu":
        return f"{flag} is for --target qnn: add it, or leave out {flag}"
    hint = "; --weight-budget bounds the parts" if flag == "--budget" else ""
    return f"{flag} is for --target cpu, which --target qnn excludes: leave out one of the two{hint}"


def _dry_run(plan: NpuPlan, wanted: list[Chip]) -> dict[str, Any]:
    return {"dry_run": True, **plan.to_dict(), "compile_command": _compile_command(plan.output, wanted)}


def _export_npu(plan: NpuPlan, wanted: list[Chip]) -> dict[str, Any]:
    """Export, and compile for the chips ``wanted``."""
    from ..export.npu_request import run_npu_export

    if wanted:
        _require_compiler(plan)
    end_like_an_interrupt()
    with step_progress("Exporting", plan.steps) as on_step:
        exported = {**plan.to_dict(), **run_npu_export(plan, on_step)}
    if not wanted:
        return {**exported, "compile_command": _compile_command(plan.output, wanted)}
    from ..artifact.npu_compiled import describe
    from ..mobile_bridge.qnn.compile import CompileOptions, compile_export

    again = _compile_command(plan.output, wanted)
    click.echo(f"wrote {plan.output}; compiling, which `{again}` goes on with if it is interrupted", err=True)
    records = compile_export(plan.output, CompileOptions(wanted), say)
    return {**exported, "compiled": [describe(record) for record in records]}


def _require_compiler(plan: NpuPlan) -> None:
    """NpuUnavailable before the export's work, not behind it, where nothing can compile."""
    from ..hardware.memory import available_memory_bytes
    from ..runtime.npu.provider import device

    device()
    available = available_memory_bytes()
    if available is not None and plan.compile_memory > available:
        click.echo(
            f"note: compiling will take about {byte_size(plan.compile_memory)} of memory, {byte_size(available)} "
            "are free; --memory-budget makes smaller parts",
            err=True,
        )


def _compile_command(output: Path, wanted: list[Chip]) -> str:
    import shlex

    from ..hardware.chips import DEFAULT_CHIP

    names = ",".join(chip.name for chip in wanted) or DEFAULT_CHIP
    return f"lfm-onnx compile {shlex.quote(str(output))} --soc {names}"


def _text(plan: NpuPlan, result: dict[str, Any]) -> str:
    from .npu_plan_console import npu_plan_line, npu_plan_table

    verb = "would write" if result.get("dry_run") else "wrote"
    lines = [f"{verb} {npu_plan_line(plan)}", *npu_plan_table(plan)]
    if "seconds" in result:
        lines.append(f"{byte_size(result['bytes'])} in {result['seconds']:.1f} s")
    if "compiled" in result:
        folder, compiled = plan.output / "compiled", result["compiled"]
        names = ", ".join(dict.fromkeys(record["soc"] for record in compiled))
        size, seconds = sum(r["bytes"] for r in compiled), sum(r["seconds"] for r in compiled)
        lines.append(f"compiled for {names} in {folder}: {byte_size(size)} in {seconds:.1f} s")
    else:
        lines.append(f"next: {result['compile_command']}    (compile --list-socs: the chips)")
    return "\n".join(lines)
