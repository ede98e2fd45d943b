"""What a parity run found: figures, checks with their limits, and the verdict that follows from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..metrics import LogitMetrics, LogitSamples, PassageMetrics


@dataclass(frozen=True)
class Thresholds:
    """Limits of the verdict; None: not required. max_logit_diff is in standard deviations of the reference logits.

    ``exact``: runs of the same artifact (prefill and decode, padded and alone) are held to max_logit_diff, otherwise
    to max_kld. ``layer_error`` is a relative error of the hidden state.
    """

    max_logit_diff: float | None
    max_kld: float | None
    min_top1: float | None
    greedy_equal: bool
    exact: bool
    consistency: float
    layer_error: float
    min_accuracy: float | None = None
    accuracy_loss: float = 0.0

    @classmethod
    def of_variant(
        cls,
        variant: str,
        *,
        max_logit_diff: float | None = None,
        max_kld: float | None = None,
        min_top1: float | None = None,
        min_accuracy: float | None = None,
    ) -> Thresholds:
        """Those of a precision, with the given ones in place of the defaults or beside them."""
        base = _BY_VARIANT.get(variant, _FP16)
        given = {
            "max_logit_diff": max_logit_diff,
            "max_kld": max_kld,
            "min_top1": min_top1,
            "min_accuracy": min_accuracy,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        limit = changes.get("max_logit_diff" if base.exact else "max_kld")
        return dataclasses.replace(base, **changes, **({} if limit is None else {"consistency": limit}))


_FP32 = Thresholds(
    max_logit_diff=1e-3, max_kld=None, min_top1=None, greedy_equal=True, exact=True, consistency=1e-3, layer_error=1e-4
)
# An fp16 rounding can choose another expert, so single logits may differ at will: the distribution is what counts.
_FP16 = Thresholds(
    max_logit_diff=None,
    max_kld=1e-3,
    min_top1=0.99,
    greedy_equal=False,
    exact=False,
    consistency=1e-3,
    layer_error=5e-2,
    accuracy_loss=0.01,
)
# Runs of one quantized model differ by roundings of activations alone, until one of them chooses another expert.
_Q8 = dataclasses.replace(_FP16, max_kld=1e-2, min_top1=0.97, consistency=2e-3, layer_error=0.2, accuracy_loss=0.01)
_Q4 = dataclasses.replace(_FP16, max_kld=0.2, min_top1=0.85, consistency=2e-2, layer_error=0.5, accuracy_loss=0.02)

# Exports for an NPU: activations are quantized too, to 16 bits, the KV cache to 8.
_NPU_INT8 = dataclasses.replace(_Q8, max_kld=5e-2, consistency=2e-2, layer_error=0.5, accuracy_loss=0.01)
_NPU_INT4 = dataclasses.replace(_Q4, max_kld=0.5, consistency=5e-2, layer_error=1.0, accuracy_loss=0.03)

_BY_VARIANT = {
    "fp32": _FP32,
    "fp16": _FP16,
    "q8": _Q8,
    "q4": _Q4,
    "qnn-int8": _NPU_INT8,
    "qnn-int4": _NPU_INT4,
    "qnn-float": _FP16,
}


@dataclass(frozen=True)
class Check:
    """One requirement: ``value`` against ``limit`` in the direction of ``relation`` ("<=" or ">=")."""

    name: str
    quantity: str
    value: float
    limit: float
    relation: str = "<="
    detail: str = ""

    @property
    def passed(self) -> bool:
        """False for NaN, whatever the limit."""
        return self.value <= self.limit if self.relation == "<=" else self.value >= self.limit


@dataclass(frozen=True)
class GreedyAgreement:
    """Greedy continuations of one prompt: the first ``agreed`` of ``tokens`` are the same in both models.

    margin: by how much the reference prefers its own token where they part, in standard deviations of the logits.
    tie: the margin is no more than float32 rounding, so that neither token is wrong.
    """

    label: str
    prompt_tokens: int
    tokens: int
    agreed: int
    margin: float | None = None
    tie: bool = False

    @property
    def equal(self) -> bool:
        """Whether all tokens agree, or the models part at a tie."""
        return self.agreed == self.tokens or self.tie


@dataclass(frozen=True)
class LayerError:
    """Hidden state after one layer against the reference's: ``relative`` is |model - reference| / |reference|."""

    name: str
    kind: str
    relative: float
    max_abs_diff: float
    cosine: float


@dataclass(frozen=True)
class TaskAnswer:
    """A task that was answered wrongly."""

    task_id: str
    category: str
    expected: str
    answer: str


@dataclass(frozen=True)
class TaskAccuracy:
    """Exact matches: category -> (right, all), and the wrong answers."""

    by_category: dict[str, tuple[int, int]]
    wrong: list[TaskAnswer]

    @property
    def right(self) -> int:
        """Number of tasks answered right, over all categories."""
        return sum(right for right, _ in self.by_category.values())

    @property
    def tasks(self) -> int:
        """Number of tasks, over all categories."""
        return sum(count for _, count in self.by_category.values())

    @property
    def accuracy(self) -> float:
        """Share of the tasks answered right, 0 to 1; NaN without tasks."""
        return self.right / self.tasks if self.tasks else math.nan


@dataclass(frozen=True)
class ParityReport:
    """All that was compared. ``identity``: what was compared, as readable pairs (artifact, reference, runtime …)."""

    identity: dict[str, str]
    thresholds: Thresholds
    logits: LogitMetrics
    passages: list[PassageMetrics]
    samples: LogitSamples
    greedy: list[GreedyAgreement]
    checks: list[Check]
    layers: list[LayerError] | None
    tasks: TaskAccuracy | None
    reference_tasks: TaskAccuracy | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def first_departing_layer(self) -> str | None:
        """Name of the first layer whose error is above the limit (or not a number)."""
        over = (e.name for e in self.layers or () if not e.relative <= self.thresholds.layer_error)
        return next(over, None)

    @property
    def verdict(self) -> str:
        """One line: passed, or which checks were missed."""
        missed = [check.name for check in self.checks if not check.passed]
        if not missed:
            return f"parity holds: {len(self.checks)} of {len(self.checks)} checks passed"
        return f"parity missed: {len(missed)} of {len(self.checks)} checks ({', '.join(missed)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a figure that is not finite becomes null. Samples that only plots need are left out."""
        data: dict[str, Any] = {"passed": self.passed, "verdict": self.verdict}
        for item in dataclasses.fields(self):
            if item.name != "samples":
                data[_KEYS.get(item.name, item.name)] = _plain(getattr(self, item.name))
        data["first_departing_layer"] = self.first_departing_layer
        return data


# Keys of the JSON that readers of earlier reports know.
_KEYS = {"passages": "chunks"}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        data = {
            _KEYS.get(item.name, item.name): _plain(getattr(value, item.name)) for item in dataclasses.fields(value)
        }
        for name in ("passed", "equal", "accuracy"):
            if isinstance(getattr(type(value), name, None), property):
                data[name] = _plain(getattr(value, name))
        return data
    return value
