"""What an export for an NPU holds and costs: its parts and their graphs, bytes per decoded token, state by context."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ...artifact.artifact import Artifact
from ...artifact.npu_compiled import BUILDS, compiled_socs
from ...artifact.npu_manifest import NpuManifest
from ...artifact.npu_parts import PHASES, NpuGraph, NpuPart


@dataclass(frozen=True)
class PhaseGraphs:
    """The graphs of one phase of a part, one for each context length: alike but for the size of the cache."""

    phase: str
    tokens: int
    files: tuple[str, ...]
    nodes: int
    op_types: dict[str, int]
    weight_bytes: int


@dataclass(frozen=True)
class PartInspection:
    """layers: first and the one behind the last. file_bytes: of the weights' file, which both phases read."""

    name: str
    layers: tuple[int, int]
    head: bool
    file_bytes: int
    token_bytes: int
    graphs: tuple[PhaseGraphs, ...]


@dataclass(frozen=True)
class NpuInspection:
    """All of it. ``state_bytes`` maps a context length in tokens to the bytes of KV cache and conv states.

    precision: dtypes by what they are of. compiled: chips for which binaries are there, by build.
    """

    folder: str
    variant: str
    model_type: str
    context_lengths: tuple[int, ...]
    chunk: int
    parameters: int
    bytes_on_disk: int
    touched_bytes_per_token: int
    precision: dict[str, str]
    parts: tuple[PartInspection, ...]
    operators: dict[str, int]
    embedding_bytes: int
    state_bytes: dict[int, int]
    compiled: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the command line prints it."""
        return asdict(self)


def inspect_npu(artifact: Artifact) -> NpuInspection:
    """Read the manifests (neither graphs nor weights) and add up. Raises ArtifactError."""
    manifest = NpuManifest.read(artifact)
    table = manifest.embedding
    operators: Counter[str] = Counter()
    for _, graph in manifest.graphs():
        operators.update(graph.op_types)
    return NpuInspection(
        folder=str(artifact.folder),
        variant=artifact.variant,
        model_type=artifact.config.model_type,
        context_lengths=manifest.context_lengths,
        chunk=manifest.chunk,
        parameters=artifact.manifest.model.parameters,
        bytes_on_disk=sum(file.bytes for file in artifact.model_files),
        touched_bytes_per_token=sum(part.token_bytes for part in manifest.parts) + table.row_bytes,
        precision=dict(manifest.precision),
        parts=tuple(_part(part, manifest.context_lengths) for part in manifest.parts),
        operators=dict(sorted(operators.items())),
        embedding_bytes=table.rows * table.row_bytes,
        state_bytes={length: _state_bytes(manifest, length) for length in manifest.context_lengths},
        compiled={build: socs for build in BUILDS if (socs := compiled_socs(artifact, build))},
    )


def _part(part: NpuPart, lengths: tuple[int, ...]) -> PartInspection:
    graphs = []
    for phase in PHASES:
        found: list[NpuGraph] = [part.graph(phase, length) for length in lengths]
        first = found[0]
        files, weight_bytes = tuple(graph.file for graph in found), part.weight_bytes[phase]
        graphs.append(PhaseGraphs(phase, first.tokens, files, first.nodes, dict(first.op_types), weight_bytes))
    return PartInspection(
        part.name, (part.first_layer, part.last_layer), part.head, part.file_bytes, part.token_bytes, tuple(graphs)
    )


def _state_bytes(manifest: NpuManifest, length: int) -> int:
    total = 0
    for state in manifest.states:
        ports = manifest.parts[state.part].graph("decode", length).inputs
        total += sum(math.prod(port.shape) * port.dtype.itemsize for port in ports if port.name == state.input)
    return total
