"""One artifact against itself: prefill and decode, padded batches and single rows must give the same logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .metrics import Deviation
from .onnx_model import Array, Int64s, OnnxModel
from .passages import Passage
from .report.contents import Check, Thresholds

_PIECES = (1, 7, 2, 16)
_DECODE_STEPS = 3
_TOKENS = 64


def consistency_checks(
    model: OnnxModel, passages: Sequence[Passage], limits: Thresholds, logit_std: float, pad_token_id: int
) -> list[Check]:
    """Batches, padding, pieces and decoding against one whole prefill, on the beginnings of ``passages``.

    logit_std: of the reference, the unit of exact limits.
    """

    def check(name: str, deviation: Deviation, detail: str) -> Check:
        if not limits.exact:
            return Check(name, "mean KLD in nats", deviation.kld_mean, limits.consistency, detail=detail)
        value = deviation.max_abs_diff / logit_std if deviation.max_abs_diff != 0 else 0.0
        return Check(name, "largest difference / std", value, limits.consistency, detail=detail)

    longest = max(passages, key=lambda passage: len(passage.ids)).ids[:_TOKENS]
    checks = []
    if len(longest) > 1:
        note = f"{len(longest)} tokens"
        checks.append(check("prefill and decode", decode_against_prefill(model, longest), f"{note} one by one"))
        pieces = pieces_against_prefill(model, longest)
        checks.append(check("prefill in pieces", pieces, f"{note} in pieces of 1 to 16"))
    steps = min(_DECODE_STEPS, len(longest) - 1)
    rows = unequal_rows([passage.ids for passage in passages], steps)
    note = f"rows of {', '.join(str(len(row) - steps) for row in rows)} tokens"
    for side in ("left", "right"):
        prefill, decode = padded_batch(model, rows, side, steps, pad_token_id)
        checks.append(check(f"padded on the {side}", prefill, note))
        if steps:
            checks.append(check(f"decode after padding on the {side}", decode, f"{note}, {steps} steps"))
    return checks


def decode_against_prefill(model: OnnxModel, ids: Sequence[int]) -> Deviation:
    """Logits of ``ids`` read token by token against the same read in one call."""
    return _in_pieces(model, ids, (1,))


def pieces_against_prefill(model: OnnxModel, ids: Sequence[int]) -> Deviation:
    """Logits of ``ids`` read in pieces of 1, 7, 2 and 16 tokens, over and over, against the same read in one call."""
    return _in_pieces(model, ids, _PIECES)


def _in_pieces(model: OnnxModel, ids: Sequence[int], sizes: Sequence[int]) -> Deviation:
    row = np.asarray(ids, np.int64)[None]
    read, state, at, turn = [], None, 0, 0
    while at < row.shape[1]:
        size = sizes[turn % len(sizes)]
        logits, state, _ = model.forward(row[:, at : at + size], state)
        read.append(logits[0])
        at, turn = at + size, turn + 1
    return Deviation.between(model.logits(row[0]), np.concatenate(read))


def padded_batch(
    model: OnnxModel, rows: Sequence[Sequence[int]], side: Literal["left", "right"], steps: int, pad_token_id: int
) -> tuple[Deviation, Deviation]:
    """A padded batch of rows against each row alone: (over the prompts, over ``steps`` decode steps after them).

    The last ``steps`` tokens of each row are fed one by one, the others as the prompt. Prompts are compared at all
    their tokens (num_logits_to_keep 0) and once more as the last token's logits alone (1).
    """
    prompts = [list(row[: len(row) - steps]) for row in rows]
    ids, mask = pad(prompts, side, pad_token_id)
    everything, state, _ = model.forward(ids, mask=mask)
    last, _, _ = model.forward(ids, mask=mask, keep=1)
    decoded = []
    for step in range(steps):
        fed = np.asarray([[row[len(row) - steps + step]] for row in rows], np.int64)
        logits, state, _ = model.forward(fed, state, keep=1)
        decoded.append(logits[:, -1])
    prefill: list[tuple[Array, Array]] = []
    decode: list[tuple[Array, Array]] = []
    for i, row in enumerate(rows):
        alone = model.logits(row)
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


def unequal_rows(passages: Sequence[Sequence[int]], steps: int) -> list[list[int]]:
    """Up to four rows cut from the passages, prompts of 1 token up to the longest that there is, ``steps`` beyond."""
    longest = max(map(len, passages)) - steps
    lengths = sorted({min(length, longest) for length in (1, 5, 18, 64) if longest > 0})
    by_length = sorted(passages, key=len, reverse=True)
    fitting = [[ids for ids in by_length if len(ids) >= length + steps] for length in lengths]
    return [
        list(some[i % len(some)][: length + steps])
        for i, (length, some) in enumerate(zip(lengths, fitting, strict=True))
    ]


def _deviation(pairs: Sequence[tuple[Array, Array]]) -> Deviation:
    return Deviation.between(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))
