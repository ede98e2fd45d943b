"""Splits a model's text into its reasoning (between <think> and </think>) and its answer, whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterator

from ..checkpoint.chat_template import THINK_END, THINK_START


def split_reasoning(text: str, *, opened: bool = False) -> tuple[str, str]:
    """(reasoning, answer) of a whole text. opened: the prompt itself ended inside a <think> block.

    A block that was never closed (the length limit was reached) is all reasoning and leaves the answer empty.
    """
    splitter = ReasoningSplitter(opened=opened)
    parts: dict[bool, list[str]] = {True: [], False: []}
    for thinking, piece in (*splitter.feed(text), *splitter.flush()):
        parts[thinking].append(piece)
    return "".join(parts[True]).strip(), "".join(parts[False]).strip()


class ReasoningSplitter:
    """Tells reasoning from answer while text streams in; the tags are dropped, even when split over pieces.

    Only a block at the very beginning is reasoning: an answer may speak of <think> without being cut.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self.thinking = opened
        self._answering = False
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[bool, str]]:
        """Yield (is reasoning, text) pieces; what may become a tag is held back until it is certain."""
        self._held += text
        if not self.thinking and not self._answering:
            beginning = self._held.lstrip()
            if beginning.startswith(THINK_START):
                self.thinking = True
                self._held = beginning[len(THINK_START) :]
            elif not THINK_START.startswith(beginning):
                self._answering = True
        if self.thinking:
            before, found, after = self._held.partition(THINK_END)
            held = 0 if found else beginning_at_end(before, THINK_END)
            ready, self._held = before[: len(before) - held], before[len(before) - held :]
            if ready:
                yield True, ready
            if found:
                self.thinking, self._answering, self._held = False, True, after
        if self._answering and self._held:
            ready, self._held = self._held, ""
            yield False, ready

    def flush(self) -> Iterator[tuple[bool, str]]:
        """Yield what was held back, at the end of the text."""
        if self._held:
            yield self.thinking, self._held
        self._held = ""


def beginning_at_end(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
