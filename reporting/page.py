"""A report as one self-contained HTML page: verdict first, then the most important figures, plots, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .plot import Plot
from .style import STYLE
from .table import Table

_SHORT = 24


@dataclass(frozen=True)
class Headline:
    """The verdict: whether it is good, its few words, what it is about, and lines below, each maybe after a name."""

    good: bool
    words: str
    about: str
    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Tile:
    """One figure that everybody looks for: what it is, the figure, and its unit or what it compares with."""

    name: str
    value: str
    note: str


def page(title: str, headline: Headline, tiles: Sequence[Tile], plots: Sequence[Plot], tables: Sequence[Table]) -> str:
    """The whole document. All texts may hold anything; only the plots' SVG is taken as it is."""
    places = {table.title: f"table-{number}" for number, table in enumerate(tables, 1)}
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
            _headline(headline),
            f'<section class="tiles">{"".join(map(_tile, tiles))}</section>',
            f'<section class="plots">{"".join(_figure(plot, places.get(plot.table)) for plot in plots)}</section>',
            *(_table(table, places[table.title]) for table in tables),
            "</main></body></html>\n",
        ]
    )


def _headline(headline: Headline) -> str:
    state, sign = ("ok", "✓") if headline.good else ("missed", "✗")
    named = "".join(f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in headline.lines if name)
    plain = "".join(f"<p>{escape(text)}</p>" for name, text in headline.lines if not name)
    return (
        f'<header class="{state}"><div class="sign" aria-hidden="true">{sign}</div>'
        f'<div><h1>{escape(headline.words)}</h1><p class="who">{escape(headline.about)}</p>'
        f"{f'<ul>{named}</ul>' if named else ''}{plain}</div></header>"
    )


def _tile(tile: Tile) -> str:
    return (
        f'<div class="tile"><span>{escape(tile.name)}</span><b>{escape(tile.value)}</b>'
        f"<small>{escape(tile.note)}</small></div>"
    )


def _figure(plot: Plot, place: str | None) -> str:
    caption = escape(plot.caption) + (f' <a href="#{place}">The figures as a table.</a>' if place else "")
    return f"<figure><h2>{escape(plot.title)}</h2>{plot.svg}<figcaption>{caption}</figcaption></figure>"


def _table(table: Table, place: str) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = []
    for row, mark in zip(table.rows, table.marks, strict=True):
        kind = "" if mark is None else f' class="{"ok" if mark else "missed"}"'
        rows.append(f"<tr{kind}>{''.join(map(_cell, row))}</tr>")
    heading = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    body = f'<div class="scroll"><table>{heading}<tbody>{"".join(rows)}</tbody></table></div>'
    if table.folded:
        return f'<details id="{place}"><summary>{escape(table.title)}</summary>{body}</details>'
    return f'<section id="{place}"><h2>{escape(table.title)}</h2>{body}</section>'


def _cell(text: str) -> str:
    # Short cells stay whole, so that a wide table scrolls instead of breaking its figures.
    kind = ' class="short"' if len(text) <= _SHORT else ""
    return f"<td{kind}>{escape(text)}</td>"
