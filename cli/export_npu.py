"""`lfm-onnx export --target qnn`: exporting is export/'s work, compiling, which may follow, that of mobile_bridge/."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..checkpoint.checkpoint import Checkpoint
from ..export.npu_request import NpuPlan, NpuRequest, plan_npu, run_npu_export
from ..hardware.chips import DEFAULT_CHIP, Chip
from ..reporting.byte_size import byte_size
from .npu_plan_console import npu_plan_line, npu_plan_table
from .output import print_json, print_line
from .progress import say, step_progress


def export_for_npu(
    source: Checkpoint, request: NpuRequest, target_chips: list[Chip], *, dry_run: bool, as_json: bool
) -> None:
    """Export, compile for the chips ``target_chips``, and print what came of it, or would."""
    plan = plan_npu(source, request)
    result = _dry_run(plan, target_chips) if dry_run else _export_npu(plan, target_chips)
    for note in plan.notes:
        say(f"note: {note}")
    if as_json:
        print_json(result, indent=2)
    else:
        print_line(_text(plan, result))


def _dry_run(plan: NpuPlan, target_chips: list[Chip]) -> dict[str, Any]:
    return {"dry_run": True, **plan.to_dict(), "compile_command": _compile_command(plan.output, target_chips)}


def _export_npu(plan: NpuPlan, target_chips: list[Chip]) -> dict[str, Any]:
    """Export, and compile for the chips ``target_chips``."""
    if target_chips:
        _require_compiler(plan)
    with step_progress("Exporting", plan.steps) as on_step:
        exported = {**plan.to_dict(), **run_npu_export(plan, on_step)}
    if not target_chips:
        return {**exported, "compile_command": _compile_command(plan.output, target_chips)}
    from ..artifact.npu_compiled import describe
    from ..mobile_bridge.qnn.compile import CompileOptions, compile_export

    again = _compile_command(plan.output, target_chips)
    say(f"wrote {plan.output}; compiling, which `{again}` goes on with if it is interrupted")
    records = compile_export(plan.output, CompileOptions(target_chips), say)
    return {**exported, "compiled": [describe(record) for record in records]}


def _require_compiler(plan: NpuPlan) -> None:
    """NpuUnavailable before the export's work, not behind it, where nothing can compile."""
    from ..hardware.memory import available_memory_bytes
    from ..runtime.npu.provider import device

    device()
    available = available_memory_bytes()
    if available is not None and plan.compile_memory > available:
        say(
            f"note: compiling will take about {byte_size(plan.compile_memory)} of memory, {byte_size(available)} "
            "are free; --memory-budget makes smaller parts"
        )


def _compile_command(output: Path, target_chips: list[Chip]) -> str:
    names = ",".join(chip.name for chip in target_chips) or DEFAULT_CHIP
    return f"lfm-onnx compile {shlex.quote(str(output))} --soc {names}"


def _text(plan: NpuPlan, result: dict[str, Any]) -> str:
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
