"""The export for the NPU: from the options as given to a plan of parts, and from the plan to the artifact."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifact.method import Method
from ..artifact.npu_manifest import NPU_MANIFEST_NAME
from ..checkpoint.checkpoint import Checkpoint
from ..errors import InputError
from ..quantize.own_text import writes_own_text
from ..quantize.quantization import calibration_sequences
from .notes import checkpoint_notes
from .npu import NpuOptions, NpuWeights, PartPlan, export_npu

WEIGHTS = {"q4": NpuWeights.INT4, "q8": NpuWeights.INT8}
DEFAULT_PRECISION = "q4"
DEFAULT_METHOD = Method.GPTQ
DEFAULT_CONTEXT = 1024
DEFAULT_CHUNK = 128


@dataclass(frozen=True)
class NpuRequest:
    """The options as they were given; None and () where they were not."""

    output: Path
    precision: str | None = None
    context_lengths: tuple[int, ...] = ()
    chunk: int | None = None
    weight_budget: int | None = None
    memory_budget: int | None = None
    share_experts: bool = False
    headroom: float | None = None
    method: Method | None = None
    threads: int | None = None
    calibration: Path | None = None
    calibration_tokens: int | None = None
    force: bool = False


@dataclass(frozen=True)
class NpuPlan:
    """What will be written, known from the config alone; options: without calibration, which is read for the export."""

    source: Checkpoint
    request: NpuRequest
    precision: str
    options: NpuOptions
    parts: tuple[PartPlan, ...]

    @property
    def output(self) -> Path:
        """The folder that the export goes to."""
        return self.request.output

    @property
    def steps(self) -> int:
        """Of the export: layers to calibrate and parts to write."""
        return self.source.config.num_hidden_layers + len(self.parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """One line on each thing of the checkpoint that is not used, or not as it says."""
        return checkpoint_notes(self.source)

    @property
    def compile_memory(self) -> int:
        """Bytes of host memory that compiling the largest part takes, as a projection."""
        return max(part.compile_memory for part in self.parts)

    @property
    def compile_seconds(self) -> float:
        """Of all parts for one chip, as a projection."""
        return sum(part.compile_seconds for part in self.parts)

    @property
    def binary_bytes(self) -> int:
        """Of the compiled binaries of one chip, as a projection."""
        return sum(part.binary_bytes for part in self.parts)

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that decode reads a token."""
        return sum(part.token_bytes for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the command line prints it. Layers: first and the one behind the last."""
        return {
            "output": str(self.output),
            "target": "qnn",
            "precision": self.precision,
            "weights": self.options.weights.value,
            "method": (Method.GPTQ if self.options.error_feedback else Method.RTN).value,
            "share_experts": self.options.share_experts,
            "chunk": self.options.chunk,
            "context_lengths": list(self.options.context_lengths),
            "notes": list(self.notes),
            "parts": [
                {
                    "index": part.index,
                    "layers": [part.first_layer, part.last_layer],
                    "head": part.head,
                    "weight_bytes": part.weight_bytes,
                    "token_bytes": part.token_bytes,
                    "binary_bytes": part.binary_bytes,
                    "compile_memory_bytes": part.compile_memory,
                    "compile_seconds": part.compile_seconds,
                }
                for part in self.parts
            ],
            "token_bytes": self.token_bytes,
            "binary_bytes": self.binary_bytes,
            "compile_memory_bytes": self.compile_memory,
            "compile_seconds": round(self.compile_seconds, 1),
        }


def plan_npu(source: Checkpoint, request: NpuRequest) -> NpuPlan:
    """Check the request and cut the model into parts; reads no weights. Raises InputError."""
    precision = request.precision or DEFAULT_PRECISION
    if precision not in WEIGHTS:
        raise InputError(f'`target="qnn"` has `precision="q4"` (int4 weights) or q8 (int8), not {precision}')
    method = request.method or DEFAULT_METHOD
    if method is Method.SEARCH:
        raise InputError('`target="qnn"` has `method="gptq"` or rtn, not search')
    longest = source.config.max_position_embeddings
    options = NpuOptions(
        weights=WEIGHTS[precision],
        chunk=request.chunk or min(DEFAULT_CHUNK, longest),
        context_lengths=request.context_lengths or (min(DEFAULT_CONTEXT, longest),),
        memory_budget=request.memory_budget,
        share_experts=request.share_experts,
        headroom=request.headroom,
        error_feedback=method is Method.GPTQ,
        threads=request.threads,
        replace=request.force,
    )
    if request.weight_budget is not None:
        options = replace(options, weight_budget=request.weight_budget)
    options.check(source)
    parts = options.parts(source.config)
    return NpuPlan(source, request, precision, options, tuple(parts))


def run_npu_export(plan: NpuPlan, on_step: Callable[[str], None] = lambda step: None) -> dict[str, Any]:
    """Calibrate and write the artifact; what there is to say of it: model, bytes on disk, seconds.

    on_step: is told of each of ``plan.steps`` steps when it is done.
    """
    started = time.perf_counter()
    options, text = _calibrated(plan)
    export_npu(plan.source, plan.output, options, on_step=on_step)
    return {
        "model": str(plan.output / NPU_MANIFEST_NAME),
        "calibration": text,
        "headroom": options.chosen_headroom,
        "bytes": sum(path.stat().st_size for path in plan.output.rglob("*") if path.is_file()),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _calibrated(plan: NpuPlan) -> tuple[NpuOptions, str]:
    """The options with what calibrates, and the name of that."""
    path, tokens = plan.request.calibration, plan.request.calibration_tokens or plan.options.calibration_tokens
    if path is None and not writes_own_text(plan.source):
        # The export reads the shipped text itself, and leaves more room for what is unlike it.
        return replace(plan.options, calibration_tokens=tokens), "shipped text"
    sequences = calibration_sequences(plan.source, path, tokens)
    return replace(plan.options, calibration=sequences), "own and shipped text" if path is None else str(path)
