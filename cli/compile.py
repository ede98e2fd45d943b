"""The command `lfm-onnx compile`: context binaries of an NPU export, for the chips that are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..reporting.byte_size import byte_size
from .finite_float import FiniteFloat
from .progress import say

if TYPE_CHECKING:
    from ..mobile_bridge.qnn.compile_plan import PartToCompile


@click.command("compile")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--soc", "socs", metavar="NAME[,NAME…]", help="Chips, such as sm8750,sm8650; --list-socs shows them.")
@click.option(
    "--build",
    "builds",
    type=click.Choice(["device", "emulator"]),
    multiple=True,
    help="device (default): prefill and decode in one binary. emulator: one each, which this machine can load.",
)
@click.option("--part", "parts", metavar="NAME", multiple=True, help="Compile this part alone; may be repeated.")
@click.option(
    "--memory", "memory_gb", type=FiniteFloat(0, 1e9), metavar="GB", help="Memory that a part may take; what is free."
)
@click.option("--force", is_flag=True, help="Compile parts anew that are done already.")
@click.option("--dry-run", is_flag=True, help="Print the plan and compile nothing.")
@click.option("--list-socs", is_flag=True, help="Print the chips that are known and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compile_command(
    folder: Path,
    socs: str | None,
    builds: tuple[str, ...],
    parts: tuple[str, ...],
    memory_gb: float | None,
    force: bool,
    dry_run: bool,
    list_socs: bool,
    as_json: bool,
) -> None:
    """Compile the NPU export in DIR to context binaries; what was compiled before is not compiled again."""
    from ..artifact.artifact import Artifact
    from ..artifact.npu_compiled import describe
    from ..artifact.npu_manifest import NpuManifest
    from ..hardware.chips import CHIPS, DEFAULT_CHIP, chips
    from ..mobile_bridge.qnn.compile import CompileOptions, compile_export
    from ..mobile_bridge.qnn.compile_plan import plan_compile

    if list_socs:
        for item in CHIPS:
            click.echo(f"{item.name:<10} {item.title:<28} v{item.htp_arch}  soc_model {item.soc_model}")
        return
    chosen = chips(socs or DEFAULT_CHIP)
    wanted = builds or ("device",)
    if dry_run:
        artifact = Artifact.open(folder, "qnn")
        plan = plan_compile(artifact, NpuManifest.read(artifact), chosen, wanted)
        plan = [item for item in plan if not parts or item.part in parts]
        if as_json:
            click.echo(json.dumps({"parts": [item.to_dict() for item in plan]}))
        else:
            _print_plan(plan)
        return
    options = CompileOptions(chosen, wanted, round(memory_gb * 1e9) if memory_gb else None, force, list(parts) or None)
    records = compile_export(folder, options, say)
    if as_json:
        click.echo(json.dumps({"parts": [describe(record) for record in records]}))
        return
    seconds, size = sum(r.seconds for r in records), sum(sum(r.files.values()) for r in records)
    click.echo(f"{len(records)} parts, {byte_size(size)} in {folder / 'compiled'}, {seconds:.0f} s of compiling")


def _print_plan(plan: Sequence[PartToCompile]) -> None:
    from rich.console import Console
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
    Console(highlight=False).print(table)
    left = [item for item in plan if not item.done]
    click.echo(f"{len(left)} to compile, about {sum(item.expected_seconds for item in left) / 60:.0f} minutes")
