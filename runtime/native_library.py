"""Finds the native library of the ai.liquid ops, and asks it which instruction set it uses."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, InputError, reason_of

_NAMES = {"win32": "lfm_ops.dll", "darwin": "liblfm_ops.dylib"}


@dataclass(frozen=True)
class NativeStatus:
    """What ``native_status`` found.

    path: the library that sessions will use, None without one. isa: name of the kernels in use (such as avx512vnni).
    available: names of those that this CPU can run, the best first. refused: why kernels that the CPU has instructions
    for are not among them, empty where all are. version: of the package it was built from.
    note: why there is no library, or what is wrong with it; empty when all is well.
    """

    path: Path | None
    isa: str | None = None
    available: tuple[str, ...] = ()
    refused: str = ""
    version: str | None = None
    note: str = ""


def ops_library_path() -> Path | None:
    """The library to give to ``SessionOptions.register_custom_ops_library``; None to run on ONNX Runtime's kernels.

    None where the package was installed without it, and where the environment variable LFM_ONNX_NATIVE is 0.
    """
    return _library_file() if _is_enabled() and _library_file().is_file() else None


def register_native_ops(options: Any, providers: Sequence[str], native: bool | None = None) -> None:
    """Give a session's ``options`` the native library, where it is there and the session runs on the CPU alone.

    A custom-op library holds CPU kernels: beside another provider the ops' definitions run there instead. native:
    False goes without, True raises InputError where there is no library. ArtifactError where ONNX Runtime refuses it.
    """
    path = ops_library_path() if native is not False else None
    if native and path is None:
        raise InputError(f"no native library: {native_status().note}")
    if path is None or list(providers) != ["CPUExecutionProvider"]:
        return
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime has a dozen exception types without a common base
        raise ArtifactError(
            f"{path}: ONNX Runtime refuses the native library: {reason_of(error)}; run without it: `native=False`"
        ) from error


def native_status() -> NativeStatus:
    """Which library and which kernels sessions would use. Raises nothing: what is wrong is in ``note``."""
    if not _is_enabled():
        return NativeStatus(None, note="switched off by LFM_ONNX_NATIVE=0")
    path = ops_library_path()
    if path is None:
        return NativeStatus(None, note="not built: install this package where a C++17 compiler is found")
    try:
        library = ctypes.CDLL(str(path))
        isa = _text(library, "lfm_ops_isa")
        available = tuple((_text(library, "lfm_ops_available_isas") or "").split(","))
        # A library of an older version, which doctor reports, does not say it.
        refused = (_text(library, "lfm_ops_refused_isas") or "") if hasattr(library, "lfm_ops_refused_isas") else ""
        version = _text(library, "lfm_ops_version")
    except (OSError, AttributeError) as error:
        return NativeStatus(path, note=f"cannot be loaded: {' '.join(str(error).split())}")
    note = ""
    if isa is None:
        forced = os.environ.get("LFM_OPS_ISA", "")
        note = f"LFM_OPS_ISA is {forced!r}, which this CPU does not have: choose from {', '.join(available)}"
    return NativeStatus(path, isa, available, refused, version, note)


def _is_enabled() -> bool:
    return os.environ.get("LFM_ONNX_NATIVE", "") != "0"


def _library_file() -> Path:
    return Path(__file__).parent / "native" / _NAMES.get(sys.platform, "liblfm_ops.so")


def _text(library: ctypes.CDLL, function: str) -> str | None:
    call = getattr(library, function)
    call.restype = ctypes.c_char_p
    text: bytes | None = call()
    return text.decode() if text is not None else None
