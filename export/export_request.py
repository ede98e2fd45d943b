"""What `lfm-onnx export` and `lfm-onnx quantize` share: the work from source to artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifact.formats import BlockFormat
from ..artifact.manifest import Manifest
from ..artifact.method import Method
from ..artifact.precision import FP32, PRECISIONS, Q4, Precision
from ..checkpoint.checkpoint import Checkpoint
from ..errors import InputError
from ..hardware.cores import check_threads
from ..quantize.choice import ChosenFormats, choose_formats
from ..quantize.quantization import QuantizationOptions, settle_quantization
from ..quantize.recipe import Recipe, read_recipe
from ..quantize.tensor_groups import Formats, tensor_groups
from .decoder import model_weights
from .exporter import ExportOptions, ExportPlan, export_checkpoint, plan_export
from .ops import OpsProfile
from .output_folder import check_target, output_folder


@dataclass(frozen=True)
class ExportRequest:
    """The shared options as they were given."""

    output: Path
    precision: str | None
    ops: str
    method: Method | None
    block_size: str | None
    scale_dtype: str | None
    zero_points: bool
    calibration: Path | None
    calibration_tokens: int
    budget: int | None
    max_kld: float | None
    recipe: Path | None
    threads: int | None
    context_length: int | None
    tokenizer: bool
    dry_run: bool
    force: bool
    as_json: bool


@dataclass(frozen=True)
class Exported:
    """What a request led to: the plan, the choice of formats if there was one, and the result that is printed."""

    plan: ExportPlan
    chosen: ChosenFormats | None
    result: dict[str, Any]
    seconds: float


def settle(
    source: Checkpoint, request: ExportRequest, progress: Callable[[str], None]
) -> tuple[ExportPlan, ChosenFormats | None]:
    """From options to a plan; measures and chooses formats where a promise asks for it. Raises LfmOnnxError."""
    weights = model_weights(source.config, blocks=True)
    recipe = read_recipe(request.recipe, tensor_groups(weights)) if request.recipe is not None else None
    precision = _precision(request, recipe)
    quantizes = isinstance(precision.weights, BlockFormat)
    _check(request, precision, quantizes)
    own = QuantizationOptions(request.method, request.calibration, request.calibration_tokens, request.threads, recipe)
    options = ExportOptions(
        precision, OpsProfile(request.ops), request.context_length, request.force, request.tokenizer, own
    )
    if not quantizes:
        return plan_export(source, options), None
    if recipe is None:
        # What cannot be exported at all is said before any text is read or written for calibration.
        plain = replace(own, method=Method.RTN, calibration=None)
        plan_export(source, options, settle_quantization(source, weights, precision, plain, tokenizer=False))
    quantization = settle_quantization(source, weights, precision, own, tokenizer=request.tokenizer)
    if quantization.note is not None:
        progress(f"note: {quantization.note}")
    if request.budget is None and request.max_kld is None:
        return plan_export(source, options, quantization), None
    if not request.tokenizer:
        raise InputError("--budget and --max-kld measure on text, which needs a tokenizer: leave out --no-tokenizer")

    def weight_bytes(formats: Formats) -> int:
        return plan_export(source, options, quantization.with_formats(formats)).weight_bytes

    chosen = choose_formats(
        quantization,
        precision,
        budget=request.budget,
        max_kld=request.max_kld,
        weight_bytes=weight_bytes,
        progress=progress,
    )
    return plan_export(source, options, chosen.quantization), chosen


def run_export(
    source: Checkpoint,
    request: ExportRequest,
    progress: Callable[[str], None],
    bytes_written: Callable[[int], AbstractContextManager[Callable[[int], None]]],
) -> Exported:
    """Settle, and unless it is a dry run write the artifact.

    progress: is told what is being done. bytes_written: from the number of all bytes, what counts those written.
    """
    started = time.perf_counter()
    check_threads(request.threads)
    if not request.dry_run:
        check_target(output_folder(request.output), replace=request.force, source=source.folder)
    plan, chosen = settle(source, request, progress)
    if request.dry_run:
        _tell(plan.notes, progress)
        result = {"dry_run": True, "output": str(request.output), **plan.to_dict()}
        return Exported(plan, chosen, result, time.perf_counter() - started)
    with bytes_written(plan.data_bytes) as on_bytes:
        manifest = export_checkpoint(source, request.output, plan.options, on_bytes=on_bytes, plan=plan)
    seconds = time.perf_counter() - started
    _tell(plan.notes, progress)
    return Exported(plan, chosen, _summary(request.output, plan, manifest, seconds), seconds)


def _tell(notes: Sequence[str], progress: Callable[[str], None]) -> None:
    for note in notes:
        progress(f"note: {note}")


def _precision(request: ExportRequest, recipe: Recipe | None) -> Precision:
    if recipe is not None:
        if recipe.precision not in PRECISIONS:
            raise InputError(f"{request.recipe}: precision is {recipe.precision!r:.40}, expected a quantized one")
        base = PRECISIONS[request.precision or recipe.precision]
    elif request.precision is not None:
        base = PRECISIONS[request.precision]
    else:
        base = Q4 if request.budget is not None or request.max_kld is not None else FP32
    block_size = int(request.block_size) if request.block_size else None
    try:
        return base.with_blocks(block_size, request.scale_dtype, zero_points=request.zero_points)
    except ValueError as error:
        raise InputError(str(error)) from None


def _check(request: ExportRequest, precision: Precision, quantizes: bool) -> None:
    given = {
        "--method": request.method,
        "--calibration": request.calibration,
        "--budget": request.budget,
        "--max-kld": request.max_kld,
        "--recipe": request.recipe,
    }
    names = [name for name, value in given.items() if value is not None]
    if names and not quantizes:
        raise InputError(f"{names[0]} is for precisions that store blocks, q4, q8 and q4f16; {precision.name} does not")
    promises = [name for name in ("--budget", "--max-kld") if name in names]
    if promises and request.block_size is not None:
        raise InputError(f"{promises[0]} chooses the block size of each tensor: leave out --block-size")
    blocks = request.block_size is not None or request.scale_dtype is not None or request.zero_points
    if request.recipe is not None and (promises or blocks):
        other = promises[0] if promises else "a block format"
        raise InputError(f"--recipe says the format of every tensor: leave out {other}")


def _summary(output: Path, plan: ExportPlan, manifest: Manifest, seconds: float) -> dict[str, Any]:
    total = sum(file.bytes for file in manifest.files)
    return {
        "output": str(output),
        "model": f"{output / 'onnx' / plan.options.precision.model_file}",
        **plan.to_dict(),
        "parameters": manifest.model.parameters,
        "bytes": total,
        "seconds": round(seconds, 3),
        "seconds_per_gb": round(seconds / (total / 1e9), 3),
    }


def with_context_length(request: ExportRequest, length: int) -> ExportRequest:
    """The request with ``length`` where none was asked for."""
    return request if request.context_length is not None else replace(request, context_length=length)
