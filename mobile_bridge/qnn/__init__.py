"""Compiles exported graphs to context binaries for the Hexagon NPU of chosen chips."""
