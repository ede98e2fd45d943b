"""What was exported, or would be, on the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..export import Exported, ExportPlan
from ..reporting.byte_size import byte_size
from .output import print_json, print_line
from .progress import say


def print_exported(exported: Exported, *, as_json: bool) -> None:
    """To stdout."""
    _print(exported.plan, exported.to_dict(), "wrote", as_json=as_json)


def print_plan(plan: ExportPlan, output: Path, *, as_json: bool) -> None:
    """What a dry run says, to stdout; its notes to stderr, as those of an export."""
    for note in plan.notes:
        say(f"note: {note}")
    _print(plan, {"dry_run": True, "output": str(output), **plan.to_dict()}, "would write", as_json=as_json)


def _print(plan: ExportPlan, result: dict[str, Any], verb: str, *, as_json: bool) -> None:
    if as_json:
        print_json(result, indent=2)
    else:
        print_line(_text(plan, result, verb))


def _text(plan: ExportPlan, result: dict[str, Any], verb: str) -> str:
    state = sum(result["state_bytes"].values())
    lines = [
        f"{verb} {result['output']}: {result['precision']}, "
        f"{result['ops']} ops, {byte_size(result['data_bytes'])} of weights in {len(result['data_files'])} file(s)",
        f"context {result['context_length']} tokens, {byte_size(state)} of state at that length",
        *_quantization_lines(plan),
    ]
    if "seconds" in result:
        lines.append(
            f"{result['parameters'] / 1e6:.1f} M parameters in {result['seconds']:.1f} s "
            f"({result['seconds_per_gb']:.2f} s per GB written)"
        )
    return "\n".join(lines)


def _quantization_lines(plan: ExportPlan) -> list[str]:
    quantization, chosen = plan.quantization, plan.chosen
    if quantization is None:
        return []
    text = quantization.recipe.calibration
    calibrated = "not calibrated" if text is None else f"calibrated on up to {text.tokens} tokens"
    lines = [f"method {quantization.recipe.method}, {calibrated}"]
    if chosen is None:
        return lines
    if chosen.measured is not None:
        measured = chosen.measured
        lines.append(
            f"KLD {measured.kld:.3g} nats (± {measured.standard_error:.1g}) on {measured.tokens} held-out tokens"
        )
    for group in quantization.groups:
        fmt = quantization.recipe.formats[group.name]
        effect = chosen.effect(group.name)
        cost = "" if effect is None else f"  {effect:9.2e} nats"
        lines.append(f"  {group.name:50} {fmt.bits} bits, blocks of {fmt.block_size:3}{cost}")
    return lines
