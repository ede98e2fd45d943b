"""The plan of an NPU export on the console: its parts, and what compiling them takes."""

from __future__ import annotations

from ..export.npu_request import NpuPlan
from ..reporting.byte_size import byte_size


def npu_plan_line(plan: NpuPlan) -> str:
    """The plan in one line: folder, precision, parts."""
    lengths = ", ".join(map(str, plan.options.context_lengths))
    return (
        f"{plan.output}: {plan.precision} for the NPU in {len(plan.parts)} part(s), prefill in chunks of "
        f"{plan.options.chunk} tokens, context {lengths}"
    )


def npu_plan_table(plan: NpuPlan) -> list[str]:
    """Lines of text: the parts, and what they add up to."""
    row = "{:6} {:14} {:>10} {:>10} {:>10} {:>15} {:>13}".format
    lines = [row("part", "layers", "prefill", "decode", "a token", "compile memory", "compile time")]
    for part in plan.parts:
        layers = f"{part.first_layer}-{part.last_layer - 1}" if part.last_layer > part.first_layer else ""
        lines.append(
            row(
                f"part{part.index}",
                " + ".join(filter(None, [layers, "head" if part.head else ""])),
                *(byte_size(size) for size in (part.weight_bytes["prefill"], part.weight_bytes["decode"])),
                byte_size(part.token_bytes),
                byte_size(part.compile_memory),
                f"{part.compile_seconds:.0f} s",
            )
        )
    return [
        *lines,
        f"{byte_size(plan.token_bytes)} of weights read a token, {byte_size(plan.binary_bytes)} of binaries for one "
        f"chip; compiling is expected to take {byte_size(plan.compile_memory)} of memory and "
        f"{_duration(plan.compile_seconds)} on two cores",
    ]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
