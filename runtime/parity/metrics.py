"""Figures of how far one set of logits is from another, computed in float64 a few rows at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating[Any]]
Float64s = npt.NDArray[np.float64]

# Rows are taken in blocks of at most this many float64 bytes: a vocabulary of 128000 gives blocks of 16 rows.
BLOCK_BYTES = 16 << 20
_SCATTER_PER_PASSAGE = 400
_HISTOGRAM_PER_PASSAGE = 1 << 18
DIFFERENCE_DECADES = (-10, 3)
_BINS_PER_DECADE = 8


@dataclass(frozen=True)
class RowMetrics:
    """One value per position. kld in nats, reference || model; nll in nats of the token that really follows."""

    kld: Float64s
    cosine: Float64s
    max_abs_diff: Float64s
    sum_abs_diff: Float64s
    top1_equal: npt.NDArray[np.bool_]
    nll_reference: Float64s
    nll_model: Float64s


@dataclass(frozen=True)
class PassageMetrics:
    """One passage of text: means over its ``tokens`` positions; nll over its positions that have a next token."""

    label: str
    tokens: int
    kld: float
    top1: float
    max_abs_diff: float
    nll_reference: float | None
    nll_model: float | None


@dataclass(frozen=True)
class LogitMetrics:
    """All passages together. ``relative_max_diff`` is ``max_abs_diff`` in standard deviations of the reference logits.

    kld_mean is the mean over all positions, kld_standard_error its standard error over passages (None for one).
    """

    passages: int
    tokens: int
    vocab_size: int
    logit_std: float
    max_abs_diff: float
    relative_max_diff: float
    mean_abs_diff: float
    cosine_mean: float
    cosine_min: float
    kld_mean: float
    kld_standard_error: float | None
    kld_p99: float
    kld_max: float
    top1: float
    perplexity_reference: float | None
    perplexity_model: float | None
    non_finite: int


@dataclass
class LogitSamples:
    """What the plots show: a few (reference, model) pairs, the spread of |difference|, KLD at every position.

    histogram counts log10 |difference| of a sample of all logits over DIFFERENCE_DECADES in equal bins; ``equal``
    counts those that do not differ at all.
    """

    reference: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(difference_edges()) - 1, np.int64))
    equal: int = 0
    kld_by_passage: list[Float64s] = field(default_factory=list)


def difference_edges() -> Float64s:
    """Edges of the histogram's bins, as log10 of an absolute difference."""
    low, high = DIFFERENCE_DECADES
    return np.linspace(low, high, (high - low) * _BINS_PER_DECADE + 1)


def row_metrics(
    reference: Logits, model: Logits, next_ids: npt.ArrayLike | None = None, *, block_bytes: int = BLOCK_BYTES
) -> RowMetrics:
    """Compare two ``[T, V]`` sets of logits position by position.

    ``next_ids`` are the tokens that follow the first positions (at most T of them): they give the nll, whose length
    is theirs. Values that are not finite make the figures of their position NaN or infinite, never a warning.
    block_bytes: of float64 that are at work at a time.
    """
    if reference.shape != model.shape or reference.ndim != 2:
        raise ValueError(f"expected two equal shapes [T, V], got {reference.shape} and {model.shape}")
    rows, vocab = reference.shape
    targets = np.asarray([] if next_ids is None else next_ids, np.int64)[:rows]
    blocks: list[RowMetrics] = []
    size = max(1, block_bytes // (8 * max(vocab, 1)))
    with np.errstate(all="ignore"):
        for at in range(0, rows, size):
            rows_here = slice(at, at + size)
            blocks.append(_block_metrics(reference[rows_here], model[rows_here], targets[rows_here]))
    return RowMetrics(*(np.concatenate([getattr(block, name) for block in blocks]) for name in _ROW_FIELDS))


_ROW_FIELDS = ("kld", "cosine", "max_abs_diff", "sum_abs_diff", "top1_equal", "nll_reference", "nll_model")


def _block_metrics(reference: Logits, model: Logits, targets: npt.NDArray[np.int64]) -> RowMetrics:
    r, m = reference.astype(np.float64), model.astype(np.float64)
    difference = np.abs(m - r)
    top1_equal = r.argmax(-1) == m.argmax(-1)
    norms = np.sqrt(np.einsum("ij,ij->i", r, r) * np.einsum("ij,ij->i", m, m))
    cosine = np.where(norms == 0, np.where(difference.max(-1) == 0, 1.0, 0.0), np.einsum("ij,ij->i", r, m) / norms)
    _log_softmax(r)
    _log_softmax(m)
    at = np.arange(len(targets))
    nll_reference, nll_model = -r[at, targets], -m[at, targets]
    p = np.exp(r)
    # Where p is 0 the term is 0 by definition, also when the logarithm there is -inf.
    kld = np.where(p > 0, p * (r - m), 0.0).sum(-1)
    # KLD is never below 0; what rounding leaves there would only hide other positions in a mean.
    kld = np.where(kld < 0, 0.0, kld)
    return RowMetrics(kld, cosine, difference.max(-1), difference.sum(-1), top1_equal, nll_reference, nll_model)


def _log_softmax(x: Float64s) -> None:
    """x - log(sum(exp(x))) over the last axis, in place."""
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))


@dataclass(frozen=True)
class Deviation:
    """How far two runs of the same model over the same tokens are apart."""

    max_abs_diff: float
    kld_mean: float

    @classmethod
    def between(cls, expected: Logits, actual: Logits) -> Deviation:
        """Of two ``[T, V]`` sets of logits."""
        rows = row_metrics(expected, actual)
        return cls(float(rows.max_abs_diff.max()), float(rows.kld.mean()))


