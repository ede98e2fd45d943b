"""From an fp32 or fp16 artifact to a quantized one."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .artifact_source import ArtifactSource
from .exporter import BytesWritten, Exported, export_checkpoint
from .options import ExportOptions
from .plan import Progress


def quantize_artifact(
    artifact: Path | str,
    output: Path | str,
    options: ExportOptions,
    *,
    variant: str | None = None,
    progress: Progress = lambda line: None,
    on_bytes: BytesWritten = lambda count, total: None,
) -> Exported:
    """Quantize ``artifact``, a folder that was exported with ``precision`` fp32 or fp16, to the folder ``output``.

    It is the same work as exporting the checkpoint with the same options: an fp32 artifact gives the same bytes.
    variant: which of the artifact's precisions to read; None: its first. progress, on_bytes: as in
    ``export_checkpoint``. What quantization changed is measured by ``quality_report``. Raises LfmOnnxError.

    >>> import lfm_onnx
    >>> exported = lfm_onnx.quantize_artifact("lfm", "lfm-q8", lfm_onnx.ExportOptions(precision="q8"))
    >>> exported.nbytes < 2_500_000
    True
    """
    require_quantization(options)
    source = ArtifactSource.open(artifact, variant)
    return export_checkpoint(source, output, options, progress=progress, on_bytes=on_bytes)


def require_quantization(options: ExportOptions) -> None:
    """InputError where ``options`` do not say what to quantize to."""
    if options.precision is None and options.recipe is None and options.budget is None and options.max_kld is None:
        raise InputError(
            '`precision` is not given: say what to quantize to (`precision="q4"`, `precision="q8"` or '
            '`precision="q4f16"`), or give `budget`, `max_kld` or `recipe`'
        )
