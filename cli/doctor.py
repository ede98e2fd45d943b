"""The command doctor: what runs here, on which kernels, with how much of the machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import click

from .. import __version__
from ..hardware.cores import usable_processors
from ..hardware.memory import available_memory_bytes, total_memory_bytes
from ..reporting.byte_size import byte_size
from ..runtime.native_library import native_status
from .options import json_option
from .output import print_json, print_line

_PACKAGES = ("onnxruntime", "onnx", "numpy", "onnxruntime-genai", "onnxruntime-qnn", "transformers", "torch")


def diagnose() -> dict[str, Any]:
    """Versions, native library, threads, memory in bytes (None where the system does not tell) and providers."""
    status = native_status()
    return {
        "lfm_onnx": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": _versions(),
        "native": {
            "library": str(status.path) if status.path else None,
            "version": status.version,
            "isa": status.isa,
            "available_isas": list(status.available),
            "refused": status.refused,
            "note": status.note,
        },
        "threads": usable_processors(),
        "memory_bytes": total_memory_bytes(),
        "available_memory_bytes": available_memory_bytes(),
        "providers": _providers(),
        "telemetry": _telemetry(),
    }


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say which versions, kernels, threads, memory and execution providers this machine has for lfm-onnx."""
    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis, indent=2)
        return
    native = diagnosis["native"]
    if native["isa"]:
        choices = ", ".join(native["available_isas"])
        kernels = f"{native['isa']} (this machine can run: {choices}); LFM_OPS_ISA chooses"
    else:
        kernels = "ONNX Runtime's own"
    lines = [
        ("lfm-onnx", diagnosis["lfm_onnx"]),
        ("python", f"{diagnosis['python']}, {diagnosis['platform']}"),
        *((name, version or "not installed") for name, version in diagnosis["packages"].items()),
        ("native library", native["library"] or "none"),
        ("kernels", kernels),
        *([("kernels not used", native["refused"])] if native["refused"] else []),
        *([("note", native["note"])] if native["note"] else []),
        *([("note", f"the library is of version {native['version']}: reinstall")] if _outdated(native) else []),
        ("threads", str(diagnosis["threads"])),
        ("memory", _memory_text(diagnosis["memory_bytes"], diagnosis["available_memory_bytes"])),
        ("providers", ", ".join(diagnosis["providers"]) or "none"),
        ("telemetry", diagnosis["telemetry"]),
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print_line(f"{name:<{width}}  {value}")


def _telemetry() -> str:
    """Whether ONNX Runtime may report to its maker; this package turns it off unless the variable is set."""
    value = os.environ.get("ORT_DISABLE_TELEMETRY", "")
    state = "off" if value not in ("", "0") else "as ONNX Runtime has it"
    return f"{state} (ORT_DISABLE_TELEMETRY={value})"


def _outdated(native: dict[str, Any]) -> bool:
    return native["version"] not in (None, "unknown", __version__)


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _memory_text(total: int | None, available: int | None) -> str:
    if total is None:
        return "unknown"
    return byte_size(total) + (f", {byte_size(available)} free" if available is not None else "")
