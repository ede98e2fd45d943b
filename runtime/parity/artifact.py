"""Parity of an artifact's folder with its checkpoint, whatever the artifact runs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ...artifact.artifact import Artifact
from ...checkpoint.checkpoint import Checkpoint
from .compare import compare
from .options import ParityOptions
from .report.contents import ParityReport


def compare_artifact(
    artifact: Path | str,
    checkpoint: Path | str,
    options: ParityOptions | None = None,
    *,
    variant: str | None = None,
    target: Literal["cpu", "qnn"] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> ParityReport:
    """Compare the ``artifact``, an exported folder, with the ``checkpoint`` it came from.

    variant: which of the artifact's precisions; None: its first. target: "qnn" takes the export for the NPU.
    progress is told in lines what is being done. Whether parity holds is the report's
    ``passed``; ``write_report`` makes a document of it. Raises LfmOnnxError where the two cannot be compared.

    >>> import lfm_onnx
    >>> lfm_onnx.compare_artifact("lfm", "tiny_lfm").passed
    True
    """
    opened = Artifact.open(artifact, variant or ("qnn" if target == "qnn" else None))
    return compare(opened, Checkpoint.open(checkpoint, progress=progress), options, progress)
