"""Answers on a terminal or in a pipe: streams text, dims the reasoning, and runs the chat loop."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from io import TextIOWrapper
from typing import TextIO

from rich.console import Console

from ..errors import LfmOnnxError
from ..runtime.chat import Conversation
from ..runtime.generation import Generation, GenerationResult
from ..runtime.reasoning import ReasoningSplitter
from .flags import with_flags
from .output import console, one_line

CHAT_HELP = "/reset forgets the conversation, /tool TEXT gives a tool's result, /exit or Ctrl-D leaves"
# A model may write any character: escape sequences must not reach a terminal.
_CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class AnswerWriter:
    """Writes one answer as it comes. A terminal shows the reasoning dimmed, without its tags; a pipe gets the text."""

    def __init__(self, out: TextIO | None = None, *, hide_thinking: bool = False) -> None:
        self._out = out if out is not None else sys.stdout
        self._terminal = self._out.isatty()
        if isinstance(self._out, TextIOWrapper):  # a pipe of an encoding without emoji must not end the answer
            self._out.reconfigure(errors="replace")
        self._console = Console(file=self._out, highlight=False, soft_wrap=True)
        self._hide_thinking = hide_thinking
        self._thought = self._answered = False

    def write(self, generation: Generation) -> GenerationResult:
        """Stream ``generation`` to its end; Ctrl-C cancels it and keeps what came so far."""
        self._thought = self._answered = False
        splitter = ReasoningSplitter(opened=generation.thinks_from_start)
        split = self._terminal or self._hide_thinking
        try:
            for token in generation:
                self._pieces(splitter.feed(token.text) if split else [(False, token.text)])
            result = generation.result
        except KeyboardInterrupt:
            result = generation.cancel()
        self._pieces(splitter.flush())
        self._out.write("\n")
        self._out.flush()
        return result

    def _pieces(self, pieces: Iterable[tuple[bool, str]]) -> None:
        for thinking, piece in pieces:
            if thinking:
                self._thought = True
                if not self._hide_thinking:
                    self._print(piece, "dim")
                continue
            # Behind the reasoning the answer starts on a line of its own, whatever white space the model put there.
            text = piece.lstrip() if self._thought and not self._answered else piece
            if text and self._thought and not self._answered and not self._hide_thinking:
                text = "\n" + text
            self._answered = self._answered or bool(text)
            self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        if self._terminal:
            self._console.print(text.translate(_CONTROL_CHARACTERS), style=style, end="", markup=False, emoji=False)
        else:
            self._out.write(text)
        self._out.flush()


def speed_line(result: GenerationResult) -> str:
    """One line of figures on an answer."""
    return (
        f"{result.prompt_tokens} prompt tokens ({result.cached_tokens} kept) in {result.prefill_s:.2f} s, "
        f"{len(result.token_ids)} new at {result.tokens_per_second:.1f} tokens/s, end: {result.finish_reason}"
    )


def chat_loop(conversation: Conversation, *, hide_thinking: bool = False) -> None:
    """Read turns from stdin, a line each, and answer them until its end, /exit or Ctrl-D.

    A turn that fails (too long for the context, say) is reported on stderr and taken back; the chat goes on.
    """
    interactive = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):  # bytes that are no text cost their line alone
        sys.stdin.reconfigure(errors="surrogateescape")
    writer = AnswerWriter(hide_thinking=hide_thinking)
    errors = console(stderr=True)
    if interactive:
        errors.print(CHAT_HELP, style="dim")
    while (line := _read_line("> " if interactive else "")) is not None:
        command, _, rest = line.strip().partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command == "/reset":
            conversation.reset()
            continue
        if not line.strip():
            continue
        try:
            content, role = (rest, "tool") if command == "/tool" else (line, "user")
            result = writer.write(conversation.send(content, role=role))
        except LfmOnnxError as error:
            errors.print(f"error: {one_line(with_flags(str(error)))}", style="red", soft_wrap=True)
            continue
        if interactive:
            errors.print(speed_line(result), style="dim")


def _read_line(prompt: str) -> str | None:
    while True:
        try:
            return input(prompt).removeprefix("\ufeff")  # PowerShell puts one before the first line
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not prompt:
                return None
            print(file=sys.stderr)  # Ctrl-C at the prompt discards the line
