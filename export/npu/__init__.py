"""Static graphs of the model for the NPU, in float and quantized: declared once, calibrated, cut into parts."""

from __future__ import annotations

from .exporter import export_npu
from .forms import Finding, check_graph
from .options import NpuOptions
from .part_graph import MoeForm, Phase
from .parts import NpuWeights, PartPlan, plan_parts

__all__ = [
    "Finding",
    "MoeForm",
    "NpuOptions",
    "NpuWeights",
    "PartPlan",
    "Phase",
    "check_graph",
    "export_npu",
    "plan_parts",
]
