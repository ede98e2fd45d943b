"""The command `lfm-onnx compile`: context binaries of an NPU export, for the chips that are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..reporting.byte_size import byte_size
from .finite_float import FiniteFloat
from .options import artifact_argument, dry_run_option, json_option, memory_budget_option, socs_option
from .output import console, print_json, print_line
from .progress import say

if TYPE_CHECKING:
    from ..mobile_bridge.qnn.compile_plan import PartToCompile


@click.command("compile")
@artifact_argument
@socs_option
@click.option(
    "--build",
    "builds",
    type=click.Choice(["device", "emulator"]),
    multiple=True,
    help="device (default): prefill and decode in one binary. emulator: one each, which this machine can load.",
)
@click.option("--part", "parts", metavar="NAME", multiple=True, help="Compile this part alone; may be repeated.")
@memory_budget_option
@click.option("--memory", "memory_gb", type=FiniteFloat(0, 1e9), hidden=True)  # the former spelling of --memory-budget
@click.option("--force", is_flag=True, help="Compile parts anew that are done already.")
@dry_run_option
@click.option("--list-socs", is_flag=True, help="Print the chips that are known and nothing else.")
@json_option
def compile_command(
    artifact: Path,
    socs: str | None,
    builds: tuple[str, ...],
    parts: tuple[str, ...],
    memory_budget: int | None,
    memory_gb: float | None,
    force: bool,
    dry_run: bool,
    list_socs: bool,
    as_json: bool,
) -> None:
    """Compile ARTIFACT, an NPU export, to context binaries; what was compiled before is not compiled again."""
    from ..artifact.artifact import Artifact
    from ..artifact.npu_compiled import describe
    from ..artifact.npu_manifest import NpuManifest
    from ..hardware.chips import CHIPS, DEFAULT_CHIP, chips
    from ..mobile_bridge.qnn.compile import CompileOptions, compile_export
    from ..mobile_bridge.qnn.compile_plan import plan_compile

    if list_socs:
        for item in CHIPS:
            print_line(f"{item.name:<10} {item.title:<28} v{item.htp_arch}  soc_model {item.soc_model}")
        return
    chosen = chips(socs or DEFAULT_CHIP)
    target_builds = builds or ("device",)
    if dry_run:
        opened = Artifact.open(artifact, "qnn")
        plan = plan_compile(opened, NpuManifest.read(opened), chosen, target_builds)
        plan = [item for item in plan if not parts or item.part in parts]
        if as_json:
            print_json({"parts": [item.to_dict() for item in plan]})
        else:
            _print_plan(plan)
        return
    if memory_budget is None and memory_gb is not None:
        memory_budget = round(memory_gb * 1e9)
    options = CompileOptions(chosen, target_builds, memory_budget, force, list(parts) or None)
    records = compile_export(artifact, options, say)
    if as_json:
        print_json({"parts": [describe(record) for record in records]})
        return
    seconds, size = sum(r.seconds for r in records), sum(sum(r.files.values()) for r in records)
    print_line(f"{len(records)} parts, {byte_size(size)} in {artifact / 'compiled'}, {seconds:.0f} s of compiling")


def _print_plan(plan: Sequence[PartToCompile]) -> None:
    from rich.table import Table

    table = Table(title="Parts, compiled one at a time", title_justify="left")
    for heading in ("part", "chip", "build", "layers", "graphs", "weights", "memory", "time", ""):
        table.add_column(heading, justify="right" if heading in ("graphs", "weights", "memory", "time") else "left")
    for item in plan:
        layers = f"{item.layers[0]}-{item.layers[1] - 1}" if item.layers[1] > item.layers[0] else ""
        table.add_row(
            item.part,
            item.soc,
            item.build,
            " + ".join(filter(None, [layers, "head" if item.head else ""])),
            str(len(item.graphs)),
            byte_size(item.weight_bytes),
            byte_size(item.expected_memory_bytes),
            f"{item.expected_seconds:.0f} s",
            "done" if item.done else "",
        )
    console().print(table)
    left = [item for item in plan if not item.done]
    print_line(f"{len(left)} to compile, about {sum(item.expected_seconds for item in left) / 60:.0f} minutes")
