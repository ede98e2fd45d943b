"""What a check found, whatever the target: the share of a graph that the target takes, and why not the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import LfmOnnxError


class CheckError(LfmOnnxError):
    """A check could not be made."""


@dataclass(frozen=True)
class RefusedNode:
    """A node that the target does not take, with its reason."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class GraphCheck:
    """One graph on one target. nodes: those that compute, Quantize and Dequantize are not counted.

    weight_bytes: of all weights; on_target: of those that nodes on the target read; None where it was not counted.
    integer_matmuls, float_matmuls: names of matrix products by the type that the target computes them in; None where
    the target does not say. error: why the graph did not compile or load, "" otherwise.
    """

    graph: str
    nodes: int
    nodes_on_target: int
    weight_bytes: int | None = None
    weight_bytes_on_target: int | None = None
    refused: tuple[RefusedNode, ...] = ()
    integer_matmuls: tuple[str, ...] | None = None
    float_matmuls: tuple[str, ...] | None = None
    partitions: int | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def complete(self) -> bool:
        """Whether the target takes every node."""
        return not self.error and self.nodes_on_target == self.nodes

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the shares."""
        data = asdict(self)
        data["node_share"] = self.nodes_on_target / self.nodes if self.nodes else 0.0
        if self.weight_bytes:
            data["weight_share"] = (self.weight_bytes_on_target or 0) / self.weight_bytes
        return data


@dataclass(frozen=True)
class Requirement:
    """One thing that the check asks for."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class CheckReport:
    """The whole check. notes: plain statements that a reader must know. figures: measured numbers by name."""

    target: str
    artifact: str
    environment: dict[str, str]
    graphs: tuple[GraphCheck, ...]
    requirements: tuple[Requirement, ...]
    notes: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every requirement is met."""
        return all(item.passed for item in self.requirements)

    @property
    def verdict(self) -> str:
        """One line."""
        missed = [item.name for item in self.requirements if not item.passed]
        if not missed:
            return f"{self.target}: {len(self.requirements)} of {len(self.requirements)} requirements met"
        return f"{self.target}: {len(missed)} of {len(self.requirements)} requirements missed ({', '.join(missed)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "target": self.target,
            "artifact": self.artifact,
            "passed": self.passed,
            "verdict": self.verdict,
            "environment": self.environment,
            "requirements": [asdict(item) for item in self.requirements],
            "graphs": [item.to_dict() for item in self.graphs],
            "notes": list(self.notes),
            "figures": self.figures,
        }


def share_requirement(graphs: tuple[GraphCheck, ...], where: str) -> Requirement:
    """That ``where`` takes every node of every graph."""
    nodes, taken = sum(g.nodes for g in graphs), sum(g.nodes_on_target for g in graphs)
    failed = next((f"{g.graph}: {g.error}" for g in graphs if g.error), "")
    detail = f"{taken} of {nodes} nodes" + (f"; {failed}" if failed else "")
    return Requirement(f"every node {where}", all(g.complete for g in graphs), detail)
