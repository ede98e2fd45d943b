"""What an artifact holds and costs: operators, weights by class, bytes per decoded token, state by context length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from ..artifact.artifact import Artifact, Verification
from ..artifact.graph_weights import TensorKind, tensor_kind
from ..artifact.npu_manifest import is_npu_artifact
from ..checkpoint.config import LfmConfig
from ..errors import ArtifactError
from .npu.inspection import NpuInspection, inspect_npu

CONTEXT_LENGTHS = (1024, 4096, 16384, 32768, 128000)
_BITS = {
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
}
"""Bits of an element where they are not 8."""
_CLASSES = {
    TensorKind.EMBEDDING: "embedding",
    TensorKind.LM_HEAD: "lm_head",
    TensorKind.EXPERTS: "experts",
    TensorKind.ROUTER: "router",
    TensorKind.NORM: "norms",
    TensorKind.SHORT_CONV: "short_conv",
    TensorKind.CONV: "conv_projections",
    TensorKind.BIAS: "conv_projections",
    TensorKind.ATTENTION: "attention",
    TensorKind.FEED_FORWARD: "dense_feed_forward",
    TensorKind.ROTARY: "rope",
    None: "constants",
}
"""In the order in which they are shown. Constants belong to the graph, not to the model."""


@dataclass(frozen=True)
class OperatorCount:
    """How often one operator stands in a graph or in a function's body."""

    domain: str
    name: str
    count: int


@dataclass(frozen=True)
class TensorClass:
    """Weights of one kind: ``touched_bytes`` are those that the decoding of one token reads."""

    name: str
    tensors: int
    elements: int
    bytes: int
    touched_bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class LocalFunction:
    """A function defined inside the model file, with the operators of its body."""

    domain: str
    name: str
    calls: int
    operators: tuple[OperatorCount, ...]


@dataclass(frozen=True)
class GraphTensor:
    """A graph input or output."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Inspection:
    """What one variant of an artifact holds and costs.

    state_bytes: context length in tokens → bytes of KV cache and conv states, batch 1.
    """

    folder: str
    variant: str
    ops_profile: str
    model_type: str
    context_length: int
    parameters: int
    bytes_on_disk: int
    touched_bytes_per_token: int
    operators: tuple[OperatorCount, ...]
    functions: tuple[LocalFunction, ...]
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    tensor_classes: tuple[TensorClass, ...]
    state_bytes: dict[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the command line prints it."""
        return asdict(self)


def inspect_artifact(
    folder: str | Path, variant: str | None = None, *, verify: Verification = "quick"
) -> Inspection | NpuInspection:
    """Read an artifact's graph (not its weights), or an NPU export's manifest, and add up. Raises ArtifactError."""
    artifact = Artifact.open(folder, variant, verify=verify)
    return inspect_npu(artifact) if is_npu_artifact(artifact) else inspect_graph(artifact)


def inspect_graph(artifact: Artifact) -> Inspection:
    """The inspection of an export for the CPU. Raises ArtifactError."""
    try:
        model = onnx.load(artifact.model_path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise ArtifactError(f"{artifact.model_path}: not an ONNX file that can be read: {error}") from error
    classes = tensor_classes(model, artifact.config)
    operators = _count_operators(model.graph.node)
    calls = {(item.domain, item.name): item.count for item in operators}
    lengths = sorted({length for length in CONTEXT_LENGTHS if length < artifact.context_length})
    return Inspection(
        folder=str(artifact.folder),
        variant=artifact.variant,
        ops_profile=artifact.ops_profile,
        model_type=artifact.config.model_type,
        context_length=artifact.context_length,
        parameters=artifact.manifest.model.parameters,
        bytes_on_disk=sum(file.bytes for file in artifact.model_files),
        touched_bytes_per_token=sum(item.touched_bytes for item in classes),
        operators=operators,
        functions=tuple(
            LocalFunction(item.domain, item.name, calls.get((item.domain, item.name), 0), _count_operators(item.node))
            for item in model.functions
        ),
        inputs=tuple(_graph_tensor(item) for item in model.graph.input),
        outputs=tuple(_graph_tensor(item) for item in model.graph.output),
        tensor_classes=classes,
        state_bytes={length: _state_bytes(model, length) for length in (*lengths, artifact.context_length)},
    )


def tensor_classes(model: onnx.ModelProto, config: LfmConfig) -> tuple[TensorClass, ...]:
    """A graph's initializers by class. One token reads the chosen experts, one row of a table that is only looked up
    (the embedding, unless the head is tied to it), and everything else whole.
    """
    readers: dict[str, set[str]] = {}
    for node in _all_nodes(model.graph.node):
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    by_class: dict[str, list[tuple[onnx.TensorProto, int, int, int]]] = {}
    for tensor in model.graph.initializer:
        kind = tensor_kind(tensor.name)
        elements = _product(tensor.dims)
        size = (elements * _BITS.get(tensor.data_type, 8) + 7) // 8
        touched = size
        if kind is TensorKind.EXPERTS and config.num_experts:
            touched = size * config.num_experts_per_tok // config.num_experts
        elif (kind is TensorKind.ROTARY and len(tensor.dims) == 2) or (
            kind is TensorKind.EMBEDDING and all("Gather" in reader for reader in readers.get(tensor.name, ()))
        ):
            touched = size // max(tensor.dims[0], 1)
        by_class.setdefault(_CLASSES[kind], []).append((tensor, elements, size, touched))
    return tuple(
        TensorClass(
            name=name,
            tensors=len(by_class[name]),
            elements=sum(elements for _, elements, _, _ in by_class[name]),
            bytes=sum(size for _, _, size, _ in by_class[name]),
            touched_bytes=sum(touched for _, _, _, touched in by_class[name]),
            dtypes=tuple(sorted({_dtype_name(tensor.data_type) for tensor, _, _, _ in by_class[name]})),
        )
        for name in dict.fromkeys(_CLASSES.values())
        if name in by_class
    )


def _count_operators(nodes: Iterable[onnx.NodeProto]) -> tuple[OperatorCount, ...]:
    counts = Counter((node.domain or "ai.onnx", node.op_type) for node in _all_nodes(nodes))
    return tuple(OperatorCount(domain, name, count) for (domain, name), count in sorted(counts.items()))


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def _graph_tensor(value: onnx.ValueInfoProto) -> GraphTensor:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return GraphTensor(value.name, _dtype_name(tensor.elem_type), shape)


def _state_bytes(model: onnx.ModelProto, length: int) -> int:
    total = 0
    for value in model.graph.input:
        if not value.name.startswith("past_"):
            continue
        tensor = value.type.tensor_type
        fixed = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")]
        columns = length if value.name.startswith("past_key_values.") else 1
        total += _product(fixed) * columns * _BITS.get(tensor.elem_type, 8) // 8
    return total


def _dtype_name(data_type: int) -> str:
    name = onnx.TensorProto.DataType.Name(data_type).lower()
    return "float32" if name == "float" else name


def _product(sizes: Iterable[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
