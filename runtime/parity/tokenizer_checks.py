"""The artifact's tokenizer and chat template against the checkpoint's: every token, probe texts and probe chats."""

from __future__ import annotations

from collections.abc import Iterator

from ...checkpoint.tokenizer import ChatTokenizer
from ...errors import LfmOnnxError
from .default_prompts import CHATS, TEXTS
from .file_checks import difference_check
from .report.contents import Check

_SYSTEM_AND_TOOL_RESULT = (
    "chat, tool result",
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "<think>I look it up.</think>One moment."},
        {"role": "tool", "content": '{"celsius": 21.5}'},
    ],
    None,
)
PROBE_CHATS = (*CHATS, _SYSTEM_AND_TOOL_RESULT)


def tokenizer_checks(own: ChatTokenizer, theirs: ChatTokenizer) -> list[Check]:
    """Named by the file: own are the artifact's, theirs the checkpoint's."""
    return [
        difference_check("tokenizer.json", [*_tokens(own, theirs), *_texts(own, theirs)]),
        difference_check("chat_template.jinja", list(_chats(own, theirs))),
    ]


def _tokens(own: ChatTokenizer, theirs: ChatTokenizer) -> list[str]:
    found, expected = own.vocabulary(), theirs.vocabulary()
    differing = [token for token, id in expected.items() if found.get(token) != id]
    differing += [token for token in found if token not in expected]
    return [f"token {token!r} is {found.get(token)}, the checkpoint's {expected.get(token)}" for token in differing]


def _texts(own: ChatTokenizer, theirs: ChatTokenizer) -> Iterator[str]:
    for label, text in TEXTS:
        ids = theirs.encode(text, add_special=True)
        if own.encode(text, add_special=True) != ids:
            yield f"{label}: encoded into other tokens"
        elif own.decode(ids) != theirs.decode(ids):
            yield f"{label}: decoded into another text"


def _chats(own: ChatTokenizer, theirs: ChatTokenizer) -> Iterator[str]:
    if own.has_template != theirs.has_template:
        yield "no chat template" if theirs.has_template else "a chat template, the checkpoint has none"
        return
    if not own.has_template:
        return
    for label, messages, tools in PROBE_CHATS:
        for add_generation_prompt in (True, False):
            found, expected = (
                _rendered(tokenizer, messages, tools, add_generation_prompt) for tokenizer in (own, theirs)
            )
            if found != expected:
                yield f"{label}: rendered into another prompt"
                break


def _rendered(tokenizer: ChatTokenizer, messages: object, tools: object, add_generation_prompt: bool) -> str | None:
    """None where the template refuses the conversation, as some do with roles that they do not know."""
    try:
        return tokenizer.render(messages, tools, add_generation_prompt)  # type: ignore[arg-type]
    except LfmOnnxError:
        return None
