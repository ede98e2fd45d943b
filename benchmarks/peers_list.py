"""The engines that are compared: how each one's model is made from the checkpoint, and which process runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers_genai
import peers_llama_cpp
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.runtime.native_library import native_status

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Prepared:
    """A model ready to be loaded: the worker's settings, weights read per decoded token, size of all its files."""

    settings: dict[str, Any]
    bytes_per_token: int
    file_bytes: int


@dataclass(frozen=True)
class Peer:
    """One engine. ``missing`` returns what to install, or None; ``prepare`` reuses what is in the work folder."""

    key: str
    name: str
    command: tuple[str, ...]
    missing: Callable[[], str | None]
    prepare: Callable[[Checkpoint, Path, int], Prepared]
    environment: dict[str, str] = field(default_factory=dict)


def _prepare_ours(checkpoint: Checkpoint, work: Path, threads: int) -> Prepared:
    from lfm_onnx.artifact.precision import PRECISIONS
    from lfm_onnx.export import ExportOptions, export_checkpoint
    from lfm_onnx.runtime.inspection import inspect_artifact

    folder = work / "lfm-onnx-q4"
    if not folder.exists():
        tokenizer = (checkpoint.folder / "tokenizer.json").is_file()
        export_checkpoint(checkpoint, folder, ExportOptions(precision=PRECISIONS["q4"], tokenizer=tokenizer))
    found = inspect_artifact(folder)
    return Prepared({"folder": str(folder)}, found.touched_bytes_per_token, found.bytes_on_disk)


def _prepare_genai(checkpoint: Checkpoint, work: Path, threads: int) -> Prepared:
    folder = work / "genai-int4"
    if not folder.exists():
        peers_genai.build(checkpoint.folder, folder)
    size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
    return Prepared({"folder": str(folder)}, peers_genai.touched_bytes_per_token(folder, checkpoint.config), size)


def _prepare_llama_cpp(file_type: str) -> Callable[[Checkpoint, Path, int], Prepared]:
    def prepare(checkpoint: Checkpoint, work: Path, threads: int) -> Prepared:
        from gguf_checkpoint import touched_bytes_per_token, write_gguf

        path, source = work / f"llama-cpp-{file_type}.gguf", work / "llama-cpp-float.gguf"
        if not path.exists():
            if not source.exists():
                write_gguf(checkpoint, source.with_suffix(".part"))
                source.with_suffix(".part").rename(source)
            peers_llama_cpp.quantize(source, path.with_suffix(".part"), file_type, threads)
            path.with_suffix(".part").rename(path)
        if source.exists() and all((work / f"llama-cpp-{other}.gguf").exists() for other in peers_llama_cpp.FILE_TYPES):
            source.unlink()
        return Prepared({"file": str(path)}, touched_bytes_per_token(path, checkpoint.config), path.stat().st_size)

    return prepare


def _native_missing() -> str | None:
    return _NATIVE.note or None


def _genai_missing() -> str | None:
    return None if peers_genai.installed() else peers_genai.INSTALL


def _llama_cpp_missing() -> str | None:
    return None if peers_llama_cpp.installed() else peers_llama_cpp.INSTALL


_OURS = (sys.executable, "-m", "lfm_onnx.runtime.bench.worker")
_GENAI = (sys.executable, str(_HERE / "peers_genai.py"))
_LLAMA_CPP = (sys.executable, str(_HERE / "peers_llama_cpp.py"))
_NATIVE = native_status()

PEERS = (
    Peer("native", f"lfm-onnx q4, {_NATIVE.isa}", _OURS, _native_missing, _prepare_ours),
    Peer("plain", "lfm-onnx q4, no native library", _OURS, lambda: None, _prepare_ours, {"LFM_ONNX_NATIVE": "0"}),
    Peer("genai", "onnxruntime-genai int4", _GENAI, _genai_missing, _prepare_genai),
    *(
        Peer(file_type.lower(), f"llama.cpp {file_type}", _LLAMA_CPP, _llama_cpp_missing, _prepare_llama_cpp(file_type))
        for file_type in peers_llama_cpp.FILE_TYPES
    ),
)
