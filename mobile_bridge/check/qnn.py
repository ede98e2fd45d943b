"""Check of an NPU export by real compilation: nodes and weight bytes on the NPU, and integer matrix products."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...artifact.artifact import Artifact
from ...artifact.npu_manifest import NpuManifest
from ...artifact.npu_parts import NpuGraph
from ...errors import ArtifactError
from ...hardware.chips import DEFAULT_CHIP, chip
from ...runtime.npu.provider import PROVIDER, device, versions
from ...runtime.worker_process import WorkerError, WorkerProcess
from .graph_weights import QUANTIZING, load_graph, weight_bytes_by_node
from .qnn_graph_dump import read_graph_dump
from .result import CheckReport, GraphCheck, RefusedNode, Requirement, share_requirement

_WORKER = (sys.executable, "-m", "lfm_onnx.mobile_bridge.check.qnn_worker")
_REASON = re.compile(r"Operator type: (\S+) Node name: (\S*) Node index: \d+\s+REASON : ([^\n]+)")
_SAYS_WHERE = re.compile(r"\w+ node `[^`]*` will not be assigned to \w+ EP\.?\s*$")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def check_qnn(
    artifact: Artifact,
    *,
    soc: str | None = None,
    every_context: bool = False,
    progress: Callable[[str], None] = lambda _line: None,
) -> CheckReport:
    """Compile every graph of ``artifact`` (opened as variant qnn) for ``soc`` with the CPU fallback disabled.

    every_context: all exported context lengths, else the shortest. Raises NpuUnavailable without the compiler.
    """
    manifest = NpuManifest.read(artifact)
    target = chip(soc or DEFAULT_CHIP)
    here = versions()
    where = device()
    lengths = manifest.context_lengths if every_context else manifest.context_lengths[:1]
    graphs = [graph for _, graph in manifest.graphs() if graph.context_length in lengths]
    found = []
    for number, graph in enumerate(graphs, 1):
        checked = check_qnn_graph(artifact.folder / graph.file, graph.file, target.provider_options)
        progress(f"{number} of {len(graphs)} {_line(checked)}")
        found.append(checked)
    checks = tuple(found)
    return CheckReport(
        target="qnn",
        artifact=str(artifact.folder),
        environment={
            "compiler": f"QAIRT {here.qairt}, onnxruntime-qnn {here.provider}, onnxruntime {here.onnxruntime}",
            "chip": f"{target.title} ({target.name}, v{target.htp_arch}, soc_model {target.soc_model})",
            "device": where.name,
        },
        graphs=checks,
        requirements=_requirements(checks, manifest, graphs),
        notes=("Compiled with the CPU fallback disabled; no claim is made about speed.",),
    )


def check_qnn_graph(path: Path, name: str, provider_options: dict[str, str]) -> GraphCheck:
    """One graph through the compiler, in a process of its own. ArtifactError for a file that is no graph."""
    try:
        model = load_graph(path)
    except Exception as error:  # protobuf's errors share no other base
        raise ArtifactError(f"{path} is not an ONNX file that can be read: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        request = {"graph": str(path), "provider_options": provider_options, "folder": folder}
        with WorkerProcess(_WORKER, "the compiler's process") as worker:
            try:
                result, failure = worker.ask(request), ""
            except WorkerError as error:
                result, failure = {"nodes": []}, str(error)
            log = worker.log()
        products = [item for dump in _dumps(Path(folder)) for item in read_graph_dump(dump)]
    weights = weight_bytes_by_node(model)
    computing = [node for node in model.graph.node if node.op_type not in QUANTIZING]
    if not result["nodes"]:
        reason = failure or result["error"]
        return GraphCheck(name, len(computing), 0, sum(weights.values()), 0, error=f"did not compile: {reason}")
    reasons = {node: (op, _SAYS_WHERE.sub("", text)) for op, node, text in _REASON.findall(_COLOURS.sub("", log))}
    nodes = [node for node in result["nodes"] if node["op_type"] not in QUANTIZING]
    elsewhere = [node for node in nodes if node["provider"] != PROVIDER]
    names = {node["name"] for node in elsewhere}
    return GraphCheck(
        graph=name,
        nodes=len(nodes),
        nodes_on_target=len(nodes) - len(elsewhere),
        weight_bytes=sum(weights.values()),
        weight_bytes_on_target=sum(size for node, size in weights.items() if node not in names),
        refused=tuple(
            RefusedNode(n["name"], n["op_type"], reasons.get(n["name"], ("", "the compiler gives no reason"))[1])
            for n in elsewhere
        ),
        integer_matmuls=tuple(item.name for item in products if item.integer),
        float_matmuls=tuple(f"{item.name} ({' x '.join(item.types[:2])})" for item in products if not item.integer),
        seconds=round(result["seconds"], 2),
    )


def _requirements(
    checks: tuple[GraphCheck, ...], manifest: NpuManifest, graphs: list[NpuGraph]
) -> tuple[Requirement, ...]:
    weights = sum(check.weight_bytes or 0 for check in checks)
    taken = sum(check.weight_bytes_on_target or 0 for check in checks)
    found = [
        share_requirement(checks, "on the NPU"),
        Requirement("every weight on the NPU", taken == weights, f"{taken} of {weights} bytes"),
    ]
    if manifest.precision.get("weights") != "float":
        wrong = [name for check in checks for name in check.float_matmuls or ()]
        right = sum(len(check.integer_matmuls or ()) for check in checks)
        detail = f"{right} integer" + (f", {len(wrong)} not: {', '.join(wrong[:3])}" if wrong else "")
        found.append(Requirement("every matrix product as integers", not wrong and right > 0, detail))
    return tuple(found)


def _dumps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.endswith("_tensor_log.json"))


def _line(check: GraphCheck) -> str:
    state = check.error or f"{check.nodes_on_target} of {check.nodes} nodes on the NPU, {check.seconds:.1f} s"
    return f"{check.graph}: {state}"
