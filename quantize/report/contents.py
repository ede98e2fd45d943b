"""What a quantization chose and what it costs, as plain data: measured variants, tensors, experts, promises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...artifact.method import Method


@dataclass(frozen=True)
class VariantResult:
    """One way to store the weights, in ``bytes``; None: not measured.

    kld: mean nats against the unquantized model on held-out text. top1: a share from 0 to 1.
    chosen: the one that was written. method: None where nothing is quantized.
    """

    name: str
    method: Method | None
    formats: str
    bytes: int
    bits_per_weight: float
    kld: float | None = None
    kld_standard_error: float | None = None
    top1: float | None = None
    chosen: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class TensorResult:
    """One tensor group as it was written. layer None: embedding and head. method: the one that was used in the end.

    error: of its output on calibration text, |X(W - Q)| / |XW|, or of the weights themselves where there is no text;
    round_to_nearest_error: the same for round to nearest. sensitivity: nats of KLD with this group alone quantized.
    """

    name: str
    tensor_class: str
    layer: int | None
    format: str
    bits_per_weight: float
    bytes: int
    parameters: int
    method: Method
    error: float | None = None
    round_to_nearest_error: float | None = None
    sensitivity: float | None = None


@dataclass(frozen=True)
class ExpertUsage:
    """Calibration tokens that chose each expert of a layer, and the experts that the weighted search quantized."""

    layer: int
    tokens: tuple[int, ...]
    fell_back: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Promise:
    """What the user asked for (budget in "bytes", max_kld in "nats"), and what came out."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def kept(self) -> bool:
        """False for NaN."""
        return self.value <= self.limit


@dataclass(frozen=True)
class QuantizationReport:
    """``identity``: what was quantized and how, as readable pairs. peak_memory_bytes: resident, of the whole run."""

    identity: Mapping[str, str]
    variants: tuple[VariantResult, ...]
    tensors: tuple[TensorResult, ...]
    experts: tuple[ExpertUsage, ...] = ()
    promises: tuple[Promise, ...] = ()
    calibration_tokens: int = 0
    measured_tokens: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int | None = None

    @property
    def kept(self) -> bool:
        """Whether all promises were kept; True without any."""
        return all(promise.kept for promise in self.promises)

    @property
    def chosen(self) -> VariantResult | None:
        """The first variant marked as chosen; None without one."""
        return next((variant for variant in self.variants if variant.chosen), None)


@dataclass(frozen=True)
class ClassResult:
    """All tensors of a class together; the errors are root mean squares over its tensors, None where none is known."""

    tensor_class: str
    tensors: int
    parameters: int
    bytes: int
    error: float | None
    round_to_nearest_error: float | None

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per parameter, scales and zero points included; 0 without parameters."""
        return 8 * self.bytes / self.parameters if self.parameters else 0.0


def by_class(tensors: Iterable[TensorResult]) -> list[ClassResult]:
    """Classes in the order in which they first appear."""
    groups: dict[str, list[TensorResult]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.tensor_class, []).append(tensor)
    return [
        ClassResult(
            name,
            len(group),
            sum(tensor.parameters for tensor in group),
            sum(tensor.bytes for tensor in group),
            _root_mean_square(tensor.error for tensor in group),
            _root_mean_square(tensor.round_to_nearest_error for tensor in group),
        )
        for name, group in groups.items()
    ]


def _root_mean_square(errors: Iterable[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return math.sqrt(sum(error * error for error in known) / len(known)) if known else None
