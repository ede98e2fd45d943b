"""Check for Android's NNAPI: onnxruntime's own usability checker on a variant with fixed shapes."""

from __future__ import annotations

from collections import Counter

from ...artifact.artifact import Artifact
from ...errors import ArtifactError
from .fixed_shapes import PAST_TOKENS, fixed_shape_model
from .result import CheckReport, GraphCheck, RefusedNode, Requirement

DEPRECATED = (
    "NNAPI is deprecated since Android 15 and often slower than the CPU: it is a legacy target, for devices that have "
    "nothing else. The CPU provider with lfm-onnx's kernels is the better choice."
)


def check_nnapi(artifact: Artifact) -> CheckReport:
    """What onnxruntime's usability checker says of a decode step with fixed shapes. Raises ArtifactError."""
    from onnxruntime.tools.mobile_helpers.usability_checker import PartitioningInfo, check_nnapi_partitions

    model = fixed_shape_model(artifact)
    try:
        info = check_nnapi_partitions(model, True)
    except Exception as error:  # the checker asserts on what it does not know
        raise ArtifactError(f"onnxruntime's checker cannot read {artifact.model_path}: {error}") from error
    counts = Counter(f"{node.domain or 'ai.onnx'}:{node.op_type}" for node in model.graph.node)
    refused = tuple(
        RefusedNode("", name, f"NNAPI has no such operator ({counts[name]} nodes)")
        for name in sorted(info.unsupported_ops)
    )
    if info.nodes_unsupported_due_to_dynamic_input:
        count = info.nodes_unsupported_due_to_dynamic_input
        refused += (RefusedNode("", "any", f"{count} nodes have an input whose shape is known at run time alone"),)
    suitability = info.suitability()
    graph = GraphCheck(
        graph=f"{artifact.model_path.name}, one token on {PAST_TOKENS}",
        nodes=info.num_nodes,
        nodes_on_target=info.num_supported_nodes,
        refused=refused,
        partitions=info.num_partitions,
    )
    detail = (
        f"{suitability.name}: {info.num_supported_nodes} of {info.num_nodes} nodes in {info.num_partitions} partitions"
    )
    return CheckReport(
        target="nnapi",
        artifact=str(artifact.folder),
        environment={"checker": "onnxruntime.tools, operators of the NNAPI provider", "variant": artifact.variant},
        graphs=(graph,),
        requirements=(
            Requirement("onnxruntime recommends NNAPI", suitability == PartitioningInfo.TryWithEP.YES, detail),
        ),
        notes=(DEPRECATED, "By operator alone: a driver may refuse more. Nothing was run."),
    )
