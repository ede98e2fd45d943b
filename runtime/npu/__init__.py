"""Runs exports for an NPU: the parts as one model, on the NPU, on the compiler's emulator or on the CPU."""
