"""The style sheet of HTML reports: quiet, readable, for light and dark screens."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f5f1; --card: #ffffff; --ink: #22262e; --muted: #676d78; --line: #e3e1da;
  --accent: #2f6f9f; --second: #d07b2c; --third: #8a5aa8;
  --ok: #2c7a51; --ok-soft: #e3f1e8; --bad: #b23a36; --bad-soft: #f8e5e2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2026; --ink: #e4e6ea; --muted: #9aa1ac; --line: #313741;
    --accent: #6fb1dd; --second: #e9a765; --third: #bd93d8;
    --ok: #6cc596; --ok-soft: #1b2f25; --bad: #ee8a80; --bad-soft: #36211f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; display: grid; gap: 20px; }
h1 { margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 0 0 10px; font-size: 16px; font-weight: 600; }
header, figure, main > section:not(.plots):not(.tiles), details {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; margin: 0;
}
header { display: flex; gap: 22px; align-items: center; padding: 26px 28px; border-left: 6px solid var(--ok); }
header.missed { border-left-color: var(--bad); }
header p, header ul { margin: 6px 0 0; }
header ul { padding-left: 18px; }
header .who { color: var(--muted); }
.sign {
  flex: none; width: 60px; height: 60px; border-radius: 50%; display: grid; place-items: center; font-size: 32px;
  background: var(--ok-soft); color: var(--ok);
}
.missed .sign { background: var(--bad-soft); color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.tile span, .tile small { display: block; color: var(--muted); font-size: 13px; }
.tile b { display: block; font-size: 24px; font-weight: 600; letter-spacing: -0.01em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px; }
figure { padding: 18px 20px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: inherit !important; }
figcaption { margin-top: 8px; color: var(--muted); font-size: 13px; }
figcaption a { color: var(--accent); }
main > section:not(.plots):not(.tiles), details { padding: 18px 20px; }
summary { font-size: 16px; font-weight: 600; cursor: pointer; }
details[open] summary { margin-bottom: 10px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: 13px; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th, td.short { white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
td:first-child { min-width: 9em; }
tr.missed td { color: var(--bad); font-weight: 600; }
@media print { body { background: none; } header, figure, section, details { break-inside: avoid; } }
"""
