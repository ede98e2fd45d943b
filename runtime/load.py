"""Which session runs an exported folder: ONNX Runtime on its graph, or an NPU export by its plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..artifact.artifact import Artifact, Verification
from ..artifact.npu_manifest import TARGET, is_npu_artifact
from ..errors import LfmOnnxError
from .session import open_decoder
from .session_protocol import OpenedSession

if TYPE_CHECKING:
    from .npu.run_options import NpuRunOptions


def open_session(
    folder: str | Path,
    *,
    variant: str | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    context_length: int | None = None,
    native: bool | None = None,
    verify: Verification = "quick",
    target: Literal["cpu", "qnn"] | None = None,
    npu: NpuRunOptions | None = None,
) -> OpenedSession:
    """Open the artifact in ``folder`` and start what runs it; parameters as those of ``LfmModel.load``.

    Raises ArtifactError or InputError.
    """
    if target != "cpu" and _is_for_npu(folder, variant, target, npu):
        # The NPU's code reads graphs with onnx: what runs on the CPU does not wait for its import.
        from .npu.open import open_npu_session
        from .npu.run_options import NpuRunOptions

        options = npu or NpuRunOptions()
        return open_npu_session(
            folder, options, threads=threads, context_length=context_length, native=native, verify=verify
        )
    artifact = Artifact.open(folder, variant, verify=verify)
    return open_decoder(artifact, providers=providers, threads=threads, context_length=context_length, native=native)


def _is_for_npu(folder: str | Path, variant: str | None, target: str | None, npu: NpuRunOptions | None) -> bool:
    """Whether the export for the NPU is to be opened: it is asked for, or all there is."""
    if target == "qnn" or (npu is not None and npu.asks_for_npu):
        return True
    # The plans "auto" and "cpu" take a folder as it is; "auto" looks for an export for the NPU beside the CPU's.
    return _is_npu_folder(folder, variant) or (
        npu is not None and npu.plan == "auto" and _is_npu_folder(folder, TARGET)
    )


def _is_npu_folder(folder: str | Path, variant: str | None) -> bool:
    """Whether ``folder`` (with ``variant``, or its first) is an NPU export; errors are left to the real opening."""
    try:
        return is_npu_artifact(Artifact.open(folder, variant, verify="none"))
    except LfmOnnxError:
        return False
