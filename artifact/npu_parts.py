"""The parts of an NPU export in its manifest: graphs of static shapes, and every value with its quantization."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import ArtifactError
from ..strict_json import JsonObject

PHASES = ("prefill", "decode")
STATE_ROLES = ("conv_state", "key_cache", "value_cache")
ROLES = (
    "hidden",
    "mask",
    "cos",
    "sin",
    "state_columns",
    "last_token",
    "expert_index",
    *STATE_ROLES,
    "logits",
)
"""What a graph's input or output is to a call."""

POSITIVE = (sys.float_info.min, sys.float_info.max)
_DTYPES = ("uint16", "uint8", "int32", "float32")


@dataclass(frozen=True)
class NpuPort:
    """An input or output of a graph. real = (q - zero_point) * scale; scale None: not quantized."""

    name: str
    role: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    scale: float | None
    zero_point: int
    layer: int | None

    @classmethod
    def from_json(cls, entry: JsonObject) -> NpuPort:
        """The port that an entry of a graph's ``inputs`` or ``outputs`` describes; raises the error of ``entry``."""
        quantized = "scale" in entry
        return cls(
            name=entry.text("name"),
            role=entry.text("role", ROLES),
            dtype=np.dtype(entry.text("dtype", _DTYPES)),
            shape=tuple(entry.integers("shape", 1)),
            scale=entry.number("scale", *POSITIVE) if quantized else None,
            zero_point=entry.integer("zero_point") if quantized else 0,
            layer=entry.integer("layer", 0) if "layer" in entry else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file; without scale and zero point, or layer, where it has none."""
        parameters = {} if self.scale is None else {"scale": self.scale, "zero_point": self.zero_point}
        layer = {} if self.layer is None else {"layer": self.layer}
        shape = list(self.shape)
        return {"name": self.name, "role": self.role, "dtype": self.dtype.name, "shape": shape, **parameters, **layer}


@dataclass(frozen=True)
class NodeWeights:
    """A node that reads weights, and their bytes in the file; nodes that read the same ones share the bytes."""

    node: str
    op_type: str
    bytes: int


@dataclass(frozen=True)
class NpuGraph:
    """One .onnx file: ``tokens`` new tokens on top of a cache of ``context_length`` columns.

    nodes: how many it has; op_types: how many of each operator; weights: the nodes that read any.
    """

    phase: str
    context_length: int
    tokens: int
    file: str
    nodes: int
    op_types: Mapping[str, int]
    weights: tuple[NodeWeights, ...]
    inputs: tuple[NpuPort, ...]
    outputs: tuple[NpuPort, ...]

    @classmethod
    def from_json(cls, entry: JsonObject) -> NpuGraph:
        """The graph that an entry of a part's ``graphs`` describes, with its ports; raises the error of ``entry``."""
        return cls(
            phase=entry.text("phase", PHASES),
            context_length=entry.integer("context_length", 1),
            tokens=entry.integer("tokens", 1),
            file=entry.path_inside("file"),
            nodes=entry.integer("nodes", 0),
            op_types=entry.object("op_types").all_integers(0),
            weights=tuple(
                NodeWeights(item.text("node"), item.text("op_type"), item.integer("bytes", 0))
                for item in entry.objects("weights")
            ),
            inputs=tuple(NpuPort.from_json(item) for item in entry.objects("inputs")),
            outputs=tuple(NpuPort.from_json(item) for item in entry.objects("outputs")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file, ports and weights included."""
        return {
            "phase": self.phase,
            "context_length": self.context_length,
            "tokens": self.tokens,
            "file": self.file,
            "nodes": self.nodes,
            "op_types": dict(self.op_types),
            "weights": [asdict(item) for item in self.weights],
            "inputs": [port.to_dict() for port in self.inputs],
            "outputs": [port.to_dict() for port in self.outputs],
        }


@dataclass(frozen=True)
class NpuPart:
    """Layers first to last (exclusive) that share one context; ``head``: the final norm and the LM head are here.

    weight_bytes: by phase as the graphs store them, and of the ``file``. compiled_bytes: by phase as the compiler
    stores them. token_bytes: what decode reads a token.
    """

    index: int
    name: str
    first_layer: int
    last_layer: int
    head: bool
    weight_bytes: Mapping[str, int]
    compiled_bytes: Mapping[str, int]
    token_bytes: int
    weights_file: str
    graphs: tuple[NpuGraph, ...]

    def graph(self, phase: str, context_length: int) -> NpuGraph:
        """The part's graph for a phase and a cache length."""
        for graph in self.graphs:
            if graph.phase == phase and graph.context_length == context_length:
                return graph
        raise ArtifactError(f"{self.name} has no {phase} graph of context length {context_length}; export again")

    @property
    def file_bytes(self) -> int:
        """Bytes of the file of weights."""
        return self.weight_bytes["file"]

    @property
    def largest_graph_bytes(self) -> int:
        """Bytes of weights of its largest graph as the compiler sees them."""
        return max(self.compiled_bytes.values())

    @classmethod
    def from_json(cls, entry: JsonObject) -> NpuPart:
        """The part that an entry of the NPU's manifest describes, with its graphs; raises the error of ``entry``."""
        layers = entry.integers("layers", 0)
        if len(layers) != 2:
            raise entry.refuse("layers", "[first, last]")
        name = entry.text("name")
        if not name.replace("_", "").replace("-", "").isalnum():
            raise entry.refuse("name", "letters and digits")
        stored, compiled = entry.object("weight_bytes"), entry.object("compiled_weight_bytes")
        return cls(
            index=entry.integer("index", 0),
            name=name,
            first_layer=layers[0],
            last_layer=layers[1],
            head=entry.flag("head"),
            weight_bytes={size: stored.integer(size, 0) for size in (*PHASES, "file")},
            compiled_bytes={phase: compiled.integer(phase, 0) for phase in PHASES},
            token_bytes=entry.integer("token_bytes", 0),
            weights_file=entry.path_inside("weights_file"),
            graphs=tuple(NpuGraph.from_json(item) for item in entry.objects("graphs")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file, graphs included."""
        return {
            "index": self.index,
            "name": self.name,
            "layers": [self.first_layer, self.last_layer],
            "head": self.head,
            "weight_bytes": dict(self.weight_bytes),
            "compiled_weight_bytes": dict(self.compiled_bytes),
            "token_bytes": self.token_bytes,
            "weights_file": self.weights_file,
            "graphs": [graph.to_dict() for graph in self.graphs],
        }
