"""The report of ``quantize_artifact``: what was written, and other ways to store the same weights beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ..artifact.formats import BlockFormat
from ..artifact.method import Method
from ..hardware.memory import peak_rss_bytes
from ..quantize.choice import HeldOutText
from ..quantize.quantization import Quantization
from ..quantize.report.contents import ExpertUsage, Promise, QuantizationReport, TensorResult, VariantResult
from ..quantize.tensor_groups import TensorGroup, same_format
from .exporter import Exported
from .plan import Progress, lay_out


def quality_report(exported: Exported, progress: Progress) -> QuantizationReport:
    """Measure the written variant and those to compare it with on held-out text, and gather what is known of tensors.

    Without a tokenizer nothing is measured.
    """
    plan = exported.plan
    quantization = plan.quantization
    assert quantization is not None
    text = None
    if plan.options.tokenizer:
        progress("the original on held-out text")
        text = HeldOutText(quantization)
    variants = [_original(quantization)]
    for name, other in _variants(quantization):
        progress(f"{name} on held-out text")
        variants.append(_measured(exported, name, other, text))
    recipe = quantization.recipe
    reports = quantization.tensor_reports()
    groups = quantization.groups
    return QuantizationReport(
        identity={
            "artifact": str(exported.output),
            "precision": plan.precision.name,
            "method": recipe.method.value,
            "calibration": "none" if recipe.calibration is None else str(quantization.calibration or "default text"),
        },
        variants=tuple(variants),
        tensors=tuple(_tensor(exported, group, reports) for group in groups),
        experts=tuple(_expert_usage(groups, reports)),
        promises=tuple(_promises(exported)),
        calibration_tokens=sum(map(len, quantization.sequences or ())) if recipe.calibration is not None else 0,
        measured_tokens=0 if text is None else len(text.original),
        seconds=exported.seconds,
        peak_memory_bytes=peak_rss_bytes(),
    )


def _variants(written: Quantization) -> Iterator[tuple[str, Quantization]]:
    """What was written first, then plain rounding to the same formats, and 4 and 8 bits throughout."""
    recipe = written.recipe
    yield f"{recipe.precision} {recipe.method}", written
    seen = {(recipe.method, tuple(recipe.formats.items()))}
    uniform = [(f"q{bits} rtn", same_format(written.groups, BlockFormat(bits))) for bits in (4, 8)]
    for name, formats in [("the same formats, rtn", recipe.formats), *uniform]:
        key = (Method.RTN, tuple(formats.items()))
        if key not in seen:
            seen.add(key)
            yield name, written.with_formats(formats, Method.RTN)


def _original(quantization: Quantization) -> VariantResult:
    checkpoint = quantization.checkpoint
    nbytes = sum(4 * checkpoint.nbytes(name) // _ITEM_BYTES[checkpoint.dtype(name)] for name in checkpoint.names())
    return VariantResult("fp32", None, "float32", nbytes, 32.0, kld=0.0, kld_standard_error=0.0, top1=1.0)


_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def _measured(exported: Exported, name: str, quantization: Quantization, text: HeldOutText | None) -> VariantResult:
    plan, formats = exported.plan, quantization.recipe.formats
    started = time.perf_counter()
    divergence = None if text is None else text.measure(quantization)
    groups = quantization.groups
    bits = 8 * sum(group.nbytes(formats[group.name]) for group in groups) / sum(group.parameters for group in groups)
    names = {fmt.name for fmt in formats.values()}
    return VariantResult(
        name,
        quantization.recipe.method,
        names.pop() if len(names) == 1 else "mixed",
        lay_out(plan.checkpoint, plan.options, plan.precision, quantization).weight_bytes,
        bits,
        kld=None if divergence is None else divergence.kld,
        kld_standard_error=None if divergence is None else divergence.standard_error,
        top1=None if divergence is None else divergence.top1,
        chosen=quantization is plan.quantization,
        seconds=time.perf_counter() - started,
    )


def _tensor(exported: Exported, group: TensorGroup, reports: dict[str, dict[str, Any]]) -> TensorResult:
    assert exported.plan.quantization is not None
    recipe = exported.plan.quantization.recipe
    fmt = recipe.formats[group.name]
    nbytes = group.nbytes(fmt)
    known = [reports[weight.name] for weight in group.weights if weight.name in reports]
    return TensorResult(
        group.name,
        group.kind.value,
        group.layer,
        fmt.name,
        8 * nbytes / group.parameters,
        nbytes,
        group.parameters,
        recipe.method,
        error=_largest(known, "relative_error"),
        round_to_nearest_error=_largest(known, "round_to_nearest_error"),
        sensitivity=None if exported.plan.chosen is None else exported.plan.chosen.effect(group.name),
    )


def _largest(reports: list[dict[str, Any]], key: str) -> float | None:
    return max((report[key] for report in reports if key in report), default=None)


def _expert_usage(groups: list[TensorGroup], reports: dict[str, dict[str, Any]]) -> Iterator[ExpertUsage]:
    for group in groups:
        known = [reports.get(weight.name, {}) for weight in group.weights]
        tokens = next((report["expert_tokens"] for report in known if "expert_tokens" in report), None)
        if group.layer is None or tokens is None:
            continue
        fallbacks = {expert: reason for report in known for expert, reason in report.get("fallbacks", {}).items()}
        fell_back = tuple(sorted(int(expert) for expert in fallbacks if expert != "all"))
        yield ExpertUsage(group.layer, tuple(tokens), fell_back, "; ".join(sorted(set(fallbacks.values()))[:3]))


def _promises(exported: Exported) -> Iterator[Promise]:
    assert exported.plan.quantization is not None
    choice = exported.plan.quantization.recipe.choice
    if choice is None:
        return
    if choice.budget is not None:
        yield Promise("budget", float(exported.plan.weight_bytes), float(choice.budget), "bytes")
    if choice.max_kld is not None and choice.kld is not None:
        yield Promise("max_kld", choice.kld, choice.max_kld, "nats")
