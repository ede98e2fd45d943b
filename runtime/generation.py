"""One generation: prompt in chunks, then token by token, as a stream of events with a result at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..checkpoint.chat_template import THINK_START
from ..checkpoint.tokenizer import ChatTokenizer, StreamingDetokenizer
from ..errors import ArtifactError
from .reasoning import beginning_at_end, split_reasoning
from .sampling import Sampler, SamplingOptions
from .session_protocol import SequenceState, Session
from .state import Snapshot
from .tool_calls import ToolCall, parse_tool_calls

PREFILL_CHUNK = 512
# Points to go back to: one per prompt. More than a few are only needed when old turns are edited.
_MAX_SNAPSHOTS = 8


@dataclass(frozen=True)
class Token:
    """A sampled token and the text that it completes: "" inside a character, or while a stop text may be forming."""

    id: int
    text: str


@dataclass(frozen=True)
class GenerationResult:
    """What a generation came to.

    text: everything but the end token, markers included. reasoning: inside <think>. answer: the rest without tool
    calls. token_ids: every sampled id, the end token included. finish_reason: "stop" (an end token or a stop text),
    "length" (max_new_tokens or the context is full) or "cancelled". prompt_tokens: of the whole prompt, of which
    cached_tokens were in the state already. Times in seconds; tokens_per_second of decoding alone, the first token
    belongs to the prefill.
    """

    text: str
    reasoning: str
    answer: str
    tool_calls: tuple[ToolCall, ...]
    malformed_tool_calls: tuple[str, ...]
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens per second, 0 when a single token was sampled."""
        steps = len(self.token_ids) - 1
        return steps / self.decode_s if steps > 0 and self.decode_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the command line prints it."""
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


class TokenContext:
    """A state and the tokens in it, for one sequence: a next prompt that begins with them feeds only the rest.

    LFM's conv state cannot be cut back token by token, so a point near the end of each prompt is kept as a snapshot:
    a template that drops the reasoning of earlier turns makes the prompt differ from what was generated, yet not from
    the prompt before it.
    """

    def __init__(self, session: Session, state: SequenceState) -> None:
        self.session = session
        self.state = state
        self.tokens: list[int] = []
        self._snapshots: list[Snapshot] = []
        self._in_run = False

    def reuse(self, ids: Sequence[int]) -> int:
        """Go back to the longest beginning of ``ids`` that the state can hold; returns its length, below len(ids)."""
        common = 0
        for own, wanted in zip(self.tokens, ids[:-1], strict=False):
            if own != wanted:
                break
            common += 1
        self._snapshots = [snapshot for snapshot in self._snapshots if snapshot.length <= common]
        if self._in_run:  # an interrupt came in between: the state and the tokens may disagree
            self._snapshots, self._in_run, common = [], False, 0
        if common and common == len(self.tokens):
            return common
        if self._snapshots:
            self.state.rewind(self._snapshots[-1])
        else:
            self.state.clear()
        del self.tokens[self.state.length :]
        return self.state.length

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Feed ``ids`` at once; logits [vocab] of the last one, valid until the next call."""
        self._in_run = True
        logits = self.session.run(self.state, np.asarray(ids, np.int64)[None])
        self.tokens += ids
        self._in_run = False
        result: np.ndarray = logits[0, -1]
        return result

    def discard(self) -> None:
        """Let nothing go on from here: the state has been through values that are not numbers."""
        self._in_run = True

    def keep_point(self) -> None:
        """Make this point one that ``reuse`` can return to."""
        self._snapshots = [*self._snapshots[1 - _MAX_SNAPSHOTS :], self.state.snapshot()]


