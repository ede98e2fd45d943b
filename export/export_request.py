"""What `lfm-onnx export` and `lfm-onnx quantize` share: their options, and the work from source to artifact."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from ..artifact.formats import SCALE_DTYPES, BlockFormat
from ..artifact.precision import FP32, PRECISIONS, Q4, Precision
from ..checkpoint.checkpoint import Checkpoint
from ..cli.progress import byte_progress
from ..errors import InputError
from ..quantize.calibration_text import DEFAULT_CALIBRATION_TOKENS
from ..quantize.choice import ChosenFormats, choose_formats
from ..quantize.methods import Method
from ..quantize.quantization import QuantizationOptions, settle_quantization
from ..quantize.recipe import METHODS, Recipe, read_recipe
from ..quantize.tensor_groups import Formats, tensor_groups
from .exporter import ExportOptions, ExportPlan, export_checkpoint, plan_export
from .ops import BodyStyle
from .staging import check_target

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


class Size(click.ParamType):
    """A number of bytes, such as 4.8GB or 300MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value))
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is no size: expected such as 4.8GB, 300MB or 1GiB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


class ContextLengths(click.ParamType):
    """One or more numbers of positions, separated by commas."""

    name = "lengths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) >= 1 for part in parts):
            self.fail(f"{value!r}: expected numbers of positions from 1 on, such as 1024 or 1024,4096", param, ctx)
        return tuple(map(int, parts))


_FILE = click.Path(path_type=Path)

