"""The quantized models whose quality is compared: how each is made from the checkpoint, and what it weighs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import peers_genai
import peers_llama_cpp
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from model_sizes import Size, gguf_size, onnx_size
from quality_engines import Genai, LlamaCpp, OpenEngine, open_ours

OURS = "lfm-onnx"
LLAMA_CPP = "llama.cpp"
GENAI = "onnxruntime-genai"
FLOAT = "llama-f32"
"""Key of the variant that must agree with the reference: the same weights in float32 through llama.cpp."""

BUDGET_OF = "llama-q4_k_m"
"""Key of the variant whose bytes are the budget of our mixed precision."""

_PLAIN = "ours-q4-rtn"
_SPARE = 8 << 10
"""Graphs of mixed precision are a little larger than that of ``_PLAIN``."""


@dataclass(frozen=True)
class Source:
    """What every variant is made from: calibration text (None: what ships with lfm-onnx) and tokens taken of it."""

    checkpoint: Checkpoint
    work: Path
    threads: int
    calibration: Path | None
    calibration_tokens: int
    sequences: list[npt.NDArray[np.int64]]
    """The calibration text as our methods get it."""

    def path(self, key: str) -> Path:
        return self.work / key


@dataclass(frozen=True)
class Variant:
    """One model. ``make`` writes it to a path; ``needs`` are variants to be made before."""

    key: str
    engine: str
    name: str
    make: Callable[[Source, Path], None]
    open: OpenEngine
    size: Callable[[Path], Size]
    needs: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """What to install, or None."""
        if self.engine == LLAMA_CPP and not peers_llama_cpp.installed():
            return str(peers_llama_cpp.INSTALL)
        if self.engine == GENAI and not peers_genai.installed():
            return str(peers_genai.INSTALL)
        return None


def _ours(key: str, name: str, *options: str, calibrated: bool = True, budget: bool = False) -> Variant:
    def make(source: Source, target: Path) -> None:
        command = [sys.executable, "-m", "lfm_onnx", "export", str(source.checkpoint.folder), "-o", str(target)]
        command += ["--threads", str(source.threads), *options]
        if calibrated:
            command += ["--calibration-tokens", str(source.calibration_tokens)]
            command += ["--calibration", str(source.calibration)] if source.calibration is not None else []
        if budget:
            command += ["--budget", str(_budget(source))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "export failed")

    return Variant(key, OURS, name, make, open_ours, onnx_size, (BUDGET_OF, _PLAIN) if budget else ())


def _budget(source: Source) -> int:
    """Bytes of weights with which our files are no larger than Q4_K_M's: its size less that of our graph."""
    plain = onnx_size(source.path(_PLAIN))
    result: int = gguf_size(source.path(BUDGET_OF)).file_bytes - (plain.file_bytes - plain.tensor_bytes) - _SPARE
    return result


def _llama(key: str, file_type: str, *, importance: bool = False) -> Variant:
    def make(source: Source, target: Path) -> None:
        from gguf_checkpoint import write_gguf
        from llama_cpp_importance import importance_matrix

        plain = source.path("llama-stored")
        if not plain.exists():
            write_gguf(source.checkpoint, plain.with_suffix(".part"))
            plain.with_suffix(".part").rename(plain)
        matrix = importance_matrix(source.checkpoint, source.sequences) if importance else None
        peers_llama_cpp.quantize(plain, target, file_type, source.threads, matrix)

    name = file_type + (" + importance matrix" if importance else "")
    return Variant(key, LLAMA_CPP, name, make, LlamaCpp, gguf_size)


def _genai(source: Source, target: Path) -> None:
    peers_genai.build(source.checkpoint.folder, target, all_logits=True)


VARIANTS = (
    _llama(FLOAT, "F32"),
    _llama("llama-q4_0", "Q4_0"),
    _llama("llama-q4_0-imatrix", "Q4_0", importance=True),
    _llama(BUDGET_OF, "Q4_K_M"),
    _llama("llama-q4_k_m-imatrix", "Q4_K_M", importance=True),
    _llama("llama-q6_k", "Q6_K"),
    _llama("llama-q8_0", "Q8_0"),
    Variant("genai-int4", GENAI, "int4, blocks of 32", _genai, Genai, onnx_size),
    _ours(_PLAIN, "q4, round to nearest", "--precision", "q4", "--method", "rtn", calibrated=False),
    _ours("ours-q4", "q4, default method", "--precision", "q4"),
    _ours("ours-q4-gptq", "q4, GPTQ", "--precision", "q4", "--method", "gptq"),
    _ours("ours-mixed", "mixed, file of Q4_K_M's size", "--precision", "q4", budget=True),
    _ours(
        "ours-mixed-gptq", "mixed, file of Q4_K_M's size, GPTQ", "--precision", "q4", "--method", "gptq", budget=True
    ),
    _ours("ours-q8", "q8", "--precision", "q8", calibrated=False),
)
