"""An NPU export as a host drives it: chunks, padding, states, on any provider; nothing of the runtime is used here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.export.npu.call_inputs import attention_mask, rotary_inputs, state_columns
from lfm_onnx.export.npu.qdq_model import QdqModel
from lfm_onnx.export.npu.static_graph import StaticGraph, Value, WeightKind
from lfm_onnx.export.npu.weight_codes import StoredAs, pack_halves
from lfm_onnx.export.npu.weight_sources import Rows

Array = npt.NDArray[np.float32]
Session = Callable[[Path], ort.InferenceSession]


def cpu_session(path: Path) -> ort.InferenceSession:
    """ONNX Runtime's CPU provider with every graph optimization off: the quantized model as it is written."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read_npu_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "npu" / "npu_manifest.json").read_text(encoding="utf-8"))


class NpuGraphs:
    """All parts of an export, one after another, for one sequence at a time."""

    def __init__(self, folder: Path, session: Session = cpu_session) -> None:
        self.manifest = read_npu_manifest(folder)
        self.config = LfmConfig.load(folder)
        self.chunk, self.context_length = self.manifest["chunk"], self.manifest["context_lengths"][0]
        self._graphs = {
            phase: [
                (graph, session(folder / graph["file"]))
                for part in self.manifest["parts"]
                for graph in part["graphs"]
                if graph["phase"] == phase and graph["context_length"] == self.context_length
            ]
            for phase in ("prefill", "decode")
        }
        table = self.manifest["embedding"]
        self._table = np.memmap(folder / table["file"], table["dtype"], "r", table["offset"], tuple(table["shape"]))
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.filled = 0
        ports = [port for graph, _ in self._graphs["decode"] for port in graph["inputs"] if "layer" in port]
        self.states = {port["name"]: np.full(port["shape"], port.get("zero_point", 0), port["dtype"]) for port in ports}

    def prefill(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> Array:
        """Logits [V] of the last of ``ids``, which go in by chunks, the last one padded."""
        logits = np.empty(0, np.float32)
        for first in range(0, len(ids), self.chunk):
            logits = self._run("prefill", self.chunk, np.asarray(ids[first : first + self.chunk]))
        return logits

    def decode(self, token: int) -> Array:
        return self._run("decode", 1, np.array([token]))

    def _run(self, phase: str, tokens: int, ids: npt.NDArray[np.int64]) -> Array:
        valid = len(ids)
        table = self.manifest["embedding"]
        hidden = np.full((1, tokens, table["shape"][1]), table.get("zero_point", 0), table["dtype"])
        hidden[0, :valid] = self._table[ids]
        cos, sin = rotary_inputs(self.config, self.filled, tokens)
        offered = {
            "mask": attention_mask(self.filled, tokens, self.context_length),
            "cos": cos,
            "sin": sin,
            "state_columns": state_columns(valid, self.config.conv_L_cache),
            "expert_index": np.arange(self.config.num_experts),
            "last_token": np.array([valid - 1], np.int32),
        }
        last: Array = np.empty(0, np.float32)
        for graph, session in self._graphs[phase]:
            feeds = {}
            for port in graph["inputs"]:
                if port["role"] == "hidden":
                    feeds[port["name"]] = hidden
                elif "layer" in port:
                    feeds[port["name"]] = self.states[port["name"]]
                else:
                    feeds[port["name"]] = quantized(offered[port["role"]], port)
            found = session.run([port["name"] for port in graph["outputs"]], feeds)
            for port, array in zip(graph["outputs"], found, strict=True):
                if port["role"] == "hidden":
                    hidden = array
                elif port["role"] == "logits":
                    last = dequantized(array, port)[0, 0]
                else:
                    self._keep(port, array, valid)
        self.filled += valid
        return last

    def _keep(self, port: dict[str, Any], array: npt.NDArray[np.generic], valid: int) -> None:
        columns = slice(self.filled, self.filled + valid)
        if port["role"] == "conv_state":
            self.states[f"past_conv.{port['layer']}"] = array
        elif port["role"] == "key_cache":
            self.states[f"past_key.{port['layer']}"][..., columns] = array[..., :valid]
        else:
            self.states[f"past_value.{port['layer']}"][:, :, columns] = array[:, :, :valid]


def quantized(values: npt.NDArray[Any], port: dict[str, Any]) -> npt.NDArray[Any]:
    if "scale" not in port:
        return values.astype(port["dtype"])
    info = np.iinfo(port["dtype"])
    return np.clip(np.rint(values / port["scale"]) + port["zero_point"], info.min, info.max).astype(port["dtype"])


def dequantized(codes: npt.NDArray[Any], port: dict[str, Any]) -> Array:
    if "scale" not in port:
        return codes
    return (codes.astype(np.float32) - port["zero_point"]) * np.float32(port["scale"])


def unpacking_model() -> tuple[bytes, npt.NDArray[np.int8]]:
    """A model that gathers one of two packed experts, and their steps [2, 450]: all pairs of 4-bit codes.

    Input: chosen [1]. Outputs: high and low [1, 1, 225], the codes of the first 225 steps and of the others.
    """
    pairs = np.array([(a, b) for a in range(-7, 8) for b in range(-7, 8)], np.int8)
    steps = np.stack([pairs.T.reshape(-1), pairs[::-1].T.reshape(-1)])
    graph = StaticGraph("unpack")
    chosen = graph.input("chosen", (1,), "chosen", dtype="int32")
    weight = graph.weight(
        "w", (2, 1, 450), WeightKind.EXPERTS, Rows(lambda first, last: np.zeros((450, 1), np.float32))
    )
    halves = Value("w.high", (1, 1, 225)), Value("w.low", (1, 1, 225))
    graph.emit_packed_gather(weight, chosen, halves)
    graph.output("high", halves[0], "codes")
    graph.output("low", halves[1], "codes")
    model = QdqModel(graph, {}, lambda weight: StoredAs.INT4_PACKED_EXPERTS).model
    packed = np.stack([pack_halves(expert[:, None]).T for expert in steps])
    model.graph.initializers["w"].const_value = ir.tensor(packed, name="w")
    return ir.serde.serialize_model(model).SerializeToString(), steps
