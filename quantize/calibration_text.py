"""From calibration text to sequences of token ids: few tokens, spread over all files to see every language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..checkpoint.config import LfmConfig
from ..checkpoint.tokenizer import ChatTokenizer
from ..errors import InputError, TokenizerError
from .calibration_files import DEFAULT_CALIBRATION, CalibrationFile, Document, read_calibration

TokenIds = npt.NDArray[np.int64]
TextHalf = Literal["calibration", "held-out"]

# At 8.5B parameters, 1.5B of them active, 2048 tokens take 2 * 1.5e9 * 2048 = 6e12 operations, a minute or two on two
# cores, and a residual stream of 2048 * 2048 * 4 bytes = 16 MiB. Each of 32 experts, of which 4 are chosen a token,
# sees 256 tokens on average. Twice the tokens cost twice the time, and the error of a mean falls with their root only.
DEFAULT_CALIBRATION_TOKENS = 2048
SEQUENCE_TOKENS = 512
# Less of a text says little: where the limit cannot give every file this much, files are left out at even distances.
LEAST_TOKENS = 32
MOST_TOKENS = 1 << 18
"""Each layer's inputs are held for all tokens, 2 GB of float32 at a width of 2048; GPTQ's authors took as many."""


class TokenizedModel(Protocol):
    """What calibration needs of a checkpoint: its folder with tokenizer.json, and the size of its vocabulary."""

    folder: Path
    config: LfmConfig


def load_calibration(
    path: Path | None,
    checkpoint: TokenizedModel,
    max_tokens: int = DEFAULT_CALIBRATION_TOKENS,
    *,
    half: TextHalf = "calibration",
) -> list[TokenIds]:
    """At most ``max_tokens`` token ids, in sequences int64 [n], n <= 512, each beginning with the tokenizer's own bos.

    path: a .txt, .md or .jsonl file, or a folder of them; None: the text that ships with lfm-onnx. Texts are cut into
    passages; conversations go through the checkpoint's chat template. half: every second passage or line is "held-out"
    for measuring, and no sequence of "calibration" holds any of it. Files get equal shares of the limit, short ones
    leave theirs to the others; within a file, the sequences are spread from its beginning to its end. The same files
    give the same sequences. Raises InputError (file, line, what was expected) and TokenizerError.
    """
    if not LEAST_TOKENS <= max_tokens <= MOST_TOKENS:
        raise InputError(f"calibration: expected {LEAST_TOKENS} to {MOST_TOKENS} tokens, found {max_tokens}")
    tokenizer = ChatTokenizer.load(checkpoint.folder)
    # The default text's conversations are left out where nothing can render them; a user's own are an error.
    chats = path is not None or tokenizer.has_template
    halves = [(file, _half(file, half, chats=chats)) for file in read_calibration(path or DEFAULT_CALIBRATION)]
    halves = [(file, indices) for file, indices in halves if indices]
    if not halves:
        raise InputError(
            f"{path}: too short to hold a half out for measuring; expected two passages or lines in a file"
        )
    count = min(len(halves), max_tokens // LEAST_TOKENS)
    evenly = [halves[place * len(halves) // count] for place in range(count)]
    by_file = [_at_least(_token_sequences(file, indices, tokenizer), max_tokens) for file, indices in evenly]
    shares = equal_shares([sum(map(len, sequences)) for sequences in by_file], max_tokens)
    chosen = [ids for sequences, share in zip(by_file, shares, strict=True) for ids in _cut(sequences, share)]
    if not chosen:
        raise InputError(f"{path}: the tokenizer makes no tokens of it; expected text in the model's languages")
    _require_known(chosen, checkpoint)
    return [np.asarray(ids, np.int64) for ids in chosen]


@dataclass(frozen=True)
class _TokenSequence:
    """Tokens of one document behind the tokens that every text begins with."""

    prefix: list[int]
    body: list[int]
    chat: bool

    def __len__(self) -> int:
        return len(self.prefix) + len(self.body)

    def first(self, tokens: int) -> list[int]:
        """This sequence in ``tokens`` tokens; of a conversation the last ones, as its first are the same in all."""
        room = max(tokens - len(self.prefix), 0)
        body = self.body[len(self.body) - min(room, len(self.body)) :] if self.chat else self.body[:room]
        return [*self.prefix, *body]


def _half(file: CalibrationFile, half: TextHalf, *, chats: bool) -> list[int]:
    usable = [index for index in range(len(file.units)) if chats or file.document(index).text is not None]
    return usable[1::2] if half == "held-out" else usable[::2]


def _token_sequences(
    file: CalibrationFile, indices: Sequence[int], tokenizer: ChatTokenizer
) -> Iterator[_TokenSequence]:
    """The first of each document, then the second of each, and so on; documents in the order of ``spread_order``."""
    later = []
    for place in spread_order(len(indices)):
        sequences = _document_sequences(file.document(indices[place]), tokenizer)
        yield from sequences[:1]
        later.append(sequences[1:])
    for group in zip_longest(*later):
        yield from (sequence for sequence in group if sequence is not None)


def _document_sequences(document: Document, tokenizer: ChatTokenizer) -> list[_TokenSequence]:
    prefix = tokenizer.encode("", add_special=True)
    try:
        if document.text is None:
            body = tokenizer.encode(tokenizer.render(document.messages, document.tools, add_generation_prompt=False))
            body = body[len(prefix) :] if body[: len(prefix)] == prefix else body
        else:
            body = tokenizer.encode(document.text)
    except (InputError, TokenizerError) as error:
        raise type(error)(f"{document.where}: {error}") from error
    size = max(1, SEQUENCE_TOKENS - len(prefix))
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return [_TokenSequence(prefix[:SEQUENCE_TOKENS], piece, document.text is None) for piece in pieces]


def _at_least(sequences: Iterable[_TokenSequence], tokens: int) -> list[_TokenSequence]:
    """The first sequences that hold ``tokens`` tokens together, or all: whatever comes after them is never made."""
    taken: list[_TokenSequence] = []
    for sequence in sequences:
        taken.append(sequence)
        tokens -= len(sequence)
        if tokens <= 0:
            break
    return taken


def _cut(sequences: Iterable[_TokenSequence], tokens: int) -> Iterator[list[int]]:
    """The first sequences, the last one shortened; a rest too small to say anything is left unused."""
    least = 1
    for sequence in sequences:
        if tokens < max(least, len(sequence.prefix) + 1):
            return
        ids = sequence.first(tokens)
        yield ids
        tokens -= len(ids)
        least = LEAST_TOKENS // 2


def equal_shares(available: Sequence[int], limit: int) -> list[int]:
    """As equal as possible, none above what is available, together at most ``limit``."""
    shares = [0] * len(available)
    for place, index in enumerate(sorted(range(len(available)), key=lambda index: available[index])):
        shares[index] = min(available[index], (limit - sum(shares)) // (len(available) - place))
    return shares


def spread_order(count: int) -> list[int]:
    """0 … count-1 so that the first few, however many, lie far apart: sorted by their bits read backwards."""
    bits = max(count - 1, 0).bit_length()
    return sorted(range(count), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2) if bits else 0)


def _require_known(sequences: Iterable[list[int]], checkpoint: TokenizedModel) -> None:
    largest = max(map(max, sequences))
    if largest >= checkpoint.config.vocab_size:
        raise TokenizerError(
            f"{checkpoint.folder / 'tokenizer.json'}: gives the token id {largest}, but the model knows "
            f"{checkpoint.config.vocab_size} tokens; expected the tokenizer of this checkpoint"
        )
