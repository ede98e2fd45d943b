"""Checkpoint to graph: declares the model in ONNX and streams its weights into an artifact."""
