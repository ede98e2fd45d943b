"""Greedy continuations of one prompt by the artifact and by the reference: where they part, and how close it was."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .reference import ReferenceModel
from .report.contents import GreedyAgreement
from .runner import Runner

# A preference this small, in standard deviations of the logits, is a rounding of float32 and not a preference.
_TIE = 1e-5


def greedy_agreement(
    runner: Runner, reference: ReferenceModel, label: str, ids: Sequence[int], tokens: int, eos: Collection[int]
) -> GreedyAgreement:
    """Continue one prompt greedily with both models and count the tokens up to the first difference."""
    expected = reference.greedy(list(ids), tokens, eos)
    found = runner.greedy(ids, tokens, eos)
    agreed = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(expected))
    if agreed == len(expected):
        return GreedyAgreement(label, len(ids), len(expected), agreed)
    logits = reference.forward([*ids, *expected[:agreed]], logits="last")[0][-1].astype(np.float64)
    margin = float((logits[expected[agreed]] - logits[found[agreed]]) / max(logits.std(), np.finfo(float).tiny))
    return GreedyAgreement(label, len(ids), len(expected), agreed, margin, margin <= _TIE)
