"""The figures of a parity report as tables."""

from __future__ import annotations

from ....reporting.table import Table, figure
from .contents import ParityReport, TaskAccuracy

_WRONG_SHOWN = 10


def report_tables(report: ParityReport) -> list[Table]:
    """Checks first, then figures, then details."""
    tables = [checks_table(report), figures_table(report)]
    if report.layers is not None:
        tables.append(_layers_table(report))
    if report.greedy:
        tables.append(_greedy_table(report))
    if report.tasks is not None:
        tables.append(_tasks_table(report.tasks, report.reference_tasks))
        if report.tasks.wrong:
            tables.append(_wrong_table(report.tasks))
    return [*tables, _passages_table(report), identity_table(report)]


def checks_table(report: ParityReport) -> Table:
    """Every check with its value beside its limit."""
    relations = {"<=": "≤", ">=": "≥"}
    rows: list[tuple[str, ...]] = [
        (c.name, c.quantity, figure(c.value), f"{relations[c.relation]} {figure(c.limit)}", verdict(c.passed), c.detail)
        for c in report.checks
    ]
    columns = ("check", "quantity", "value", "limit", "", "detail")
    return Table("Checks", columns, rows, [c.passed for c in report.checks])


def figures_table(report: ParityReport) -> Table:
    """What was measured of the logits, tokens and tasks."""
    m = report.logits
    error = "" if m.kld_standard_error is None else f" ± {figure(m.kld_standard_error)}"
    rows: list[tuple[str, ...]] = [
        ("positions compared", f"{m.tokens:,} in {m.passages} passages, vocabulary {m.vocab_size:,}"),
        ("largest logit difference", f"{figure(m.max_abs_diff)} ({figure(m.relative_max_diff)} std)"),
        ("mean logit difference", figure(m.mean_abs_diff)),
        ("standard deviation of logits", figure(m.logit_std)),
        ("cosine of logits, mean / least", f"{m.cosine_mean:.9f} / {m.cosine_min:.9f}"),
        ("KLD, mean", f"{figure(m.kld_mean)}{error} nats"),
        ("KLD, 99th percentile / largest", f"{figure(m.kld_p99)} / {figure(m.kld_max)} nats"),
        ("top-1 agreement", f"{m.top1:.3%}"),
        ("perplexity, reference / model", f"{_perplexity(m.perplexity_reference)} / {_perplexity(m.perplexity_model)}"),
    ]
    if report.greedy:
        agreed, tokens = sum(g.agreed for g in report.greedy), sum(g.tokens for g in report.greedy)
        equal = sum(g.equal for g in report.greedy)
        rows.append(("greedy continuations", f"{equal} of {len(report.greedy)} equal; {agreed} of {tokens} tokens"))
    if report.tasks is not None:
        rows.append(("tasks right", accuracy(report.tasks)))
    if report.reference_tasks is not None:
        rows.append(("tasks right, reference", accuracy(report.reference_tasks)))
    rows.append(("time taken", f"{report.seconds:.1f} s"))
    return Table("Figures", ("figure", "value"), rows, [None] * len(rows))


def identity_table(report: ParityReport) -> Table:
    """Which artifact, checkpoint and versions were compared."""
    rows: list[tuple[str, ...]] = [*report.identity.items()]
    return Table("What was compared", ("", ""), rows, [None] * len(rows))


def _layers_table(report: ParityReport) -> Table:
    layers, limit = report.layers or [], report.thresholds.layer_error
    rows: list[tuple[str, ...]] = [
        (e.name, e.kind, figure(e.relative), figure(e.max_abs_diff), f"{e.cosine:.9f}") for e in layers
    ]
    columns = ("after layer", "kind", "relative error", "largest difference", "cosine")
    return Table("Hidden states", columns, rows, [e.relative <= limit for e in layers], folded=True)


def _greedy_table(report: ParityReport) -> Table:
    rows: list[tuple[str, ...]] = []
    for g in report.greedy:
        parting = "" if g.margin is None else f"{figure(g.margin)} std" + (" (tie)" if g.tie else "")
        rows.append((g.label, str(g.prompt_tokens), f"{g.agreed} of {g.tokens}", parting))
    columns = ("prompt", "prompt tokens", "equal tokens", "reference's margin where they part")
    return Table("Greedy continuations", columns, rows, [g.equal for g in report.greedy], folded=True)


def _tasks_table(tasks: TaskAccuracy, reference: TaskAccuracy | None) -> Table:
    columns: tuple[str, ...] = ("category", "tasks", "right", "accuracy")
    rows: list[tuple[str, ...]] = []
    for name, (right, count) in tasks.by_category.items():
        row: tuple[str, ...] = (name, str(count), str(right), f"{right / count:.1%}")
        if reference is not None:
            ours, of = reference.by_category.get(name, (0, 0))
            row = (*row, f"{ours / of:.1%}" if of else "")
        rows.append(row)
    if reference is not None:
        columns = (*columns, "reference")
    return Table("Task accuracy", columns, rows, [None] * len(rows), folded=True)


def _wrong_table(tasks: TaskAccuracy) -> Table:
    rows: list[tuple[str, ...]] = [
        (w.task_id, w.category, w.expected, w.answer or "(no answer)") for w in tasks.wrong[:_WRONG_SHOWN]
    ]
    shown = f" (the first {_WRONG_SHOWN} of {len(tasks.wrong)})" if len(tasks.wrong) > _WRONG_SHOWN else ""
    columns = ("task", "category", "expected", "answered")
    return Table(f"Tasks answered wrongly{shown}", columns, rows, [None] * len(rows), folded=True)


def _passages_table(report: ParityReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            p.label,
            str(p.tokens),
            figure(p.kld),
            f"{p.top1:.1%}",
            figure(p.max_abs_diff),
            "" if p.nll_reference is None else f"{p.nll_reference:.4f}",
            "" if p.nll_model is None else f"{p.nll_model:.4f}",
        )
        for p in report.passages
    ]
    columns = ("passage", "tokens", "KLD", "top-1", "largest difference", "nll, reference", "nll, model")
    return Table("Passages", columns, rows, [None] * len(rows), folded=True)


def accuracy(tasks: TaskAccuracy) -> str:
    """Right answers of all, and their share."""
    return f"{tasks.right} of {tasks.tasks} ({tasks.accuracy:.1%})"


def verdict(passed: bool) -> str:
    """The word for a check that passed or did not."""
    return "pass" if passed else "MISSED"


def _perplexity(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
