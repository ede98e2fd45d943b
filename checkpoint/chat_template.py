"""A checkpoint's chat template, rendered as transformers does, in a process with limits on time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .template_renderer.renderer import RENDERER

THINK_START, THINK_END = "<think>", "</think>"
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A template. It came with the checkpoint and is a program: it runs in a sandbox within the renderer's budget."""

    def __init__(self, source: str) -> None:
        """TokenizerError if ``source`` is not a template."""
        self._source = source
        RENDERER.compile(source)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt text of ``messages``. TokenizerError, one line, when the template fails or exceeds its limits."""
        return RENDERER.render(self._source, {"messages": [_message(message) for message in messages], **variables})


def _message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[key] for key in _REASONING_KEYS if key in present), None)
    return present if reasoning is None else {"thinking": reasoning, **present, "reasoning_content": reasoning}
