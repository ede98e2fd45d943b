"""Who runs the static graphs: the NPU (or its emulator) by Qualcomm's provider, or ONNX Runtime's CPU kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...artifact.artifact import Artifact
from ...artifact.npu_compiled import compiled_graphs, compiled_socs
from ...artifact.npu_manifest import NpuManifest
from ...artifact.npu_parts import NpuGraph
from ...errors import ArtifactError, InputError, LfmOnnxError, reason_of
from ...hardware.chips import DEFAULT_CHIP, chip
from .provider import (
    NpuUnavailable,
    device,
    open_cpu_session,
    open_session,
    versions,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

BACKENDS = ("qnn", "cpu")


class Backend(Protocol):
    """Opens sessions of the graphs of one artifact."""

    name: str
    """As reports say it."""

    def open(self, graph: NpuGraph, model: bytes | None = None) -> InferenceSession:
        """An InferenceSession of ``graph``, or of ``model``, a variant of it. Raises LfmOnnxError."""


class CpuBackend:
    """The quantized graphs on the CPU, computed as they are written: what quantization alone costs."""

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        self._folder, self._threads = artifact.folder, threads
        self.name = "ONNX Runtime CPU, the same quantized graphs"

    def open(self, graph: NpuGraph, model: bytes | None = None) -> InferenceSession:
        """A CPU session of ``graph``, or of ``model``, a variant of it. Raises ArtifactError where it does not load."""
        path = self._folder / graph.file
        try:
            return open_cpu_session(model or path, self._threads, path.parent)
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise ArtifactError(f"{graph.file}: ONNX Runtime cannot load it: {reason_of(error)}") from error


class QnnBackend:
    """The NPU, or the emulator where there is none: compiled binaries where they exist, else compiled at load."""

    def __init__(self, artifact: Artifact, manifest: NpuManifest, soc: str | None = None) -> None:
        """soc: which chip's binaries; None takes what is compiled, or the default chip on the emulator.

        Raises NpuUnavailable without provider or device, ArtifactError for binaries that do not fit.
        """
        self._folder = artifact.folder
        npu = device()
        build = "emulator" if npu.emulator else "device"
        self._share = not npu.emulator
        compiled = compiled_socs(artifact, build)
        chosen = chip(soc).name if soc else (compiled[0] if compiled else None)
        self._compiled: Mapping[str, Path] = {}
        if chosen in compiled:
            self._compiled = compiled_graphs(artifact, manifest, chosen, build, versions())
        elif soc is not None and not npu.emulator:
            raise ArtifactError(
                f"{artifact.folder} holds no binaries for {chosen}: run `lfm-onnx compile {artifact.folder} --soc "
                f"{chosen}` on the machine that exported it"
            )
        self._options = chip(chosen or DEFAULT_CHIP).provider_options if npu.emulator else {}
        target = chip(chosen or DEFAULT_CHIP)
        self.name = f"{npu.name}, {target.title} (v{target.htp_arch})" if npu.emulator or chosen else npu.name
        if not self._compiled:
            self.name += ", compiled at load"

    def open(self, graph: NpuGraph, model: bytes | None = None) -> InferenceSession:
        """An NPU session of ``graph``, from its binary where there is one, or of ``model``, a variant of it.

        Raises ArtifactError where nodes do not run on the NPU, NpuUnavailable where it does not take the graph.
        """
        path = self._folder / graph.file
        compiled = self._compiled.get(graph.file) if model is None else None
        config = {"ep.share_ep_contexts": "1"} if self._share and compiled else {}
        weights = None if compiled else path.parent
        try:
            return open_session(
                model or compiled or path, provider_options=self._options, config=config, weights_folder=weights
            )
        except LfmOnnxError:
            raise
        except Exception as error:  # as above
            text = reason_of(error)
            if "fallback to CPU EP has been explicitly disabled" in text:
                raise ArtifactError(
                    f"{graph.file}: some nodes do not run on the NPU; `lfm-onnx check {self._folder} --target qnn` "
                    "names them"
                ) from error
            raise NpuUnavailable(f"the NPU did not take {graph.file}: {text}") from error


def open_backend(
    kind: str, artifact: Artifact, manifest: NpuManifest, *, soc: str | None = None, threads: int | None = None
) -> Backend:
    """``qnn`` or ``cpu``. Raises InputError for another name, and what the backends raise."""
    if kind == "qnn":
        return QnnBackend(artifact, manifest, soc)
    if kind == "cpu":
        return CpuBackend(artifact, threads)
    raise InputError(f"unknown backend {kind!r}: expected one of {', '.join(BACKENDS)}")
