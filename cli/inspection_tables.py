"""An inspection as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from ..reporting.byte_size import byte_size
from ..runtime.inspection import Inspection
from ..runtime.npu.inspection import NpuInspection
from .output import console as plain_console


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Print everything that ``Inspection`` holds, in the order a reader asks for it."""
    console = console or plain_console()
    console.print(
        f"{inspection.folder}: {inspection.model_type}, {inspection.variant}, ops {inspection.ops_profile}, "
        f"context {inspection.context_length}",
        markup=False,
    )
    console.print(
        f"{inspection.parameters:,} parameters, {byte_size(inspection.bytes_on_disk)} on disk, "
        f"{byte_size(inspection.touched_bytes_per_token)} read per decoded token"
    )
    weights = Table()
    weights.add_column("weights", no_wrap=True)
    weights.add_column("precision")
    for heading in ("tensors", "elements", "bytes", "per token"):
        weights.add_column(heading, justify="right")
    for item in inspection.tensor_classes:
        weights.add_row(
            item.name, ", ".join(item.dtypes), str(item.tensors), f"{item.elements:,}", byte_size(item.bytes),
            byte_size(item.touched_bytes),
        )  # fmt: skip
    console.print(weights)
    console.print(_state_table(inspection.state_bytes))
    operators = Table("operator", "domain")
    operators.add_column("count", justify="right")
    for operator in inspection.operators:
        operators.add_row(operator.name, operator.domain, str(operator.count))
    console.print(operators)
    for function in inspection.functions:
        body = ", ".join(f"{item.name} x{item.count}" if item.count > 1 else item.name for item in function.operators)
        name = f"{function.domain}.{function.name}"
        console.print(f"function {name}, called {function.calls} times: {body}", markup=False)
    values = Table("graph value", "type", "shape")
    for role, group in (("in", inspection.inputs), ("out", inspection.outputs)):
        for value in group:
            values.add_row(f"{role}  {value.name}", value.dtype, " x ".join(map(str, value.shape)) or "scalar")
    console.print(values)


def print_npu_inspection(inspection: NpuInspection, console: Console | None = None) -> None:
    """Print everything that ``NpuInspection`` holds but each graph's file and operators, which --json lists."""
    console = console or plain_console()
    lengths = ", ".join(map(str, inspection.context_lengths))
    console.print(
        f"{inspection.folder}: {inspection.model_type}, {inspection.variant} for the NPU, prefill in chunks of "
        f"{inspection.chunk} tokens, context {lengths}",
        soft_wrap=True,
    )
    console.print(
        f"{inspection.parameters:,} parameters, {byte_size(inspection.bytes_on_disk)} on disk, "
        f"{byte_size(inspection.touched_bytes_per_token)} read per decoded token"
    )
    console.print(", ".join(f"{name} {dtype}" for name, dtype in inspection.precision.items()), soft_wrap=True)
    parts = Table()
    for heading in ("part", "layers"):
        parts.add_column(heading, no_wrap=True)
    for heading in ("file", "a token", "prefill", "nodes", "decode", "nodes"):
        parts.add_column(heading, justify="right", no_wrap=True)
    for part in inspection.parts:
        first, end = part.layers
        layers = " + ".join(filter(None, [f"{first}-{end - 1}" if end > first else "", "head" if part.head else ""]))
        graphs = [cell for graph in part.graphs for cell in (byte_size(graph.weight_bytes), str(graph.nodes))]
        parts.add_row(part.name, layers, byte_size(part.file_bytes), byte_size(part.token_bytes), *graphs)
    parts.add_row("embedding", "", byte_size(inspection.embedding_bytes))
    console.print(parts)
    console.print(_state_table(inspection.state_bytes))
    operators = Table("operator")
    operators.add_column("in all graphs", justify="right")
    for name, count in inspection.operators.items():
        operators.add_row(name, str(count))
    console.print(operators)
    for build, socs in inspection.compiled.items():
        console.print(f"compiled ({build}) for {', '.join(socs)}")


def _state_table(state_bytes: Mapping[int, int]) -> Table:
    table = Table("context, tokens")
    table.add_column("state", justify="right")
    for length, size in state_bytes.items():
        table.add_row(f"{length:,}", byte_size(size))
    return table
