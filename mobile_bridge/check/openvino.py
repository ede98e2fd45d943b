"""Check on Intel's OpenVINO: the plug-in execution provider's CPU device, the same compiler as for Intel's NPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ...artifact.artifact import Artifact
from ...runtime.worker_process import WorkerError
from .other_runtime import Elsewhere, OtherRun, run_elsewhere, sequences
from .result import CheckError, CheckReport, GraphCheck, RefusedNode, Requirement

_PROVIDER = "OpenVINOExecutionProvider"
_HOW = (
    "install onnxruntime-ep-openvino (the plug-in, which lists the CPUs of Intel alone), or name a Python that has "
    "onnxruntime-openvino by `interpreter`"
)
_FAILED = (
    "OpenVINO claims a part of the graph that it then cannot compile or place, so nothing of the model runs there."
)
_CAUSES = {
    "NullNode": "it does not take operators whose optional input is left out by an empty name (Gemm without a bias)",
    "the graph is not acyclic": "it cuts the graph into parts that wait for one another, which the file's nodes do not "
    '(seen around the loop over the experts of MoE models with standard ops: export with `ops_profile="custom"`)',
    "attribute: `reduction`": "it does not take ScatterND with a reduction (the experts' sum in MoE models)",
}
"""What is known of its messages, by a text in them."""


def check_openvino(
    artifact: Artifact,
    *,
    reference: str | None = None,
    interpreter: Path | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> CheckReport:
    """Run ``artifact`` on OpenVINO's CPU device and compare its logits. Raises CheckError where there is none."""
    what = sequences(artifact)
    check = Elsewhere("openvino", artifact, {"device": "OpenVINO CPU"})
    try:
        run, kind, refusal = _run(artifact, what, interpreter)
    except WorkerError as error:
        causes = [text for part, text in _CAUSES.items() if part in str(error)]
        return check.failed(f"{causes[0]}: …{str(error)[-200:]}" if causes else str(error), [_FAILED])
    check.environment["runtime"] = f"onnxruntime {run.result['onnxruntime']}, {kind}"
    notes = [
        "The CPU device stands in for the NPU here: it says whether OpenVINO computes the model right, not how fast."
    ]
    if refusal:
        notes.append(f"The plug-in was not used: {refusal}. onnxruntime-openvino's built-in provider was.")
    graph, told = _graph(artifact, run)
    requirements = []
    if told:
        taken = f"{graph.nodes_on_target} of {graph.nodes} nodes"
        requirements.append(Requirement("OpenVINO takes part of the graph", graph.nodes_on_target > 0, taken))
    else:
        notes.append("This onnxruntime does not say which nodes OpenVINO took.")
    graphs = [graph] if told else []
    return check.compared(what, run, reference, progress, requirements=requirements, graphs=graphs, notes=notes)


def _run(artifact: Artifact, what: list[dict[str, list[int]]], interpreter: Path | None) -> tuple[OtherRun, str, str]:
    try:
        return run_elsewhere(artifact, what, "openvino-plugin", interpreter), "onnxruntime-ep-openvino", ""
    except WorkerError as error:
        if error.kind not in ("missing", "device"):
            raise
        refusal = str(error)
    try:
        return run_elsewhere(artifact, what, "openvino", interpreter), "onnxruntime-openvino", refusal
    except WorkerError as error:
        if error.kind != "missing":
            raise
        raise CheckError(f"no OpenVINO device here: {refusal}; {error}; {_HOW}") from error


def _graph(artifact: Artifact, run: OtherRun) -> tuple[GraphCheck, bool]:
    nodes = run.result["nodes"]
    name = artifact.model_path.name
    if not nodes:
        return GraphCheck(name, 0, 0), False
    left = [node for node in nodes if node["provider"] != _PROVIDER]
    kinds = Counter(node["op_type"] for node in left)
    refused = tuple(
        RefusedNode("", op, f"OpenVINO left {count} of these to the CPU provider") for op, count in kinds.most_common()
    )
    parts = sum(1 for before, node in zip([None, *nodes], nodes, strict=False)
                if node["provider"] == _PROVIDER and (before is None or before["provider"] != _PROVIDER))  # fmt: skip
    return GraphCheck(name, len(nodes), len(nodes) - len(left), refused=refused, partitions=parts), True
