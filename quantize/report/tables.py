"""The figures of a quantization report as tables; every plot has the one that its figures come from."""

from __future__ import annotations

from statistics import median

from ...reporting.byte_size import byte_size
from ...reporting.table import Table, figure
from .contents import QuantizationReport, by_class

VARIANTS, CLASSES, TENSORS = "Variants", "Tensor classes", "Tensors"
EXPERTS, EXPERT_TOKENS = "Experts", "Tokens by expert"


def report_tables(report: QuantizationReport) -> list[Table]:
    """Promises first, then sizes and quality, then details."""
    tables = [_promises(report)] if report.promises else []
    if report.variants:
        tables.append(_variants(report))
    if report.tensors:
        tables += [_classes(report), _tensors(report)]
    if report.experts:
        tables += [_experts(report), _expert_tokens(report)]
    return [*tables, _identity(report)]


def amount(value: float, unit: str) -> str:
    """A promise's value, bytes to the last one."""
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{figure(value)} {unit}"


def _promises(report: QuantizationReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (p.name, amount(p.value, p.unit), f"≤ {amount(p.limit, p.unit)}", "kept" if p.kept else "NOT KEPT")
        for p in report.promises
    ]
    return Table("Promises", ("promise", "value", "limit", ""), rows, [p.kept for p in report.promises])


def _variants(report: QuantizationReport) -> Table:
    rows: list[tuple[str, ...]] = []
    for v in report.variants:
        error = "" if v.kld_standard_error is None else f" ± {figure(v.kld_standard_error)}"
        rows.append(
            (
                v.name + (" (written)" if v.chosen else ""),
                "" if v.method is None else v.method.value,
                v.formats,
                f"{v.bytes:,}",
                f"{v.bits_per_weight:.4g}",
                "" if v.kld is None else figure(v.kld) + error,
                _percent(v.top1),
                "" if v.seconds is None else f"{v.seconds:,.1f} s",
            )
        )
    columns = ("variant", "method", "formats", "bytes", "bits per weight", "KLD, nats", "top-1", "time")
    return Table(VARIANTS, columns, rows, [None] * len(rows))


def _classes(report: QuantizationReport) -> Table:
    classes = by_class(report.tensors)
    rows: list[tuple[str, ...]] = [
        (
            c.tensor_class,
            str(c.tensors),
            f"{c.parameters:,}",
            f"{c.bytes:,}",
            f"{c.bits_per_weight:.4g}",
            _figure(c.error),
            _figure(c.round_to_nearest_error),
            _change(c.error, c.round_to_nearest_error),
        )
        for c in classes
    ]
    columns = ("class", "tensors", "weights", "bytes", "bits per weight", "error", "round to nearest", "change")
    return Table(CLASSES, columns, rows, [None] * len(rows))


def _tensors(report: QuantizationReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            t.name,
            t.tensor_class,
            t.format,
            f"{t.bits_per_weight:.4g}",
            f"{t.bytes:,}",
            t.method.value,
            _figure(t.error),
            _figure(t.round_to_nearest_error),
            _change(t.error, t.round_to_nearest_error),
            _figure(t.sensitivity),
        )
        for t in report.tensors
    ]
    columns = (
        *("tensor", "class", "format", "bits per weight", "bytes", "method"),
        *("error", "round to nearest", "change", "KLD alone, nats"),
    )
    return Table(TENSORS, columns, rows, [None] * len(rows), folded=True)


def _experts(report: QuantizationReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            str(u.layer),
            str(len(u.tokens)),
            f"{min(u.tokens, default=0):,} / {median(u.tokens or (0,)):,.0f} / {max(u.tokens, default=0):,}",
            str(sum(count == 0 for count in u.tokens)),
            ", ".join(map(str, u.fell_back)) or "none",
            u.reason,
        )
        for u in report.experts
    ]
    columns = ("layer", "experts", "tokens, least / median / most", "never chosen", "quantized by the search", "reason")
    return Table(EXPERTS, columns, rows, [None] * len(rows), folded=True)


def _expert_tokens(report: QuantizationReport) -> Table:
    most = max((len(u.tokens) for u in report.experts), default=0)
    rows = []
    for u in report.experts:
        fell_back = set(u.fell_back)
        cells = [f"{count:,}{' *' if expert in fell_back else ''}" for expert, count in enumerate(u.tokens)]
        rows.append((str(u.layer), *cells, *[""] * (most - len(cells))))
    title = f"{EXPERT_TOKENS} (* quantized by the search)"
    return Table(title, ("layer", *map(str, range(most))), rows, [None] * len(rows), folded=True)


def _identity(report: QuantizationReport) -> Table:
    rows: list[tuple[str, ...]] = [*report.identity.items()]
    rows.append(("calibration", f"{report.calibration_tokens:,} tokens" if report.calibration_tokens else "none"))
    if report.measured_tokens:
        rows.append(("measured on", f"{report.measured_tokens:,} tokens of held-out text"))
    if report.peak_memory_bytes is not None:
        rows.append(("peak memory", byte_size(report.peak_memory_bytes)))
    if report.seconds:
        rows.append(("time taken", f"{report.seconds:,.1f} s"))
    return Table("What was quantized", ("", ""), rows, [None] * len(rows))


def _figure(value: float | None) -> str:
    return "" if value is None else figure(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.4g}%"


def _change(value: float | None, before: float | None) -> str:
    return "" if value is None or not before else f"{100 * (value / before - 1):+.1f}%"
