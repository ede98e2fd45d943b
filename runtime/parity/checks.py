"""One artifact against itself: prefill and decode, padded batches and single rows must give the same logits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .metrics import Deviation
from .onnx_runner import Array, Int64s, OnnxRunner
from .report.contents import GreedyAgreement

if TYPE_CHECKING:
    from ...reference.model import TokenIds

# A preference this small, in standard deviations of the logits, is a rounding of float32 and not a preference.
_TIE = 1e-5
_PIECES = (1, 7, 2, 16)


class GreedyModel(Protocol):
    """A reference: greedy continuations, and logits to say how close a decision was."""

    def greedy(self, input_ids: TokenIds, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]: ...

    def forward(
        self, input_ids: TokenIds, *, logits: Literal["all", "last"]
    ) -> tuple[npt.NDArray[np.float32], object]: ...


def decode_against_prefill(runner: OnnxRunner, ids: Sequence[int]) -> Deviation:
    """Logits of ``ids`` read token by token against the same read in one call."""
    return _in_pieces(runner, ids, (1,))


def pieces_against_prefill(runner: OnnxRunner, ids: Sequence[int]) -> Deviation:
    """Logits of ``ids`` read in pieces of 1, 7, 2 and 16 tokens, over and over, against the same read in one call."""
    return _in_pieces(runner, ids, _PIECES)


def _in_pieces(runner: OnnxRunner, ids: Sequence[int], sizes: Sequence[int]) -> Deviation:
    row = np.asarray(ids, np.int64)[None]
    parts, state, at, turn = [], None, 0, 0
    while at < row.shape[1]:
        size = sizes[turn % len(sizes)]
        logits, state, _ = runner.forward(row[:, at : at + size], state)
        parts.append(logits[0])
        at, turn = at + size, turn + 1
    return Deviation.between(runner.logits(row[0]), np.concatenate(parts))


def padded_batch(
    runner: OnnxRunner, rows: Sequence[Sequence[int]], side: Literal["left", "right"], steps: int, pad_token_id: int
) -> tuple[Deviation, Deviation]:
    """A padded batch of rows against each row alone: (over the prompts, over ``steps`` decode steps after them).

    The last ``steps`` tokens of each row are fed one by one, the others as the prompt. Prompts are compared at all
    their tokens (num_logits_to_keep 0) and once more as the last token's logits alone (1).
    """
    prompts = [list(row[: len(row) - steps]) for row in rows]
    ids, mask = pad(prompts, side, pad_token_id)
    everything, state, _ = runner.forward(ids, mask=mask)
    last, _, _ = runner.forward(ids, mask=mask, keep=1)
    decoded = []
    for step in range(steps):
        fed = np.asarray([[row[len(row) - steps + step]] for row in rows], np.int64)
        logits, state, _ = runner.forward(fed, state, keep=1)
        decoded.append(logits[:, -1])
    prefill: list[tuple[Array, Array]] = []
    decode: list[tuple[Array, Array]] = []
    for i, row in enumerate(rows):
        alone = runner.logits(row)
        prompt = alone[: len(prompts[i])]
        prefill += [(prompt, everything[i][mask[i] == 1]), (prompt[-1:], last[i])]
        decode += [(alone[len(prompts[i]) :], np.stack([step[i] for step in decoded]))]
    return _deviation(prefill), _deviation(decode)


def pad(rows: Sequence[Sequence[int]], side: Literal["left", "right"], pad_token_id: int) -> tuple[Int64s, Int64s]:
    """(ids, mask), int64 ``[B, longest]`` each."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    return ids, mask


def unequal_rows(chunks: Sequence[Sequence[int]], steps: int) -> list[list[int]]:
    """Up to four rows cut from the chunks, prompts of 1 token up to the longest that there is, ``steps`` beyond."""
    longest = max(map(len, chunks)) - steps
    lengths = sorted({min(length, longest) for length in (1, 5, 18, 64) if longest > 0})
    by_length = sorted(chunks, key=len, reverse=True)
    fitting = [[c for c in by_length if len(c) >= length + steps] for length in lengths]
    return [
        list(some[i % len(some)][: length + steps])
        for i, (length, some) in enumerate(zip(lengths, fitting, strict=True))
    ]


def greedy_agreement(
    runner: OnnxRunner, reference: GreedyModel, label: str, ids: Sequence[int], tokens: int, eos: Collection[int]
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


def _deviation(pairs: Sequence[tuple[Array, Array]]) -> Deviation:
    return Deviation.between(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))
