"""lfm-onnx: LFM2 and LFM2.5 checkpoints to ONNX, for phones and Copilot+ PCs."""

from __future__ import annotations

__version__ = "0.1.0"