class Generation:
    """Iterate to get ``Token`` events; ``result`` is there when the iteration has ended (it runs what is left).

    Without a tokenizer the events and the result hold ids and no text.
    """

    def __init__(
        self,
        context: TokenContext,
        tokenizer: ChatTokenizer | None,
        prompt_ids: Sequence[int],
        options: SamplingOptions,
        *,
        end_ids: frozenset[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        prefill_chunk: int = PREFILL_CHUNK,
        keep_point: bool = False,
        on_finish: Callable[[GenerationResult], None] | None = None,
    ) -> None:
        self._context = context
        self._tokenizer = tokenizer
        self._prompt_ids = list(prompt_ids)
        self._sampler = Sampler(options, self._prompt_ids)
        self._end_ids = end_ids
        self._max_new_tokens = max_new_tokens
        self._stop = tuple(stop)
        self._prefill_chunk = prefill_chunk
        self._keep_point = keep_point
        self._on_finish = on_finish
        self._ids: list[int] = []
        self._text = ""
        self._result: GenerationResult | None = None
        self._cached = 0
        self._prefill_s = self._decode_s = 0.0
        self._events = self._run()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._events)

    @property
    def thinks_from_start(self) -> bool:
        """Whether the prompt itself ends inside a <think> block."""
        if self._tokenizer is None:
            return False
        return self._tokenizer.decode(self._prompt_ids[-8:]).rstrip().endswith(THINK_START)

    @property
    def result(self) -> GenerationResult:
        """The result; generates to the end first where that has not happened."""
        for _ in self:
            pass
        assert self._result is not None
        return self._result

    def cancel(self) -> GenerationResult:
        """Stop here; the result holds what came so far, with finish_reason "cancelled"."""
        self._events.close()
        if self._result is None:
            self._finish("cancelled")
        return self.result

    def _run(self) -> Generator[Token, None, None]:
        started = time.perf_counter()
        logits = self._prefill()
        stream = _StoppableText(StreamingDetokenizer(self._tokenizer) if self._tokenizer else None, self._stop)
        reason = "length"
        while True:
            token_id = self._choose(logits)
            now = time.perf_counter()
            if not self._ids:
                self._prefill_s, started = now - started, now
            self._decode_s = now - started
            self._ids.append(token_id)
            if token_id in self._end_ids:
                reason = "stop"
                break
            piece = stream.push(token_id)
            self._text += piece
            full = len(self._ids) >= self._max_new_tokens or self._context.state.length >= self._context.state.limit
            if full or stream.stopped:
                reason = "stop" if stream.stopped else "length"
                rest = stream.flush()
                self._text += rest
                yield Token(token_id, piece + rest)
                break
            yield Token(token_id, piece)
            logits = self._context.feed([token_id])
        if reason == "stop" and not stream.stopped:
            rest = stream.flush()
            self._text += rest
            yield Token(token_id, rest)
        self._finish(reason)

    def _choose(self, logits: np.ndarray) -> int:
        try:
            return self._sampler.choose(logits)
        except ArtifactError:
            self._context.discard()
            raise

    def _prefill(self) -> np.ndarray:
        self._context.state.check(len(self._prompt_ids))
        self._cached = self._context.reuse(self._prompt_ids)
        stable = self._tokenizer.stable_length(self._prompt_ids) if self._tokenizer and self._keep_point else 0
        start = self._cached
        while start < len(self._prompt_ids):
            end = min(start + self._prefill_chunk, len(self._prompt_ids))
            if start < stable:
                end = min(end, stable)
            logits = self._context.feed(self._prompt_ids[start:end])
            if end == stable:
                self._context.keep_point()
            start = end
        return logits

    def _finish(self, reason: str) -> None:
        reasoning, answer = split_reasoning(self._text, opened=self.thinks_from_start)
        parsed = parse_tool_calls(answer)
        self._result = GenerationResult(
            text=self._text,
            reasoning=reasoning,
            answer=parsed.content,
            tool_calls=parsed.calls,
            malformed_tool_calls=parsed.malformed,
            token_ids=tuple(self._ids),
            finish_reason=reason,
            prompt_tokens=len(self._prompt_ids),
            cached_tokens=self._cached,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
        )
        if self._on_finish is not None:
            self._on_finish(self._result)


class _StoppableText:
    """Detokenized text that ends before any of the stop texts; what may begin one is held back."""

    def __init__(self, detokenizer: StreamingDetokenizer | None, stop: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        self._held += self._detokenizer.push(token_id) if self._detokenizer else ""
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        held = max((beginning_at_end(self._held, text) for text in self._stop), default=0)
        ready, self._held = self._held[: len(self._held) - held], self._held[len(self._held) - held :]
        return ready

    def flush(self) -> str:
        rest = self._held + self._detokenizer.flush() if self._detokenizer and not self.stopped else ""
        self._held = ""
        return rest
