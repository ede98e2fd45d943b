"""Measures an artifact's speed and memory, each figure in a process of its own."""
