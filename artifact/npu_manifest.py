"""npu_manifest.json: the parts of a model, its embedding table, and the states between calls.

Export builds these objects and writes them; the runtime and the compiler read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError
from ..strict_json import JsonObject
from .artifact import Artifact
from .npu_parts import PHASES, POSITIVE, NpuGraph, NpuPart

NPU_MANIFEST_NAME = "npu/npu_manifest.json"
NPU_MANIFEST_VERSION = 1
TARGET = "qnn"
"""What the manifest is for, and the name of the artifact's variant."""
_UPDATES = ("replace", "append")
_ADVICE = 'export the checkpoint with `target="qnn"` again'


@dataclass(frozen=True)
class State:
    """What one call leaves to the next: replaced as a whole, or grown along ``axis`` by the new columns.

    kind: ``conv``, ``key`` or ``value``. input, output: the ports' names in every graph of the part.
    """

    layer: int
    part: int
    kind: str
    input: str
    output: str
    append: bool
    axis: int = 0

    @classmethod
    def from_json(cls, entry: JsonObject) -> State:
        """The state that an entry of the NPU's manifest describes; raises the error of ``entry``."""
        return cls(
            layer=entry.integer("layer", 0),
            part=entry.integer("part", 0),
            kind=entry.text("kind"),
            input=entry.text("input"),
            output=entry.text("output"),
            append=entry.text("update", _UPDATES) == "append",
            axis=entry.integer("axis", 0, default=0),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file; with an ``axis`` only where the state grows."""
        return {
            "layer": self.layer,
            "part": self.part,
            "kind": self.kind,
            "input": self.input,
            "output": self.output,
            "update": "append" if self.append else "replace",
            **({"axis": self.axis} if self.append else {}),
        }


@dataclass(frozen=True)
class Embedding:
    """The embedding table [rows, width] as stored: already in the quantization of part 0's hidden states."""

    file: str
    dtype: np.dtype[Any]
    rows: int
    width: int
    offset: int = 0
    scale: float | None = None
    zero_point: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's row."""
        return self.width * self.dtype.itemsize

    @classmethod
    def from_json(cls, entry: JsonObject) -> Embedding:
        """The table that the NPU's manifest describes; raises the error of ``entry``. No ``scale``: not quantized."""
        shape = entry.integers("shape", 1)
        if len(shape) != 2:
            raise entry.refuse("shape", "[rows, width]")
        quantized = "scale" in entry
        return cls(
            file=entry.path_inside("file"),
            dtype=np.dtype(entry.text("dtype", ("uint16", "float32"))),
            rows=shape[0],
            width=shape[1],
            offset=entry.integer("offset", 0),
            scale=entry.number("scale", *POSITIVE) if quantized else None,
            zero_point=entry.integer("zero_point") if quantized else 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file; without scale and zero point where it is not quantized."""
        return {
            "file": self.file,
            "dtype": self.dtype.name,
            "shape": [self.rows, self.width],
            "offset": self.offset,
            "row_bytes": self.row_bytes,
            **({} if self.scale is None else {"scale": self.scale, "zero_point": self.zero_point}),
        }


@dataclass(frozen=True)
class Calibration:
    """Of a quantized export: the file of measured ranges, the method of rounding, and the headroom of activations."""

    ranges: str
    method: str
    headroom: float


@dataclass(frozen=True)
class NpuManifest:
    """The export of a model for an NPU. precision: dtypes of weights, activations and KV cache, forms of the experts.

    chunk: tokens of a prefill call. calibration None: float graphs.
    """

    folder: Path
    opset: int
    precision: Mapping[str, str]
    chunk: int
    context_lengths: tuple[int, ...]
    embedding: Embedding
    rotary_theta: float
    head_dim: int
    parts: tuple[NpuPart, ...]
    states: tuple[State, ...]
    calibration: Calibration | None = None

    @property
    def embedding_path(self) -> Path:
        """The file of the embedding table."""
        return self.folder / self.embedding.file

    def graphs(self) -> Iterator[tuple[NpuPart, NpuGraph]]:
        """Every graph with its part."""
        for part in self.parts:
            for graph in part.graphs:
                yield part, graph

    def files(self) -> list[str]:
        """Files of the export, relative to the folder, the manifest first."""
        ranges = [] if self.calibration is None else [self.calibration.ranges]
        parts = [name for part in self.parts for name in (*(graph.file for graph in part.graphs), part.weights_file)]
        return [NPU_MANIFEST_NAME, self.embedding.file, *ranges, *parts]

    @classmethod
    def read(cls, artifact: Artifact) -> NpuManifest:
        """The manifest of an artifact exported with ``--target qnn``. Raises ArtifactError."""
        data = JsonObject.read(artifact.model_path, ArtifactError, advice=_ADVICE)
        return cls.from_json(data, artifact.folder)

    @classmethod
    def from_json(cls, data: JsonObject, folder: Path) -> NpuManifest:
        """The manifest that a parsed file of an artifact's ``folder`` holds, with its parts, graphs and files whole."""
        if data.integer("npu_manifest_version") != NPU_MANIFEST_VERSION:
            raise data.refuse("npu_manifest_version", f"{NPU_MANIFEST_VERSION}, which this lfm-onnx reads")
        rotary = data.object("rotary")
        manifest = cls(
            folder=folder,
            opset=data.integer("opset", 1),
            precision=data.object("precision").all_texts(),
            chunk=data.integer("chunk", 1),
            context_lengths=tuple(sorted(data.integers("context_lengths", 1))),
            embedding=Embedding.from_json(data.object("embedding")),
            rotary_theta=rotary.number("theta", *POSITIVE),
            head_dim=rotary.integer("head_dim", 1),
            parts=tuple(NpuPart.from_json(entry) for entry in data.objects("parts")),
            states=tuple(State.from_json(entry) for entry in data.objects("states")),
            calibration=_calibration(data) if "ranges" in data else None,
        )
        manifest._check(data)
        return manifest

    def _check(self, data: JsonObject) -> None:
        if not self.parts or not self.context_lengths:
            raise data.wrong("no parts or no context lengths")
        for part in self.parts:
            for length in self.context_lengths:
                for phase in PHASES:
                    part.graph(phase, length)
        for state in self.states:
            if state.part >= len(self.parts):
                raise data.wrong(f"a state of layer {state.layer} is of part {state.part}, which is not there")
        needed = self.embedding.offset + self.embedding.rows * self.embedding.row_bytes
        path = self.embedding_path
        if not path.is_file() or path.stat().st_size < needed:
            raise data.wrong(f"the embedding needs {needed} bytes in {path.name}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file."""
        return {
            "npu_manifest_version": NPU_MANIFEST_VERSION,
            "target": TARGET,
            "opset": self.opset,
            "precision": dict(self.precision),
            "chunk": self.chunk,
            "context_lengths": list(self.context_lengths),
            "embedding": self.embedding.to_dict(),
            "rotary": {"theta": self.rotary_theta, "head_dim": self.head_dim},
            "parts": [part.to_dict() for part in self.parts],
            "states": [state.to_dict() for state in self.states],
            **({} if self.calibration is None else asdict(self.calibration)),
        }

    def write(self) -> None:
        """Write npu_manifest.json below ``folder``."""
        path = self.folder / NPU_MANIFEST_NAME
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def is_npu_artifact(artifact: Artifact) -> bool:
    """Whether the opened variant is an export for an NPU."""
    return artifact.model_path.suffix == ".json"


def _calibration(data: JsonObject) -> Calibration:
    return Calibration(data.path_inside("ranges"), data.text("method"), data.number("headroom", *POSITIVE))