class LogitComparison:
    """Takes the logits of passages one after the other and keeps figures only, never the logits."""

    def __init__(self) -> None:
        self.passages: list[PassageMetrics] = []
        self.samples = LogitSamples()
        self._moments = _Moments()
        self._cosines: list[Float64s] = []
        self._sum_abs_diff = 0.0
        self._max_abs_diff = 0.0
        self._nll: list[tuple[Float64s, Float64s]] = []
        self._top1_equal = 0
        self._non_finite = 0
        self._vocab_size = 0
        self._random = np.random.default_rng(0)

    def add(self, label: str, token_ids: npt.ArrayLike, reference: Logits, model: Logits) -> PassageMetrics:
        """Compare one passage: ``token_ids [T]`` are what both models read, the logits ``[T, V]`` what they said."""
        ids = np.asarray(token_ids, np.int64)
        rows = row_metrics(reference, model, ids[1:])
        self._moments.add(reference)
        self._vocab_size = reference.shape[1]
        self._cosines.append(rows.cosine)
        self._sum_abs_diff += float(rows.sum_abs_diff.sum())
        # np.maximum keeps a NaN, which max() would lose.
        self._max_abs_diff = float(np.maximum(self._max_abs_diff, rows.max_abs_diff.max()))
        self._nll.append((rows.nll_reference, rows.nll_model))
        self._top1_equal += int(rows.top1_equal.sum())
        self._non_finite += sum(int((~np.isfinite(row)).sum()) for row in model)
        self._sample(reference, model, rows)
        passage = PassageMetrics(
            label,
            len(ids),
            float(rows.kld.mean()),
            float(rows.top1_equal.mean()),
            float(rows.max_abs_diff.max()),
            _mean_or_none(rows.nll_reference),
            _mean_or_none(rows.nll_model),
        )
        self.passages.append(passage)
        return passage

    def summary(self) -> LogitMetrics:
        """The figures over everything added so far; ValueError before the first passage."""
        if not self.passages:
            raise ValueError("nothing was compared")
        kld = np.concatenate(self.samples.kld_by_passage)
        cosine = np.concatenate(self._cosines)
        nll_reference, nll_model = (np.concatenate(column) for column in zip(*self._nll, strict=True))
        std = self._moments.std
        with np.errstate(all="ignore"):
            relative = float(np.float64(self._max_abs_diff) / std) if self._max_abs_diff != 0 else 0.0
            mean, error = clustered_mean([c.kld for c in self.passages], [c.tokens for c in self.passages])
            return LogitMetrics(
                passages=len(self.passages),
                tokens=len(kld),
                vocab_size=self._vocab_size,
                logit_std=std,
                max_abs_diff=self._max_abs_diff,
                relative_max_diff=relative,
                mean_abs_diff=self._sum_abs_diff / (len(kld) * self._vocab_size),
                cosine_mean=float(cosine.mean()),
                cosine_min=float(cosine.min()),
                kld_mean=mean,
                kld_standard_error=error,
                kld_p99=float(np.percentile(kld, 99)),
                kld_max=float(kld.max()),
                top1=self._top1_equal / len(kld),
                perplexity_reference=_perplexity(nll_reference),
                perplexity_model=_perplexity(nll_model),
                non_finite=self._non_finite,
            )

    def _sample(self, reference: Logits, model: Logits, rows: RowMetrics) -> None:
        count, vocab = reference.shape
        at = self._random.integers(0, count, _SCATTER_PER_PASSAGE)
        ids = self._random.integers(0, vocab, _SCATTER_PER_PASSAGE)
        # The likeliest token of each position is the one that matters; chance alone would hardly pick it.
        best = self._random.integers(0, count, _SCATTER_PER_PASSAGE // 8)
        at, ids = np.concatenate([at, best]), np.concatenate([ids, reference[best].argmax(-1)])
        self.samples.reference.extend(reference[at, ids].astype(float).tolist())
        self.samples.model.extend(model[at, ids].astype(float).tolist())
        picked = self._random.integers(0, count * vocab, min(count * vocab, _HISTOGRAM_PER_PASSAGE))
        difference = np.abs(model.reshape(-1)[picked].astype(np.float64) - reference.reshape(-1)[picked])
        different = difference[(difference > 0) & np.isfinite(difference)]
        edges = difference_edges()
        self.samples.equal += int((difference == 0).sum())
        self.samples.histogram += np.histogram(np.clip(np.log10(different), edges[0], edges[-1]), edges)[0]
        self.samples.kld_by_passage.append(rows.kld)


class _Moments:
    """Mean and variance of all values seen, merged block by block so that nothing cancels."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: Logits) -> None:
        for row in values:
            wide = row.astype(np.float64)
            count, mean = wide.size, float(wide.mean())
            delta, total = mean - self.mean, self.count + count
            self.squares += float(np.square(wide - mean).sum()) + delta * delta * self.count * count / total
            self.mean += delta * count / total
            self.count = total

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan


def clustered_mean(means: list[float], sizes: list[int]) -> tuple[float, float | None]:
    """(mean over all members, its standard error over clusters of the given means and sizes).

    mean = sum n_c m_c / N; se^2 = k / (k - 1) * sum (n_c (m_c - mean))^2 / N^2: for k clusters of equal size the
    usual standard error of their means. None for the error of a single cluster.
    """
    m, n = np.asarray(means, np.float64), np.asarray(sizes, np.float64)
    mean = float((n * m).sum() / n.sum())
    if len(m) < 2:
        return mean, None
    error = math.sqrt(len(m) / (len(m) - 1) * float(np.square(n * (m - mean)).sum())) / float(n.sum())
    return mean, error


def _mean_or_none(values: Float64s) -> float | None:
    return float(values.mean()) if values.size else None


def _perplexity(nll: Float64s) -> float | None:
    return float(np.exp(nll.mean())) if nll.size else None
