"""Runs artifacts with ONNX Runtime, generates text, and proves parity with the reference model."""

from __future__ import annotations

from .model import LfmModel
from .native_library import ops_library_path

__all__ = ["LfmModel", "ops_library_path"]
