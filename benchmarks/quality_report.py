"""What the comparison of quality found: a table on the terminal, and a plot of size against KLD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quality_variants import BUDGET_OF, OURS
from rich.console import Console
from rich.table import Table

_COLOURS = {OURS: "#1f6feb", "llama.cpp": "#d1242f", "onnxruntime-genai": "#8250df"}


@dataclass(frozen=True)
class Quality:
    """One variant: sizes in bytes, KLD from float32 in nats over ``tokens`` positions, shares from 0 to 1.

    ``kld_standard_error`` is over sequences; ``exact_match`` None: no tasks.
    """

    key: str
    engine: str
    name: str
    tensor_bytes: int
    file_bytes: int
    bits_per_weight: float
    tokens: int
    kld: float
    kld_standard_error: float | None
    kld_p99: float
    top1: float
    exact_match: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the JSON file."""
        return asdict(self)


def print_report(found: Sequence[Quality]) -> None:
    """The table by size, and our KLD beside that of Q4_K_M."""
    console = Console(highlight=False, width=160)
    table = Table()
    for heading in ("engine", "variant", "tensors, bytes", "file, bytes", "bits/weight", "mean KLD", "± s.e."):
        table.add_column(heading, justify="left" if heading in ("engine", "variant") else "right")
    for heading in ("p99 KLD", "top-1", "tasks right"):
        table.add_column(heading, justify="right")
    for item in sorted(found, key=lambda item: (item.tensor_bytes, item.kld)):
        table.add_row(
            item.engine,
            item.name,
            f"{item.tensor_bytes:,}",
            f"{item.file_bytes:,}",
            f"{item.bits_per_weight:.3f}",
            f"{item.kld:.3e}",
            "" if item.kld_standard_error is None else f"{item.kld_standard_error:.0e}",
            f"{item.kld_p99:.2e}",
            f"{item.top1:.2%}",
            "" if item.exact_match is None else f"{item.exact_match:.1%}",
        )
    console.print(table)
    for line in _against_k_quants(found):
        console.print(line, markup=False)


def _against_k_quants(found: Sequence[Quality]) -> Iterator[str]:
    for other in found:
        if not other.key.startswith(BUDGET_OF):
            continue
        for item in found:
            if item.engine == OURS and item.tensor_bytes <= other.tensor_bytes:
                yield (
                    f"{item.name}: KLD {item.kld / other.kld - 1:+.0%} against {other.name}, "
                    f"bytes {item.tensor_bytes / other.tensor_bytes - 1:+.1%}"
                )


def plot(found: Sequence[Quality], path: Path) -> None:
    """Size against KLD, a point a variant; float32 is left out."""
    try:
        import matplotlib
    except ImportError:
        Console(stderr=True).print("no plot: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    points = sorted((item for item in found if item.bits_per_weight < 16), key=lambda item: item.tensor_bytes)
    for engine, colour in _COLOURS.items():
        own = [item for item in points if item.engine == engine]
        axis.scatter([item.bits_per_weight for item in own], [item.kld for item in own], c=colour, label=engine, s=36)
    for number, item in enumerate(points):
        offset = (6, 5 if number % 2 else -11)
        place = (item.bits_per_weight, item.kld)
        axis.annotate(item.name, place, xytext=offset, textcoords="offset points", fontsize=7)
    axis.set_yscale("log")
    axis.set_xlabel("bits per weight (all tensors of the file / parameters)")
    axis.set_ylabel("mean KLD from float32, nats per token")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
