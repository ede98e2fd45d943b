"""A parity report as one self-contained HTML page: verdict first, then plots, then the tables behind them."""

from __future__ import annotations

from html import escape

from .report import ParityReport
from .report_plots import Plot, report_plots
from .report_style import STYLE
from .report_tables import Table, checks_table, figure, report_tables, verdict

# Long lists that a reader opens when something is wrong.
_FOLDED = ("Chunks", "Greedy continuations", "Hidden states", "Task accuracy", "Tasks answered wrongly")


def html_report(report: ParityReport) -> str:
    """The page; InputError where matplotlib is not installed."""
    checks, *others = report_tables(report)
    title = f"Parity {'holds' if report.passed else 'missed'}: {report.identity.get('variant', '')}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
            _headline(report),
            _tiles(report),
            f'<section class="plots">{"".join(map(_figure, report_plots(report)))}</section>',
            _table(checks),
            *map(_table, others),
            "</main></body></html>\n",
        ]
    )


def _headline(report: ParityReport) -> str:
    names = report.identity
    passed = sum(c.passed for c in report.checks)
    missed = [c for c in checks_table(report).rows if c[4] == verdict(False)]
    if missed:
        below = "".join(
            f"<li><b>{escape(name)}</b>: {escape(quantity)} {escape(value)}, limit {escape(limit)}"
            f"{': ' + escape(detail) if detail else ''}</li>"
            for name, quantity, value, limit, _, detail in missed
        )
        below = f"<ul>{below}</ul>"
    else:
        below = f"<p>All {passed} checks passed.</p>"
    state, sign, words = ("ok", "✓", "Parity holds") if report.passed else ("missed", "✗", "Parity missed")
    return (
        f'<header class="{state}"><div class="sign" aria-hidden="true">{sign}</div><div><h1>{words}</h1>'
        f'<p class="who">{escape(names.get("exported from", "model"))} as {escape(names.get("variant", ""))}, '
        f"against {escape(names.get('reference', 'the reference'))}</p>{below}</div></header>"
    )


def _tiles(report: ParityReport) -> str:
    m = report.logits
    error = "" if m.kld_standard_error is None else f"± {figure(m.kld_standard_error)} nats"
    tiles = [
        ("mean KLD", figure(m.kld_mean), error or "nats"),
        ("top-1 agreement", f"{100 * m.top1:.4g}%", f"of {m.tokens:,} positions"),
        ("largest difference", figure(m.relative_max_diff), "standard deviations"),
    ]
    if m.perplexity_model is not None and m.perplexity_reference is not None:
        tiles.append(("perplexity", f"{m.perplexity_model:.5g}", f"reference {m.perplexity_reference:.5g}"))
    if report.greedy:
        agreed, tokens = sum(g.agreed for g in report.greedy), sum(g.tokens for g in report.greedy)
        tiles.append(("greedy tokens", f"{100 * agreed / max(tokens, 1):.4g}%", f"{agreed} of {tokens} equal"))
    if report.tasks is not None:
        against = "" if report.reference_tasks is None else f", reference {report.reference_tasks.right}"
        share = f"{100 * report.tasks.accuracy:.4g}%"
        tiles.append(("tasks", share, f"{report.tasks.right} of {report.tasks.tasks} right{against}"))
    cells = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    )
    return f'<section class="tiles">{cells}</section>'


def _figure(plot: Plot) -> str:
    return f"<figure><h2>{escape(plot.title)}</h2>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = []
    for row, mark in zip(table.rows, table.marks, strict=True):
        kind = "" if mark is None else f' class="{"ok" if mark else "missed"}"'
        rows.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    heading = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    body = f'<div class="scroll"><table>{heading}<tbody>{"".join(rows)}</tbody></table></div>'
    if table.title.startswith(_FOLDED):
        return f"<details><summary>{escape(table.title)}</summary>{body}</details>"
    return f"<section><h2>{escape(table.title)}</h2>{body}</section>"
