"""A quantization report as a document: what was promised and kept, then size, quality, plots and tables."""

from __future__ import annotations

from pathlib import Path

from ...reporting.byte_size import byte_size
from ...reporting.file import write_report_file
from ...reporting.markdown import document
from ...reporting.page import Headline, Tile, page
from ...reporting.table import figure
from .contents import Promise, QuantizationReport
from .plots import report_plots
from .tables import amount, report_tables


def write_report(path: Path, report: QuantizationReport) -> None:
    """Write ``path``, a .html or .md; replaces an older report. Raises InputError, OutputError."""
    write_report_file(path, lambda: html_report(report), lambda: markdown_report(report))


def html_report(report: QuantizationReport) -> str:
    """The page; InputError where matplotlib is not installed."""
    title = f"Quantization: {report.chosen.name if report.chosen else 'variants'}"
    return page(title, _headline(report), _tiles(report), report_plots(report), report_tables(report))


def markdown_report(report: QuantizationReport) -> str:
    """The same figures without plots."""
    headline = _headline(report)
    lines = [f"{name}: {text}" if name else text for name, text in headline.lines]
    return document(f"Quantization: {headline.words}", ". ".join([headline.about, *lines]), report_tables(report))


def _headline(report: QuantizationReport) -> Headline:
    chosen = report.chosen
    words = "Variants measured" if chosen is None else f"{chosen.name}: {byte_size(chosen.bytes)}"
    if not report.kept:
        words = "Promise not kept"
    lines = [(promise.name, _outcome(promise)) for promise in report.promises]
    if not lines and chosen is not None and chosen.kld is not None:
        lines = [("", f"KLD {figure(chosen.kld)} nats on {report.measured_tokens:,} tokens of held-out text.")]
    about = ", ".join(part for part in (report.identity.get("checkpoint"), report.identity.get("method")) if part)
    return Headline(report.kept, words, about, lines)


def _outcome(promise: Promise) -> str:
    value, limit = amount(promise.value, promise.unit), amount(promise.limit, promise.unit)
    return f"{value}, limit {limit}: {'kept' if promise.kept else 'NOT KEPT'}"


def _tiles(report: QuantizationReport) -> list[Tile]:
    tiles = []
    chosen = report.chosen
    if chosen is not None:
        tiles.append(Tile("weights", byte_size(chosen.bytes), f"{chosen.bits_per_weight:.4g} bits per weight"))
        if chosen.kld is not None:
            error = chosen.kld_standard_error
            tiles.append(Tile("mean KLD", figure(chosen.kld), "nats" if error is None else f"± {figure(error)} nats"))
        if chosen.top1 is not None:
            tiles.append(
                Tile("top-1 agreement", f"{100 * chosen.top1:.4g}%", f"of {report.measured_tokens:,} positions")
            )
    if report.experts:
        fell_back, all_experts = (
            sum(len(usage.fell_back) for usage in report.experts),
            sum(len(usage.tokens) for usage in report.experts),
        )
        tiles.append(Tile("experts by search", f"{fell_back:,}", f"of {all_experts:,}, too few tokens for more"))
    if report.seconds:
        memory = report.peak_memory_bytes
        beside = "" if memory is None else f"{byte_size(memory)} of memory"
        tiles.append(Tile("time", f"{report.seconds:,.0f} s", beside))
    return tiles
