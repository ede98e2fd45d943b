"""Runs artifacts with ONNX Runtime, generates text, and proves parity with the reference model."""
