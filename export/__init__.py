"""Checkpoint to graph: declares the model in ONNX and streams its weights into an artifact."""

from __future__ import annotations

from .exporter import Exported, export_checkpoint
from .ops import OpsProfile
from .options import ExportOptions
from .plan import ExportPlan, resolve_export

__all__ = ["ExportOptions", "ExportPlan", "Exported", "OpsProfile", "export_checkpoint", "resolve_export"]
