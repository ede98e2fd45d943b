"""An inspection as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..reporting.byte_size import byte_size
from ..runtime.inspection import Inspection


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Print everything that ``Inspection`` holds, in the order a reader asks for it."""
    console = console or Console(highlight=False)
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
    state = Table("context, tokens")
    state.add_column("state", justify="right")
    for length, size in inspection.state_bytes.items():
        state.add_row(f"{length:,}", byte_size(size))
    console.print(state)
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
