"""The Hessian of a layer's output error, factored for error feedback: H = M D M^T, M unit upper triangular.

With E = W - W' the error of the weights, the mean squared error of the outputs is tr(E H E^T) = sum_k D_k |(E M)_k|^2
where (E M)_k = E_k + sum_{j<k} E_j M_jk. Columns quantized from left to right, each to the level nearest to
W_k + sum_{j<k} E_j M_jk, therefore leave nothing but rounding errors, weighted by D: GPTQ's feedback, from one
Cholesky factorization and without an inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..artifact.formats import Float32

DAMPING = 0.03
"""Added to the diagonal, as a share of its mean: bounds the feedback where the calibration text says nothing."""

_BLOCK = 128
"""Columns factored at a time: LAPACK's own factorization of large matrices is several times slower than products."""

_ATTEMPTS = 6


@dataclass(frozen=True)
class HessianFactor:
    """unit [K, K] = M: column k weighs the errors of the columns before k, 1 at k; pivots [K] = D."""

    unit: Float32
    pivots: Float32

    @classmethod
    def from_second_moment(cls, moment: Float32, damping: float = DAMPING) -> HessianFactor:
        """Factor ``moment`` [K, K] (X^T X / tokens) + damping * mean of its diagonal * identity.

        Where rounding has left the moment indefinite the damping is raised. Raises ValueError where the moment is 0
        or not finite.
        """
        mean = float(np.diagonal(moment).mean(dtype=np.float64))
        if not (np.isfinite(mean) and mean > np.finfo(np.float32).tiny):
            raise ValueError("the second moment of the inputs is zero or not finite")
        scaled = moment * np.float32(1 / mean)
        diagonal = np.diagonal(scaled).copy()
        for attempt in range(_ATTEMPTS):
            np.fill_diagonal(scaled, diagonal + np.float32(damping * 8**attempt))
            try:
                upper = _upper_cholesky(scaled)
                break
            except np.linalg.LinAlgError:
                continue
        else:
            raise ValueError("the second moment of the inputs cannot be factored")
        roots = np.diagonal(upper).copy()
        upper /= roots
        return cls(upper, np.square(roots) * np.float32(mean))


def shrunk(moment: Float32, tokens: int, towards: Float32, weight: float) -> Float32:
    """A moment [K, K] of ``tokens`` tokens drawn towards that of all: as if ``weight`` more had been seen of those."""
    share = np.float32(tokens / (tokens + weight))
    mixed = moment * share
    mixed += towards * (1 - share)
    result: Float32 = mixed
    return result


def _upper_cholesky(matrix: Float32) -> Float32:
    """R upper triangular with R R^T = ``matrix`` [K, K], block column by block column from the last to the first."""
    size = len(matrix)
    upper = np.zeros_like(matrix)
    for stop in range(size, 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        rest = matrix[:stop, start:stop] - upper[:stop, stop:] @ upper[start:stop, stop:].T
        # Reversed in both axes an upper factor is a lower one: the ordinary Cholesky factorization.
        corner = np.linalg.cholesky(rest[start:][::-1, ::-1])[::-1, ::-1]
        upper[start:stop, start:stop] = corner
        if start:
            upper[:start, start:stop] = rest[:start] @ np.linalg.inv(corner).T
    return upper
