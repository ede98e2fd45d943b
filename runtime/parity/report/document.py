"""A parity report as a document, HTML or Markdown: verdict first, then plots, then the tables behind them."""

from __future__ import annotations

from pathlib import Path

from ....reporting.file import write_report_file
from ....reporting.markdown import document
from ....reporting.page import Headline, Tile, page
from ....reporting.table import figure
from .contents import ParityReport
from .plots import report_plots
from .tables import checks_table, report_tables, verdict


def write_report(report: ParityReport, path: Path) -> None:
    """Write ``path``, .html or .md as its name says; replaces an older report. Raises InputError, OutputError."""
    write_report_file(path, lambda: html_report(report), lambda: markdown_report(report))


def html_report(report: ParityReport) -> str:
    """The page; InputError where matplotlib is not installed."""
    title = f"Parity {'holds' if report.passed else 'missed'}: {report.identity.get('variant', '')}"
    return page(title, _headline(report), _tiles(report), report_plots(report), report_tables(report))


def markdown_report(report: ParityReport) -> str:
    """The verdict and the tables, without plots."""
    heading = f"Parity: {'passed' if report.passed else 'missed'}"
    return document(heading, f"{report.verdict}.", report_tables(report))


def _headline(report: ParityReport) -> Headline:
    names = report.identity
    lines = [("", f"All {len(report.checks)} checks passed.")]
    missed = [c for c in checks_table(report).rows if c[4] == verdict(False)]
    if missed:
        lines = [
            (name, f"{quantity} {value}, limit {limit}{': ' + detail if detail else ''}")
            for name, quantity, value, limit, _, detail in missed
        ]
    about = (
        f"{names.get('exported from', 'model')} as {names.get('variant', '')}, "
        f"against {names.get('reference', 'the reference')}"
    )
    return Headline(report.passed, "Parity holds" if report.passed else "Parity missed", about, lines)


def _tiles(report: ParityReport) -> list[Tile]:
    m = report.logits
    error = "" if m.kld_standard_error is None else f"± {figure(m.kld_standard_error)} nats"
    tiles = [
        Tile("mean KLD", figure(m.kld_mean), error or "nats"),
        Tile("top-1 agreement", f"{100 * m.top1:.4g}%", f"of {m.tokens:,} positions"),
        Tile("largest difference", figure(m.relative_max_diff), "standard deviations"),
    ]
    if m.perplexity_model is not None and m.perplexity_reference is not None:
        tiles.append(Tile("perplexity", f"{m.perplexity_model:.5g}", f"reference {m.perplexity_reference:.5g}"))
    if report.greedy:
        agreed, tokens = sum(g.agreed for g in report.greedy), sum(g.tokens for g in report.greedy)
        tiles.append(Tile("greedy tokens", f"{100 * agreed / max(tokens, 1):.4g}%", f"{agreed} of {tokens} equal"))
    if report.tasks is not None:
        against = "" if report.reference_tasks is None else f", reference {report.reference_tasks.right}"
        share = f"{100 * report.tasks.accuracy:.4g}%"
        tiles.append(Tile("tasks", share, f"{report.tasks.right} of {report.tasks.tasks} right{against}"))
    return tiles