_OPTIONS = (
    click.option("-o", "--output", type=_FILE, required=True, help="Folder to write."),
    click.option("--precision", type=click.Choice(list(PRECISIONS)), help="[default: fp32; q4 with a promise]"),
    click.option(
        "--ops",
        type=click.Choice([style.value for style in BodyStyle]),
        default=BodyStyle.CUSTOM.value,
        show_default=True,
        help="custom: with ONNX Runtime's contrib ops, fastest there; standard: ai.onnx alone, for any runtime.",
    ),
    click.option("--method", type=click.Choice(METHODS), help="How blocks are made [default: the precision's best]."),
    click.option("--block-size", type=click.Choice(["32", "64", "128"]), help="Weights per scale [default: 32]."),
    click.option("--scale-dtype", type=click.Choice(SCALE_DTYPES), help="Type of the scales [default: float16]."),
    click.option("--zero-points", is_flag=True, help="Store a zero point per block."),
    click.option(
        "--calibration",
        type=_FILE,
        help="Text that calibrates: .txt, .jsonl, or a folder of them [default: text in many languages].",
    ),
    click.option(
        "--calibration-tokens",
        type=click.IntRange(min=32),
        default=DEFAULT_CALIBRATION_TOKENS,
        show_default=True,
        help="Most tokens of it.",
    ),
    click.option("--budget", type=Size(), metavar="SIZE", help="Choose bits by tensor: at most SIZE, such as 4.8GB."),
    click.option("--max-kld", type=click.FloatRange(min=0, min_open=True), help="Choose bits by tensor: KLD in nats."),
    click.option("--recipe", type=_FILE, help="Bits by tensor from a recipe, or from an artifact's manifest."),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads; bytes do not depend on them."),
    click.option("--tokenizer/--no-tokenizer", default=True, help="Require and copy the tokenizer files."),
    click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing."),
    click.option("--force", is_flag=True, help="Replace an artifact that stands in the output folder."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
)


def export_options(command: Command) -> Command:
    """Declare the shared options on a click command; they and context_length are the fields of ``ExportRequest``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class ExportRequest:
    """The shared options as they were given."""

    output: Path
    precision: str | None
    ops: str
    method: str | None
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


def settle(source: Checkpoint, request: ExportRequest) -> tuple[ExportPlan, ChosenFormats | None]:
    """From options to a plan; measures and chooses formats where a promise asks for it. Raises LfmOnnxError."""
    recipe = read_recipe(request.recipe, source.config) if request.recipe is not None else None
    precision = _precision(request, recipe)
    quantizes = isinstance(precision.weights, BlockFormat)
    _check(request, precision, quantizes)
    own = QuantizationOptions(request.method, request.calibration, request.calibration_tokens, request.threads, recipe)
    options = ExportOptions(
        precision, BodyStyle(request.ops), request.context_length, request.force, request.tokenizer, own
    )
    if not quantizes:
        return plan_export(source, options), None
    if recipe is None:
        # What cannot be exported at all is said before any text is read or written for calibration.
        plain = replace(own, method=Method.RTN.value, calibration=None)
        plan_export(source, options, settle_quantization(source, precision, plain, tokenizer=False))
    quantization = settle_quantization(source, precision, own, tokenizer=request.tokenizer)
    if quantization.note is not None:
        click.echo(f"note: {quantization.note}", err=True)
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
        progress=lambda line: click.echo(line, err=True),
    )
    return plan_export(source, options, chosen.quantization), chosen


def end_like_an_interrupt() -> None:
    """From now on a plain kill ends like Ctrl-C: finished files stay for the next run."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def run_export(source: Checkpoint, request: ExportRequest) -> Exported:
    """Settle, and unless it is a dry run write the artifact."""
    end_like_an_interrupt()
    started = time.perf_counter()
    if not request.dry_run:
        check_target(request.output.absolute(), replace=request.force)
    plan, chosen = settle(source, request)
    if request.dry_run:
        result = {"dry_run": True, "output": str(request.output), **plan.to_dict()}
        return Exported(plan, chosen, result, time.perf_counter() - started)
    with byte_progress("Exporting", plan.data_bytes) as on_bytes:
        manifest = export_checkpoint(source, request.output, plan.options, on_bytes=on_bytes, plan=plan)
    seconds = time.perf_counter() - started
    return Exported(plan, chosen, _summary(request.output, plan, manifest, seconds), seconds)


def print_result(exported: Exported, *, as_json: bool) -> None:
    """To stdout."""
    click.echo(json.dumps(exported.result, indent=2) if as_json else _text(exported))
    sys.stdout.flush()


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


def _summary(output: Path, plan: ExportPlan, manifest: dict[str, Any], seconds: float) -> dict[str, Any]:
    total = sum(file["bytes"] for file in manifest["files"])
    return {
        "output": str(output),
        "model": f"{output / 'onnx' / plan.options.precision.model_file}",
        **plan.to_dict(),
        "parameters": manifest["model"]["parameters"],
        "bytes": total,
        "seconds": round(seconds, 3),
        "seconds_per_gb": round(seconds / (total / 1e9), 3),
    }


def _text(exported: Exported) -> str:
    result = exported.result
    state = sum(result["state_bytes"].values())
    lines = [
        f"{'would write' if result.get('dry_run') else 'wrote'} {result['output']}: {result['precision']}, "
        f"{result['ops']} ops, {result['data_bytes'] / 1e6:.1f} MB of weights in {len(result['data_files'])} file(s)",
        f"context {result['context_length']} tokens, {state / 1e6:.1f} MB of state at that length",
        *_quantization_lines(exported),
    ]
    if "seconds" in result:
        lines.append(
            f"{result['parameters'] / 1e6:.1f} M parameters in {result['seconds']:.1f} s "
            f"({result['seconds_per_gb']:.2f} s per GB written)"
        )
    return "\n".join(lines)


def _quantization_lines(exported: Exported) -> list[str]:
    quantization, chosen = exported.plan.quantization, exported.chosen
    if quantization is None:
        return []
    text = quantization.recipe.calibration
    calibrated = "not calibrated" if text is None else f"calibrated on up to {text.tokens} tokens"
    lines = [f"method {quantization.recipe.method}, {calibrated}"]
    if chosen is None:
        return lines
    if chosen.measured is not None:
        found = chosen.measured
        lines.append(f"KLD {found.kld:.3g} nats (± {found.standard_error:.1g}) on {found.tokens} held-out tokens")
    for group in tensor_groups(quantization.checkpoint.config):
        fmt = quantization.recipe.formats[group.name]
        effect = chosen.effect(group.name)
        cost = "" if effect is None else f"  {effect:9.2e} nats"
        lines.append(f"  {group.name:50} {fmt.bits} bits, blocks of {fmt.block_size:3}{cost}")
    return lines


def with_context_length(request: ExportRequest, length: int) -> ExportRequest:
    """The request with ``length`` where none was asked for."""
    return request if request.context_length is not None else replace(request, context_length=length)
