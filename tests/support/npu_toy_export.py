"""A made-up model of two parts in the layout of an NPU export, small enough to compute by hand beside it.

Layer 0 mixes a token with the two before it, layer 1 attends; the quantized graphs and ``ToyModel`` in float64 say the
same thing twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from lfm_onnx.artifact.files import ArtifactFile
from lfm_onnx.artifact.manifest import Generator, Manifest, ModelFacts, Source, Variant
from onnx import TensorProto, helper, numpy_helper

HIDDEN, VOCAB, CHUNK, THETA = 8, 16, 4, 100.0
CONTEXTS = (8, 24)
_U16 = {"dtype": "uint16", "scale": 1 / 4096, "zero_point": 32768}
_U8 = {"dtype": "uint8", "scale": 1 / 16, "zero_point": 128}
_ANGLE = {"dtype": "uint16", "scale": 1 / 32767, "zero_point": 32768}
_MASK = {"dtype": "uint16", "scale": 100 / 65535, "zero_point": 65535}
_INT = {"dtype": "int32"}


@dataclass
class ToyModel:
    """The model in float64, whole sequences at once."""

    embedding: np.ndarray
    mix: np.ndarray
    head: np.ndarray

    def logits(self, ids: list[int]) -> np.ndarray:
        """[n, VOCAB] of all tokens."""
        x = self.embedding[ids].astype(np.float64)
        before = np.concatenate([np.zeros((2, HIDDEN)), x])[:, :]
        x = (x + 0.5 * before[: len(ids)] + 0.25 * before[1 : len(ids) + 1]) @ self.mix
        half = HIDDEN // 2
        angles = np.arange(len(ids))[:, None] / THETA ** (np.arange(half) / half)
        query = x + np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        scores = np.where(np.tri(len(ids), dtype=bool), query @ x.T, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        return (x + weights / weights.sum(1, keepdims=True) @ x) @ self.head


def toy_model(seed: int = 0) -> ToyModel:
    """Weights on the int8 grid, so that quantizing them costs nothing."""
    rng = np.random.default_rng(seed)
    embedding = rng.integers(-4096, 4096, (VOCAB, HIDDEN)) / 4096
    mix = rng.integers(-127, 128, (HIDDEN, HIDDEN)) / 256
    return ToyModel(embedding, mix, rng.integers(-127, 128, (HIDDEN, VOCAB)) / 64)


def write_toy_export(folder: Path, *, refused_node: bool = False, seed: int = 0) -> ToyModel:
    """Write a whole artifact of the toy; refused_node: with a node in part 1 that no NPU takes."""
    model = toy_model(seed)
    (folder / "npu").mkdir(parents=True)
    stored = np.rint(model.embedding * 4096 + 32768).astype(np.uint16)
    stored.tofile(folder / "npu" / "embedding.bin")
    parts = []
    for index in range(2):
        graphs = []
        for context in CONTEXTS:
            for phase, tokens in (("prefill", CHUNK), ("decode", 1)):
                file = f"npu/part{index}/{phase}-{context}.onnx"
                (folder / file).parent.mkdir(exist_ok=True)
                build = _first_part if index == 0 else _second_part
                graph, inputs, outputs = build(model, tokens, context, refused_node)
                onnx.save(graph, folder / file)
                values = {"inputs": inputs, "outputs": outputs}
                graphs.append(
                    {"phase": phase, "context_length": context, "tokens": tokens, "file": file, "nodes": 0,
                     "op_types": {}, "weights": [], **values}
                )  # fmt: skip
        size = (model.mix if index == 0 else model.head).size
        parts.append(
            {"index": index, "name": f"part{index}", "layers": [index, index + 1], "head": index == 1,
             "weight_bytes": {"prefill": size, "decode": size, "file": size},
             "compiled_weight_bytes": {"prefill": size, "decode": size}, "token_bytes": size,
             "weights_file": f"npu/part{index}/weights.bin", "graphs": graphs}
        )  # fmt: skip
    manifest = {
        "npu_manifest_version": 1,
        "target": "qnn",
        "opset": 24,
        "precision": {"weights": "int8", "activations": "uint16", "kv_cache": "uint8"},
        "chunk": CHUNK,
        "context_lengths": list(CONTEXTS),
        "embedding": {"file": "npu/embedding.bin", "dtype": "uint16", "shape": [VOCAB, HIDDEN], **_plain()},
        "rotary": {"theta": THETA, "head_dim": HIDDEN},
        "parts": parts,
        "states": [
            {"layer": 0, "part": 0, "kind": "conv", "input": "past_conv.0", "output": "present_conv.0",
             "update": "replace", "axis": 1},
            {"layer": 1, "part": 1, "kind": "key", "input": "past_key.1", "output": "new_key.1", "update": "append",
             "axis": 3},
            {"layer": 1, "part": 1, "kind": "value", "input": "past_value.1", "output": "new_value.1",
             "update": "append", "axis": 2},
        ],
    }  # fmt: skip
    (folder / "npu" / "npu_manifest.json").write_text(json.dumps(manifest))
    _write_artifact(folder)
    return model


def _plain() -> dict:
    return {"offset": 0, "row_bytes": 2 * HIDDEN, "scale": 1 / 4096, "zero_point": 32768}


def _write_artifact(folder: Path) -> None:
    config = {
        "model_type": "lfm2", "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 8, "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention"], "max_position_embeddings": 24, "norm_eps": 1e-5,
        "rope_theta": THETA, "block_auto_adjust_ff_dim": False, "eos_token_id": 15, "bos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    own = tuple(name for name in names if name.startswith("npu/"))
    Manifest(
        source=Source.of("toy", "", (), ()),
        model=ModelFacts("lfm2", 1, ("conv", "full_attention"), 24),
        variants={"qnn": Variant("npu/npu_manifest.json", "qdq", 24, {}, own)},
        files=tuple(ArtifactFile.describe(folder, name) for name in names),
        tools={},
        target="qnn",
        generator=Generator("toy", "0"),
    ).write(folder)


class _Graph:
    """Nodes and initializers as they come; every value between two nodes is quantized."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[dict] = []
        self.outputs: list[dict] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        if all(item.name != name for item in self.initializers):
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def parameters(self, kind: dict) -> tuple[str, str]:
        tag = f"{kind['dtype']}_{kind['zero_point']}_{kind['scale']:.3g}"
        scale = self.constant(f"scale_{tag}", np.array(kind["scale"], np.float32))
        return scale, self.constant(f"zero_{tag}", np.array(kind["zero_point"], kind["dtype"]))

    def input(self, name: str, role: str, shape: list[int], kind: dict, layer: int | None = None) -> str:
        self.inputs.append({"name": name, "role": role, "shape": shape, **kind, **_layer(layer)})
        if "scale" not in kind:
            return name
        return self.node("DequantizeLinear", [name, *self.parameters(kind)], f"{name}_real")

    def output(self, name: str, role: str, shape: list[int], kind: dict, source: str, layer: int | None = None) -> None:
        self.outputs.append({"name": name, "role": role, "shape": shape, **kind, **_layer(layer)})
        self.node("QuantizeLinear", [source, *self.parameters(kind)], name)

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{name}.{op}", **attributes))
        return name

    def quantized(self, source: str, kind: dict = _U16) -> str:
        stored = self.node("QuantizeLinear", [source, *self.parameters(kind)], f"{source}_q")
        return self.node("DequantizeLinear", [stored, *self.parameters(kind)], f"{source}_dq")

    def matmul(self, left: str, name: str, weight: np.ndarray, scale: float) -> str:
        quantized = self.constant(f"{name}_weight", np.rint(weight / scale).astype(np.int8))
        scales = self.constant(f"{name}_scale", np.full(weight.shape[1], scale, np.float32))
        zeros = self.constant(f"{name}_zero", np.zeros(weight.shape[1], np.int8))
        real = self.node("DequantizeLinear", [quantized, scales, zeros], f"{name}_weight_real", axis=1)
        return self.node("MatMul", [left, real], name)

    def build(self) -> Built:
        infos = [
            [helper.make_tensor_value_info(v["name"], _onnx_dtype(v["dtype"]), v["shape"]) for v in values]
            for values in (self.inputs, self.outputs)
        ]
        graph = helper.make_graph(self.nodes, "toy", infos[0], infos[1], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
        onnx.checker.check_model(model)
        return model, self.inputs, self.outputs


def _layer(layer: int | None) -> dict:
    return {} if layer is None else {"layer": layer}


def _onnx_dtype(name: str) -> int:
    return {"uint16": TensorProto.UINT16, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}[name]


Built = tuple[onnx.ModelProto, list[dict], list[dict]]
"""A part, its inputs and its outputs."""


def _first_part(model: ToyModel, tokens: int, context: int, _refused: bool) -> Built:
    g = _Graph()
    x = g.input("hidden_states", "hidden", [1, tokens, HIDDEN], _U16)
    past = g.input("past_conv.0", "conv_state", [1, 2, HIDDEN], _U16, layer=0)
    row = g.quantized(g.node("Concat", [past, x], "columns", axis=1))
    total = x
    for start, factor in ((0, 0.5), (1, 0.25)):
        bounds = [g.constant(f"at{value}", np.array([value], np.int64)) for value in (start, start + tokens, 1)]
        moved = g.quantized(g.node("Slice", [row, *bounds], f"moved{start}"))
        weight = g.constant(f"factor{start}", np.array([round(factor * 4096) + 32768], np.uint16))
        weight = g.node("DequantizeLinear", [weight, *g.parameters(_U16)], f"factor{start}_real")
        scaled = g.quantized(g.node("Mul", [moved, weight], f"scaled{start}"))
        total = g.quantized(g.node("Add", [total, scaled], f"total{start}"))
    mixed = g.matmul(total, "mix", model.mix, 1 / 256)
    g.output("hidden_states_next", "hidden", [1, tokens, HIDDEN], _U16, mixed)
    if tokens == 1:
        at = g.constant("last_columns", np.array([1, 2], np.int32))
    else:
        at = g.input("state_columns", "state_columns", [2], _INT)
    kept = g.node("Gather", [row, at], "kept", axis=1)
    g.output("present_conv.0", "conv_state", [1, 2, HIDDEN], _U16, kept, layer=0)
    return g.build()


def _second_part(model: ToyModel, tokens: int, context: int, refused: bool) -> Built:
    g = _Graph()
    x = g.input("hidden_states", "hidden", [1, tokens, HIDDEN], _U16)
    mask = g.input("attention_mask", "mask", [1, 1, tokens, context + tokens], _MASK)
    cos = g.input("cos", "cos", [1, tokens, 1, HIDDEN // 2], _ANGLE)
    sin = g.input("sin", "sin", [1, tokens, 1, HIDDEN // 2], _ANGLE)
    keys = g.input("past_key.1", "key_cache", [1, 1, HIDDEN, context], _U8, layer=1)
    values = g.input("past_value.1", "value_cache", [1, 1, context, HIDDEN], _U8, layer=1)
    shape = g.constant("as_heads", np.array([1, 1, tokens, HIDDEN], np.int64))
    heads = g.quantized(g.node("Reshape", [x, shape], "heads"))
    angle = g.node("Concat", [cos, sin], "angle", axis=3)
    angle = g.quantized(g.node("Reshape", [g.quantized(angle, _ANGLE), shape], "angle_heads"), _ANGLE)
    query = g.quantized(g.node("Add", [heads, angle], "query"))
    turned = g.quantized(g.node("Transpose", [heads], "turned", perm=[0, 1, 3, 2]), _U8)
    narrow = g.quantized(g.node("Identity", [heads], "narrow"), _U8)
    all_keys = g.quantized(g.node("Concat", [keys, turned], "all_keys", axis=3), _U8)
    all_values = g.quantized(g.node("Concat", [values, narrow], "all_values", axis=2), _U8)
    wide = {"dtype": "uint16", "scale": 300 / 65535, "zero_point": 43690}
    scores = g.quantized(g.node("MatMul", [query, all_keys], "scores"), wide)
    masked = g.quantized(g.node("Add", [scores, mask], "masked"), wide)
    share = {"dtype": "uint16", "scale": 1 / 65535, "zero_point": 0}
    weights = g.quantized(g.node("Softmax", [masked], "weights", axis=-1), share)
    found = g.quantized(g.node("MatMul", [weights, all_values], "found"))
    total = g.quantized(g.node("Add", [heads, found], "total"))
    flat = g.constant("as_rows", np.array([1, tokens, HIDDEN], np.int64))
    rows = g.quantized(g.node("Reshape", [total, flat], "rows"))
    if refused:
        rows = g.quantized(g.node("Hardmax", [rows], "refused"))
    if tokens > 1:
        last = g.input("last_token", "last_token", [1], _INT)
        rows = g.quantized(g.node("Gather", [rows, last], "last_row", axis=1))
    logits = {"dtype": "uint16", "scale": 1 / 512, "zero_point": 32768}
    g.output("logits", "logits", [1, 1, VOCAB], logits, g.matmul(rows, "head", model.head, 1 / 64))
    for name, source, role, size in (
        ("key", turned, "key_cache", [1, 1, HIDDEN, tokens]),
        ("value", narrow, "value_cache", [1, 1, tokens, HIDDEN]),
    ):
        g.output(f"new_{name}.1", role, size, _U8, source, layer=1)
    return g.build()
