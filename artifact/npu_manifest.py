"""npu_manifest.json as objects: parts, graphs, values with their quantization, and the states between calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import ArtifactError
from ..strict_json import parse_json
from .artifact import Artifact

NPU_MANIFEST_VERSION = 1
PHASES = ("prefill", "decode")

_DTYPES = {"uint16": np.uint16, "uint8": np.uint8, "int32": np.int32, "float32": np.float32}
_ROLES = (
    "hidden",
    "mask",
    "cos",
    "sin",
    "state_columns",
    "last_token",
    "expert_index",
    "conv_state",
    "key_cache",
    "value_cache",
    "logits",
)


@dataclass(frozen=True)
class NpuPort:
    """An input or output of a static graph. real = (q - zero_point) * scale; scale None: not quantized."""

    name: str
    role: str
    dtype: np.dtype
    shape: tuple[int, ...]
    scale: float | None
    zero_point: int
    layer: int | None


@dataclass(frozen=True)
class NpuGraph:
    """One .onnx file: ``tokens`` new tokens on top of a cache of ``context_length`` columns."""

    phase: str
    context_length: int
    tokens: int
    file: str
    inputs: tuple[NpuPort, ...]
    outputs: tuple[NpuPort, ...]


@dataclass(frozen=True)
class NpuPart:
    """Layers first to last (exclusive) that share one context; ``head``: the final norm and the LM head are here."""

    index: int
    name: str
    first_layer: int
    last_layer: int
    head: bool
    weight_bytes: dict[str, int]
    compiled_bytes: dict[str, int]
    token_bytes: int
    graphs: tuple[NpuGraph, ...]

    def graph(self, phase: str, context_length: int) -> NpuGraph:
        """The part's graph for a phase and a cache length."""
        for graph in self.graphs:
            if graph.phase == phase and graph.context_length == context_length:
                return graph
        raise ArtifactError(f"{self.name} has no {phase} graph of context length {context_length}; export again")

    @property
    def largest_graph_bytes(self) -> int:
        """Bytes of weights of its largest graph as the compiler sees them."""
        return max((self.compiled_bytes or {phase: self.weight_bytes[phase] for phase in PHASES}).values())


@dataclass(frozen=True)
class State:
    """What one call leaves to the next: replaced as a whole, or grown along ``axis`` by the new columns."""

    layer: int
    part: int
    kind: str
    input: str
    output: str
    append: bool
    axis: int


@dataclass(frozen=True)
class Embedding:
    """The embedding table [rows, width] as stored: already in the quantization of part 0's hidden states."""

    file: Path
    dtype: np.dtype
    rows: int
    width: int
    offset: int
    zero_point: int


@dataclass(frozen=True)
class NpuManifest:
    """The export of a model for an NPU."""

    folder: Path
    precision: dict[str, str]
    chunk: int
    context_lengths: tuple[int, ...]
    embedding: Embedding
    rotary_theta: float
    head_dim: int
    parts: tuple[NpuPart, ...]
    states: tuple[State, ...]

    @classmethod
    def read(cls, artifact: Artifact) -> NpuManifest:
        """The manifest of an artifact exported with ``--target qnn``. Raises ArtifactError."""
        return _Reader(artifact.folder, artifact.model_path).read()

    def graphs(self) -> Iterator[tuple[NpuPart, NpuGraph]]:
        """Every graph with its part."""
        for part in self.parts:
            for graph in part.graphs:
                yield part, graph


def is_npu_artifact(artifact: Artifact) -> bool:
    """Whether the opened variant is an export for an NPU."""
    return artifact.model_path.suffix == ".json"


