"""A check's report on the console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..mobile_bridge.check.result import CheckReport
from .output import console as plain_console

_MOST_REFUSED = 20


def print_check(report: CheckReport, console: Console | None = None) -> None:
    """Requirements, graphs, refused nodes with reasons, notes, verdict."""
    console = console or plain_console()
    for name, value in {"artifact": report.artifact, **report.environment}.items():
        console.print(f"{name + ':':<12} {value}", markup=False, soft_wrap=True)
    table = Table("graph", "nodes", "weights", "integer products", "")
    for graph in report.graphs:
        weights = "" if not graph.weight_bytes else f"{(graph.weight_bytes_on_target or 0) / graph.weight_bytes:.1%}"
        products = ""
        if graph.integer_matmuls is not None:
            products = f"{len(graph.integer_matmuls)} of {len(graph.integer_matmuls) + len(graph.float_matmuls or ())}"
        parts = "" if graph.partitions is None else f"{graph.partitions} partitions"
        table.add_row(graph.graph, f"{graph.nodes_on_target} of {graph.nodes}", weights, products, graph.error or parts)
    if report.graphs:
        console.print(table)
    refused = [(graph.graph, node) for graph in report.graphs for node in graph.refused]
    for name, node in refused[:_MOST_REFUSED]:
        console.print(f"{name}: {node.op_type} {node.name}: {node.reason}", markup=False, soft_wrap=True)
    if len(refused) > _MOST_REFUSED:
        console.print(f"… and {len(refused) - _MOST_REFUSED} more nodes (--json lists them)")
    for requirement in report.requirements:
        mark = "passed" if requirement.passed else "missed"
        console.print(f"{mark:<8} {requirement.name}: {requirement.detail}", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)
    console.print(report.verdict, markup=False)
