"""How to run an NPU export: where its graphs run, and what happens when the NPU is missing or busy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError

PLANS = ("auto", "npu", "hybrid", "cpu")


@dataclass(frozen=True)
class NpuRunOptions:
    """What runs where.

    plan: "npu" runs everything on the NPU (or the emulator), "hybrid" the prompt there and decoding on the CPU's
    kernels, "cpu" everything on the CPU, "auto" takes the NPU where a real one is and the CPU elsewhere.
    backend: "qnn", or "cpu" to run the same quantized graphs on ONNX Runtime's CPU kernels in the NPU's place.
    soc: the chip whose binaries to take. cpu_artifact: folder of the same model exported for the CPU; the variants
    beside the NPU's serve as well. strict: an NPU that fails is an error instead of a reason to go on with the CPU.
    notice: called with one line when something else runs than was asked for; logged by default.
    """

    plan: str = "auto"
    backend: str = "qnn"
    soc: str | None = None
    cpu_artifact: str | Path | None = None
    strict: bool = False
    notice: Callable[[str], None] | None = None

    @property
    def asks_for_npu(self) -> bool:
        """Whether nothing but an export for the NPU can be run as these say."""
        others = (self.soc, self.cpu_artifact)
        return self.plan in ("npu", "hybrid") or self.backend != "qnn" or any(item is not None for item in others)

    def check(self) -> None:
        """InputError for a plan that does not exist."""
        if self.plan not in PLANS:
            raise InputError(f"unknown plan {self.plan!r}: expected one of {', '.join(PLANS)}")