class _Reader:
    """Reads and checks; every message names the manifest."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder, self.path = folder, path

    def read(self) -> NpuManifest:
        try:
            data = parse_json(self.path.read_bytes())
        except (OSError, ValueError) as error:
            raise self.wrong(str(error)) from None
        version = self.field(data, "npu_manifest_version", int)
        if version != NPU_MANIFEST_VERSION:
            raise self.wrong(f"version is {version}, this lfm-onnx reads {NPU_MANIFEST_VERSION}")
        parts = tuple(self.part(item) for item in self.field(data, "parts", list))
        lengths = tuple(sorted(self.count(n, "context_lengths") for n in self.field(data, "context_lengths", list)))
        rotary = self.field(data, "rotary", dict)
        if not parts or not lengths:
            raise self.wrong("no parts or no context lengths")
        manifest = NpuManifest(
            folder=self.folder,
            precision={key: str(value) for key, value in self.field(data, "precision", dict).items()},
            chunk=self.count(data.get("chunk"), "chunk"),
            context_lengths=lengths,
            embedding=self.embedding(self.field(data, "embedding", dict)),
            rotary_theta=self.number(rotary.get("theta"), "rotary.theta"),
            head_dim=self.count(rotary.get("head_dim"), "rotary.head_dim"),
            parts=parts,
            states=tuple(self.state(item, len(parts)) for item in self.field(data, "states", list)),
        )
        for part in parts:
            for length in lengths:
                for phase in PHASES:
                    part.graph(phase, length)
        return manifest

    def part(self, data: Any) -> NpuPart:
        layers = self.field(data, "layers", list)
        if len(layers) != 2 or not all(isinstance(item, int) and item >= 0 for item in layers):
            raise self.wrong(f"layers of a part are {layers!r:.60}, expected [first, last]")
        weights = self.sizes(self.field(data, "weight_bytes", dict), "weight_bytes")
        missing = [phase for phase in PHASES if phase not in weights]
        if missing:
            raise self.wrong(f"weight_bytes of a part lacks {missing[0]}")
        return NpuPart(
            index=self.field(data, "index", int),
            name=self.plain_name(self.field(data, "name", str)),
            first_layer=layers[0],
            last_layer=layers[1],
            head=self.field(data, "head", bool),
            weight_bytes=weights,
            compiled_bytes=self.sizes(data.get("compiled_weight_bytes") or {}, "compiled_weight_bytes"),
            token_bytes=int(data.get("token_bytes") or weights["decode"]),
            graphs=tuple(self.graph(item) for item in self.field(data, "graphs", list)),
        )

    def graph(self, data: Any) -> NpuGraph:
        phase = self.field(data, "phase", str)
        if phase not in PHASES:
            raise self.wrong(f"a graph's phase is {phase!r:.40}, expected one of {', '.join(PHASES)}")
        return NpuGraph(
            phase=phase,
            context_length=self.count(data.get("context_length"), "context_length"),
            tokens=self.count(data.get("tokens"), "tokens"),
            file=self.inside(self.field(data, "file", str)),
            inputs=tuple(self.value(item) for item in self.field(data, "inputs", list)),
            outputs=tuple(self.value(item) for item in self.field(data, "outputs", list)),
        )

    def value(self, data: Any) -> NpuPort:
        name, role, dtype = (self.field(data, key, str) for key in ("name", "role", "dtype"))
        if role not in _ROLES or dtype not in _DTYPES:
            raise self.wrong(f"value {name!r:.60} has role {role!r:.40} and dtype {dtype!r:.40}, unknown here")
        scale = data.get("scale")
        return NpuPort(
            name=name,
            role=role,
            dtype=np.dtype(_DTYPES[dtype]),
            shape=tuple(self.count(size, f"shape of {name}") for size in self.field(data, "shape", list)),
            scale=None if scale is None else self.number(scale, f"scale of {name}"),
            zero_point=self.field(data, "zero_point", int) if scale is not None else 0,
            layer=data.get("layer") if isinstance(data.get("layer"), int) else None,
        )

    def state(self, data: Any, parts: int) -> State:
        update, part = self.field(data, "update", str), self.field(data, "part", int)
        if update not in ("replace", "append") or not 0 <= part < parts:
            raise self.wrong(f"a state has update {update!r:.40} and part {part}")
        return State(
            layer=self.field(data, "layer", int),
            part=part,
            kind=self.field(data, "kind", str),
            input=self.field(data, "input", str),
            output=self.field(data, "output", str),
            append=update == "append",
            axis=int(data.get("axis") or 0),
        )

    def embedding(self, data: Mapping[str, Any]) -> Embedding:
        shape = [self.count(size, "embedding.shape") for size in self.field(data, "shape", list)]
        dtype = self.field(data, "dtype", str)
        if len(shape) != 2 or dtype not in ("uint16", "float32"):
            raise self.wrong(f"embedding has shape {shape} and dtype {dtype!r:.40}")
        found = Embedding(
            file=self.folder / self.inside(self.field(data, "file", str)),
            dtype=np.dtype(_DTYPES[dtype]),
            rows=shape[0],
            width=shape[1],
            offset=int(data.get("offset") or 0),
            zero_point=int(data.get("zero_point") or 0),
        )
        needed = found.offset + found.rows * found.width * found.dtype.itemsize
        if found.offset < 0 or not found.file.is_file() or found.file.stat().st_size < needed:
            raise self.wrong(f"the embedding needs {needed} bytes in {found.file.name}")
        return found

    def sizes(self, data: Any, name: str) -> dict[str, int]:
        if not isinstance(data, dict) or not all(isinstance(size, int) and size >= 0 for size in data.values()):
            raise self.wrong(f"{name} is {data!r:.80}, expected bytes by phase")
        return {str(key): size for key, size in data.items()}

    def inside(self, path: str) -> str:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or not pure.parts:
            raise self.wrong(f"names the path {path!r:.80}, which leaves the artifact's folder")
        return path

    def plain_name(self, name: str) -> str:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise self.wrong(f"a part is called {name!r:.60}, expected letters and digits")
        return name

    def count(self, value: Any, name: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(f"{name} is {value!r:.40}, expected a count")
        return value

    def number(self, value: Any, name: str) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise self.wrong(f"{name} is {value!r:.40}, expected a number above 0")
        return float(value)

    def field(self, data: Any, name: str, kind: type) -> Any:
        value = data.get(name) if isinstance(data, dict) else None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(f"{name} is {value!r:.80}, expected {kind.__name__}")
        return value

    def wrong(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {what}; export the checkpoint with --target qnn again")
