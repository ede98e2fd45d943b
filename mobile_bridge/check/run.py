"""Chooses the check of a target: one function per target, one file each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...artifact.artifact import Artifact
from ...artifact.npu_manifest import is_npu_artifact
from ...errors import InputError
from .result import CheckReport


def run_check(
    folder: str | Path,
    target: str,
    *,
    variant: str | None = None,
    soc: str | None = None,
    every_context: bool = False,
    reference: str | None = None,
    interpreter: Path | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> CheckReport:
    """Check the artifact in ``folder`` for ``target``. Raises LfmOnnxError where that cannot be done."""
    artifact = Artifact.open(folder, variant or ("qnn" if target == "qnn" else None))
    if target == "qnn":
        from .qnn import check_qnn

        return check_qnn(artifact, soc=soc, every_context=every_context, progress=progress)
    if is_npu_artifact(artifact):
        raise InputError(f"{folder} is an export for the Qualcomm NPU: {target} needs one for the CPU")
    if target == "openvino":
        from .openvino import check_openvino

        return check_openvino(artifact, reference=reference, interpreter=interpreter, progress=progress)
    if target == "windows-ml":
        from .windows_ml import check_windows_ml

        return check_windows_ml(artifact, reference=reference, interpreter=interpreter, progress=progress)
    if target == "nnapi":
        from .nnapi import check_nnapi

        return check_nnapi(artifact)
    if target == "xnnpack":
        from .xnnpack import check_xnnpack

        return check_xnnpack(artifact)
    raise InputError(f"unknown target {target!r}")
