"""Compiled folders: context binaries of a chip, the record of what made them, and when they may be loaded."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..strict_json import JsonObject
from .artifact import Artifact
from .npu_manifest import NpuManifest
from .npu_parts import NpuGraph, NpuPart

COMPILED = "compiled"
RECORD = "compiled.json"
RECORD_VERSION = 1
BUILDS = ("device", "emulator")
"""``device``: prefill and decode share one binary with one copy of the weights. ``emulator``: a binary each."""


@dataclass(frozen=True)
class Versions:
    """What a context binary depends on: it is only valid with the same."""

    onnxruntime: str
    provider: str
    qairt: str

    def to_dict(self) -> dict[str, str]:
        """Plain data, as compiled.json holds it."""
        return asdict(self)


@dataclass(frozen=True)
class PartRecord:
    """What compiling one part came to. graphs: source .onnx (relative to the artifact) -> EPContext .onnx beside."""

    part: str
    soc: str
    build: str
    digest: str
    versions: dict[str, str]
    graphs: dict[str, str]
    files: dict[str, int]
    weight_bytes: int
    seconds: float
    peak_rss_bytes: int
    record_version: int = RECORD_VERSION
    options: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write compiled.json into ``folder``."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> PartRecord | None:
        """The record of ``folder``, None where there is none. ArtifactError for one that cannot be read."""
        path = folder / RECORD
        if not path.is_file():
            return None
        data = JsonObject.read(path, ArtifactError, advice=f"delete {folder} and run `lfm-onnx compile` again")
        if data.integer("record_version") != RECORD_VERSION:
            raise data.refuse("record_version", f"{RECORD_VERSION}, which this lfm-onnx reads")
        return cls(
            part=data.text("part"),
            soc=data.text("soc"),
            build=data.text("build", BUILDS),
            digest=data.text("digest"),
            versions=data.object("versions").all_texts(),
            graphs=data.object("graphs").all_texts(),
            files=data.object("files").all_integers(0),
            weight_bytes=data.integer("weight_bytes", 0),
            seconds=data.number("seconds", 0, sys.float_info.max),
            peak_rss_bytes=data.integer("peak_rss_bytes", 0),
            options=data.object("options").all_texts(),
        )


def part_folder(artifact: Artifact, soc: str, build: str, part: NpuPart) -> Path:
    """Where a compiled part is."""
    return artifact.folder / COMPILED / soc / build / part.name


def source_digest(artifact: Artifact, part: NpuPart, graphs: list[NpuGraph]) -> str:
    """SHA-256 over the digests of the part's graphs and weights: changes when the export does."""
    graph_files = {graph.file for graph in graphs}
    folders = {graph.file.rpartition("/")[0] + "/" for graph in graphs}
    digests = sorted(
        (file.path, file.sha256)
        for file in artifact.files
        if file.path in graph_files
        or (not file.path.endswith(".onnx") and any(file.path.startswith(folder) for folder in folders))
    )
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def compiled_socs(artifact: Artifact, build: str) -> list[str]:
    """Chips for which something is compiled."""
    root = artifact.folder / COMPILED
    return sorted(item.name for item in root.iterdir() if (item / build).is_dir()) if root.is_dir() else []


def compiled_graphs(
    artifact: Artifact, manifest: NpuManifest, soc: str, build: str, here: Versions
) -> Mapping[str, Path]:
    """EPContext models by source graph, for all parts; empty where nothing is compiled for the chip.

    Raises ArtifactError for a part that is missing, that came from another export, or that other versions compiled.
    """
    again = f"run `lfm-onnx compile {artifact.folder} --soc {soc}" + ("" if build == "device" else f" --build {build}")
    models: dict[str, Path] = {}
    missing = []
    for part in manifest.parts:
        folder = part_folder(artifact, soc, build, part)
        record = PartRecord.read(folder)
        if record is None:
            missing.append(part.name)
            continue
        require_same_versions(record, here, folder, again)
        graphs = [graph for graph in part.graphs if graph.file in record.graphs]
        if record.digest != source_digest(artifact, part, graphs):
            raise ArtifactError(f"{folder} was compiled from another export of this model; {again}`")
        for source, compiled in record.graphs.items():
            path = folder / Path(compiled).name
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; {again}`")
            models[source] = path
        for name, size in record.files.items():
            path = folder / Path(name).name
            if not path.is_file() or path.stat().st_size != size:
                raise ArtifactError(f"{path} is not the {size} bytes that were compiled; {again}`")
    if models and missing:
        raise ArtifactError(f"{soc}: {', '.join(missing)} not compiled yet; {again}` (it goes on where it stopped)")
    return models


def require_same_versions(record: PartRecord, here: Versions, folder: Path, again: str) -> None:
    """ArtifactError unless this machine has what compiled the part."""
    names = {"qairt": "QAIRT", "provider": "onnxruntime-qnn", "onnxruntime": "onnxruntime"}
    for key, title in names.items():
        theirs, ours = record.versions.get(key, "unknown"), here.to_dict()[key]
        if theirs != ours:
            raise ArtifactError(
                f"{folder} was compiled with {title} {theirs}, here is {ours}: {again}`, or install "
                f"onnxruntime-qnn=={record.versions.get('provider', '?')} and "
                f"onnxruntime=={record.versions.get('onnxruntime', '?')}"
            )


def describe(record: PartRecord) -> dict[str, Any]:
    """The record in short, for reports."""
    return {
        "part": record.part,
        "soc": record.soc,
        "build": record.build,
        "bytes": sum(record.files.values()),
        "seconds": record.seconds,
        "peak_rss_bytes": record.peak_rss_bytes,
        **record.versions,
    }
