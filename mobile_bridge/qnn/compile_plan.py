"""What compiling an export will take: parts, bytes, and the memory and time to expect of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...artifact.artifact import Artifact
from ...artifact.npu_compiled import BUILDS, PartRecord, Versions, part_folder, source_digest
from ...artifact.npu_manifest import NpuManifest
from ...artifact.npu_parts import NpuPart
from ...errors import InputError
from ...hardware.chips import Chip
from ...hardware.compile_cost import GraphToCompile, compile_memory, compile_seconds


@dataclass(frozen=True)
class PartToCompile:
    """One part for one chip and build. ``done``: compiled already, from this export, by these versions."""

    part: str
    soc: str
    build: str
    layers: tuple[int, int]
    head: bool
    graphs: tuple[str, ...]
    weight_bytes: int
    expected_memory_bytes: int
    expected_seconds: float
    done: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the command line prints it."""
        return asdict(self)


def plan_compile(
    artifact: Artifact,
    manifest: NpuManifest,
    chips: Sequence[Chip],
    builds: Sequence[str] = ("device",),
    *,
    here: Versions | None = None,
) -> list[PartToCompile]:
    """Every part for every chip and build, in the order they are compiled. Raises InputError for an unknown build."""
    unknown = [build for build in builds if build not in BUILDS]
    if unknown:
        raise InputError(f"unknown build {unknown[0]!r}: expected {' or '.join(BUILDS)}")
    return [
        _planned(artifact, part, manifest.precision.get("weights", ""), chip, build, here)
        for chip in chips
        for build in builds
        for part in manifest.parts
    ]


def _planned(
    artifact: Artifact, part: NpuPart, weights: str, chip: Chip, build: str, here: Versions | None
) -> PartToCompile:
    costs = [
        GraphToCompile(
            part.compiled_bytes[graph.phase], weights, any(port.role == "expert_index" for port in graph.inputs)
        )
        for graph in part.graphs
    ]
    return PartToCompile(
        part=part.name,
        soc=chip.name,
        build=build,
        layers=(part.first_layer, part.last_layer),
        head=part.head,
        graphs=tuple(graph.file for graph in part.graphs),
        weight_bytes=part.largest_graph_bytes,
        expected_memory_bytes=compile_memory(costs, shared=build == "device"),
        expected_seconds=round(compile_seconds(costs), 1),
        done=_done(artifact, part, chip, build, here),
    )


def _done(artifact: Artifact, part: NpuPart, chip: Chip, build: str, here: Versions | None) -> bool:
    folder = part_folder(artifact, chip.name, build, part)
    record = PartRecord.read(folder)
    if record is None or record.digest != source_digest(artifact, part, list(part.graphs)):
        return False
    if here is not None and record.versions != here.to_dict():
        return False
    return all(
        (folder / Path(name).name).is_file() and (folder / Path(name).name).stat().st_size == size
        for name, size in record.files.items()
    )
