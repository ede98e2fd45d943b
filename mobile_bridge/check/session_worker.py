"""Runs an exported model in any Python that has onnxruntime and numpy, lfm-onnx not needed: a file of its own.

Speaks the protocol of ``runtime.worker_process``, for one request: model (path), provider ("cpu", "openvino" or
"openvino-plugin"), threads, sequences: [{prompt: ids, next: ids}], logits: a .npz to write, "s0" float32
[1 + len(next), vocab] and so on. Result: versions, providers, nodes by provider where this onnxruntime tells, load_s,
seconds. An error has the kind "missing", "device", "load" or "run".
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

_OPENVINO = "OpenVINOExecutionProvider"
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class WorkerError(Exception):
    """What went wrong, and of which kind."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load the model and run the sequences."""
    try:
        import onnxruntime
    except ImportError as error:
        raise WorkerError("missing", f"this Python has no onnxruntime: {error}") from error
    started = time.perf_counter()
    session = _load(onnxruntime, request)
    loaded = time.perf_counter()
    logits = {f"s{number}": _logits(session, item) for number, item in enumerate(request["sequences"])}
    np.savez(request["logits"], **logits)  # type: ignore[arg-type]
    return {
        "onnxruntime": onnxruntime.__version__,
        "python": sys.version.split()[0],
        "providers": session.get_providers(),
        "nodes": _assignment(session),
        "load_s": loaded - started,
        "seconds": time.perf_counter() - loaded,
    }


def _load(onnxruntime: Any, request: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = request.get("threads") or 0
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers: list[Any] | None = ["CPUExecutionProvider"]
    if request["provider"] == "openvino":
        if _OPENVINO not in onnxruntime.get_available_providers():
            raise WorkerError("missing", f"this onnxruntime {onnxruntime.__version__} is built without OpenVINO")
        providers = [(_OPENVINO, {"device_type": "CPU"}), "CPUExecutionProvider"]
    elif request["provider"] == "openvino-plugin":
        options.add_provider_for_devices([_openvino_cpu(onnxruntime)], {})
        providers = None
    try:
        return onnxruntime.InferenceSession(request["model"], options, providers=providers)
    except Exception as error:
        raise WorkerError("load", _words(error)) from error


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 1200 else f"{text[:300]} … {text[-900:]}"


def _openvino_cpu(onnxruntime: Any) -> Any:
    try:
        import onnxruntime_ep_openvino
    except ImportError as error:
        raise WorkerError("missing", "onnxruntime-ep-openvino is not installed") from error
    try:
        onnxruntime.register_execution_provider_library(_OPENVINO, onnxruntime_ep_openvino.get_library_path())
    except Exception as error:
        raise WorkerError("missing", f"onnxruntime-ep-openvino does not load: {error}") from error
    found = [item for item in onnxruntime.get_ep_devices() if item.ep_name == _OPENVINO]
    cpus = [item for item in found if item.device.type == onnxruntime.OrtHardwareDeviceType.CPU]
    if not cpus:
        vendors = {item.device.vendor for item in onnxruntime.get_ep_devices()}
        raise WorkerError(
            "device", f"the plug-in lists no CPU device here (this machine's CPU is {', '.join(vendors)})"
        )
    return cpus[0]


def _assignment(session: Any) -> list[dict[str, str]] | None:
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    try:
        return [
            {"provider": part.ep_name, "name": node.name, "op_type": node.op_type}
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
    except Exception:  # not recorded by this build
        return None


def _logits(session: Any, sequence: dict[str, list[int]]) -> np.ndarray:
    inputs = [item for item in session.get_inputs() if item.name.startswith(("past_key_values.", "past_conv."))]
    past = {
        item.name: np.zeros([1, *(n if isinstance(n, int) else 0 for n in item.shape[1:])], _DTYPES[item.type])
        for item in inputs
    }
    names = [item.name for item in session.get_outputs()]
    rows, total = [], 0
    try:
        for ids in (sequence["prompt"], *([token] for token in sequence["next"])):
            total += len(ids)
            feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, total), np.int64), **past}
            found = dict(zip(names, session.run(names, feeds)))  # noqa: B905  (old Pythons run this file, too)
            rows.append(found["logits"][0, -1].astype(np.float32))
            for name in past:
                past[name] = found[name.replace("past_key_values.", "present.").replace("past_conv.", "present_conv.")]
    except Exception as error:
        raise WorkerError("run", _words(error)) from error
    return np.stack(rows)


def main() -> None:
    """Answer the request on stdin; what libraries print to stdout goes to stderr instead."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        reply: dict[str, Any] = {"result": run(json.loads(sys.stdin.readline()))}
    except WorkerError as error:
        reply = {"error": str(error), "kind": error.kind}
    print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
