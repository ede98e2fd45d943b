"""Checkpoint to graph: declares the model in ONNX and streams its weights into an artifact."""

from __future__ import annotations

from .exporter import ExportOptions, ExportPlan, export_checkpoint, plan_export
from .ops import OpsProfile

__all__ = ["ExportOptions", "ExportPlan", "OpsProfile", "export_checkpoint", "plan_export"]
