"""Qualcomm's execution provider for ONNX Runtime: finding it, its versions, and sessions on it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifact.npu_compiled import Versions
from ...errors import LfmOnnxError, reason_of
from .windows_catalog import register_catalog

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtEpDevice, SessionOptions

PROVIDER = "QNNExecutionProvider"
PACKAGE = "onnxruntime-qnn"
_OLDEST_ONNXRUNTIME = (1, 24, 2)
_LOG_FATAL_ONLY = 4

COMPILE_OPTIONS = {
    "backend_type": "htp",
    "htp_graph_finalization_optimization_mode": "3",
    # The graphs' own inputs and outputs are quantized: nothing is left for the CPU to do at the border.
    "offload_graph_io_quantization": "0",
    # int4 blocks whose scales are k/16 of the channel's run as integers, not as float16 after dequantization.
    "enable_block_quant_weight_optimization": "1",
}
"""Provider options of every session, beside those of the chip."""


class NpuUnavailable(LfmOnnxError):
    """The NPU, or what is needed to use it, is not there or does not answer."""


@dataclass(frozen=True)
class NpuDevice:
    """Where sessions run. ``emulator``: a CPU that computes what the NPU would, bit by bit and slowly."""

    name: str
    emulator: bool
    handle: OrtEpDevice


@functools.cache
def versions() -> Versions:
    """Those of the provider in use. NpuUnavailable without one."""
    import onnxruntime

    handle = device().handle
    try:
        package = _package()
        provider = importlib.metadata.version(PACKAGE)
        qairt = str(getattr(package.build_and_package_info, "qnn_version", "unknown"))
    except (NpuUnavailable, importlib.metadata.PackageNotFoundError):  # Windows ML's own provider
        provider, qairt = str(handle.ep_metadata.get("version", "unknown")), "unknown"
    return Versions(onnxruntime.__version__, provider, qairt)


@functools.cache
def device() -> NpuDevice:
    """The NPU of this machine, or else the emulator; NpuUnavailable where neither is there.

    On Windows the provider of Windows ML's catalog serves as well as the package.
    """
    import onnxruntime

    if _numbers(onnxruntime.__version__) < _OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, _OLDEST_ONNXRUNTIME))
        raise NpuUnavailable(
            f"the NPU needs onnxruntime {oldest} or later, found {onnxruntime.__version__}: update onnxruntime"
        )
    devices = _devices()
    if not devices:
        register_catalog()
        devices = _devices()
    if not devices:
        package = _package()
        try:
            onnxruntime.register_execution_provider_library(PROVIDER, package.get_library_path())
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise NpuUnavailable(f"{PACKAGE} does not load: {reason_of(error)}; reinstall it") from error
        devices = _devices()
    npus = [item for item in devices if item.device.type == onnxruntime.OrtHardwareDeviceType.NPU]
    cpus = [item for item in devices if item.device.type == onnxruntime.OrtHardwareDeviceType.CPU]
    if npus:
        return NpuDevice(f"NPU, {npus[0].device.vendor or 'Qualcomm'}", False, npus[0])
    if cpus:
        return NpuDevice("the compiler's emulator on this CPU", True, cpus[0])
    raise NpuUnavailable(f"{PACKAGE} finds neither an NPU nor its emulator on this machine")


def open_session(
    model: Path | bytes,
    *,
    provider_options: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    fallback: bool = False,
    log_severity: int = _LOG_FATAL_ONLY,
    weights_folder: Path | None = None,
) -> InferenceSession:
    """An InferenceSession on the NPU or its emulator.

    provider_options: beside COMPILE_OPTIONS. config: session configuration entries. fallback: nodes that the NPU does
    not take go to the CPU, else the model is refused. weights_folder: where a model given as bytes has its weights.
    Raises what ONNX Runtime raises, NpuUnavailable without the
    provider.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = log_severity
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if fallback else "1")
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    options.add_provider_for_devices([device().handle], {**COMPILE_OPTIONS, **(provider_options or {})})
    _set_weights_folder(options, weights_folder)
    with _stdout_on_stderr():
        return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options)


def open_cpu_session(
    model: Path | bytes, threads: int | None = None, weights_folder: Path | None = None
) -> InferenceSession:
    """The same quantized graph on ONNX Runtime's CPU kernels, each Quantize and Dequantize computed as it stands."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    options.intra_op_num_threads = threads or 0
    # Fused integer kernels would round differently from the graph, which is what the NPU is compared with.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    _set_weights_folder(options, weights_folder)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """The emulator greets on standard output, which belongs to the program's results."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # there is no standard output
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _set_weights_folder(options: SessionOptions, folder: Path | None) -> None:
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))


def _devices() -> list[OrtEpDevice]:
    import onnxruntime

    return [item for item in onnxruntime.get_ep_devices() if item.ep_name == PROVIDER]


def _package() -> Any:
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise NpuUnavailable(
            f"{PACKAGE} is not installed: it holds the NPU's compiler and emulator; pip install {PACKAGE}"
        ) from error
    return onnxruntime_qnn


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())
