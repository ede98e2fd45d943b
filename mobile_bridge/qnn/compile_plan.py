"""What compiling an export will take: parts, bytes, and the memory and time to expect of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...artifact import Artifact
from ...errors import InputError
from ...npu_chips import Chip
from ...runtime.npu.compiled import BUILDS, PartRecord, part_folder, source_digest
from ...runtime.npu.manifest import NpuManifest, Part
from ...runtime.npu.provider import Versions

# Measured at hidden size 2048 on two cores: memory while compiling is 4.5 to 5 times a graph's weights (one graph at
# a time), and 20 to 30 MB of int8 weights take a second (MoE layers the longest).
MEMORY_PER_WEIGHT_BYTE = 5.0
_BASE_MEMORY = 100e6
_BYTES_PER_SECOND = 20e6
_BASE_SECONDS = 2.0
# One graph's weights; above it the compiler fails with code 1002.
LARGEST_GRAPH = 3_500_000_000


@dataclass(frozen=True)
class PlannedPart:
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
        """Plain data, as ``--dry-run --json`` prints it."""
        return asdict(self)


def plan_compile(
    artifact: Artifact,
    manifest: NpuManifest,
    chips: Sequence[Chip],
    builds: Sequence[str] = ("device",),
    *,
    here: Versions | None = None,
) -> list[PlannedPart]:
    """Every part for every chip and build, in the order they are compiled. Raises InputError for an unknown build."""
    unknown = [build for build in builds if build not in BUILDS]
    if unknown:
        raise InputError(f"unknown build {unknown[0]!r}: expected {' or '.join(BUILDS)}")
    return [
        _planned(artifact, part, chip, build, here) for chip in chips for build in builds for part in manifest.parts
    ]


def available_memory_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    value = lines.get("MemAvailable", "").split()
    return int(value[0]) * 1024 if value else None


def _planned(artifact: Artifact, part: Part, chip: Chip, build: str, here: Versions | None) -> PlannedPart:
    # As compiled: the file holds what both graphs read, and scales and zero points in wider types.
    weights = part.largest_graph_bytes
    return PlannedPart(
        part=part.name,
        soc=chip.name,
        build=build,
        layers=(part.first_layer, part.last_layer),
        head=part.head,
        graphs=tuple(graph.file for graph in part.graphs),
        weight_bytes=weights,
        expected_memory_bytes=round(_BASE_MEMORY + MEMORY_PER_WEIGHT_BYTE * weights),
        expected_seconds=round(len(part.graphs) * (_BASE_SECONDS + weights / _BYTES_PER_SECOND), 1),
        done=_done(artifact, part, chip, build, here),
    )


def _done(artifact: Artifact, part: Part, chip: Chip, build: str, here: Versions | None) -> bool:
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
