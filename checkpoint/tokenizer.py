"""Text to token ids and back: the checkpoint's own tokenizer.json and chat template, without transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import InputError, TokenizerError, reason_of
from ..strict_json import JsonObject, decode_text, read_untrusted
from .chat_template import THINK_START, ChatTemplate
from .named_templates import DEFAULT, TOOL_USE, read_templates
from .template_renderer.renderer import RENDERER

Message = Mapping[str, Any]
_SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_TOKENIZER_BYTES = 64 << 20
"""Of one file; the largest vocabularies take half of it."""


def parse_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    """What a tokenizer.json describes, with a byte order mark too; raises whatever the tokenizers library does."""
    return tokenizers.Tokenizer.from_str(decode_text(data))


class ChatTokenizer:
    """Encodes and decodes text, and renders conversations with the checkpoint's template."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
    ) -> None:
        self._tokenizer = tokenizer
        self._templates = templates
        self._compiled: dict[str, ChatTemplate] = {}
        self.special_tokens = dict(special_tokens)
        # Left in by some checkpoints from training; a prompt must be neither cut nor filled up.
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @classmethod
    def load(cls, folder: str | Path) -> ChatTokenizer:
        """Read tokenizer.json (required), tokenizer_config.json, special_tokens_map.json and the chat templates.

        Raises TokenizerError.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(f"{path}: not found; the tokenizer.json of the checkpoint is needed here")
        settings = _read_settings(folder / "tokenizer_config.json")
        special = _read_settings(folder / "special_tokens_map.json")
        templates = read_templates(folder, settings)
        if templates:
            RENDERER.start()  # it comes up while the vocabulary is read
        data = read_untrusted(path, TokenizerError, MAX_TOKENIZER_BYTES)
        try:
            tokenizer = parse_tokenizer(data)
        except Exception as error:  # the library raises plain Exception whatever is wrong
            raise TokenizerError(f"{path}: not a tokenizer.json that can be read: {reason_of(error)}") from error
        return cls(tokenizer, templates, {**_special_tokens(special), **_special_tokens(settings)})

    @property
    def has_template(self) -> bool:
        """Whether any conversation can be rendered, with tools or without."""
        return DEFAULT in self._templates

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of ``text``; special tokens written out in it are recognized. add_special: with bos and the like
        as the tokenizer adds them to a raw text (a rendered conversation already has them).
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special).ids
        except TypeError as error:
            raise InputError("the text cannot be encoded: it holds lone surrogates, bytes that are no UTF-8") from error
        except Exception as error:
            raise InputError(f"the text cannot be encoded: {reason_of(error)}") from error

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of token ids; ids that the tokenizer does not know give nothing, incomplete characters U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """The id of one token as written in the vocabulary, or None."""
        return self._tokenizer.token_to_id(token)

    def vocabulary(self) -> dict[str, int]:
        """Every token as written in the vocabulary, added ones included, with its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def stable_length(self, ids: Sequence[int]) -> int:
        """How many of a prompt's ``ids`` stay as they are whatever text follows: up to its last special token.

        Behind it, the last characters may merge with the next ones. <think> does not count: templates drop it later.
        """
        special = {
            id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.content != THINK_START
        }
        return next((at + 1 for at in range(len(ids) - 1, -1, -1) if ids[at] in special), len(ids))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation, exactly as transformers' apply_chat_template(tokenize=False) gives it.

        tools: JSON schemas. variables: further names that the template reads. Raises TokenizerError when the folder
        has no template or the template fails, InputError when messages or tools are not a list of objects.
        """
        _require_objects("messages", messages)
        if not messages:
            raise InputError("messages: expected at least one message, found none")
        for message in messages:
            if not isinstance(message.get("role"), str):
                raise InputError(f"messages: expected a role in each, found the keys {', '.join(map(str, message))}")
        if tools is not None:
            _require_objects("tools", tools)
        given = {"documents": None, **self.special_tokens, **variables}
        return self._template(TOOL_USE if tools is not None else DEFAULT).render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **given
        )

    def _template(self, name: str) -> ChatTemplate:
        if not self._templates:
            raise TokenizerError("this folder has no chat template: give the prompt as raw text")
        name = name if name in self._templates else DEFAULT
        if name not in self._templates:
            raise TokenizerError(f"no default chat template, only {', '.join(sorted(self._templates))}")
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(self._templates[name])
        return self._compiled[name]


class StreamingDetokenizer:
    """Turns token ids into text as they come; a character split over tokens appears with its last token.

    Concatenated pieces equal ``ChatTokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes, "" while a character is incomplete."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._shown):
            return ""
        piece = text[len(self._shown) :]
        # The last token stays as context: some decoders treat the first token of a text in another way.
        self._ids = self._ids[-1:]
        self._shown = self._decode(self._ids)
        return piece

    def flush(self) -> str:
        """What is left at the end: an incomplete character comes out as U+FFFD."""
        text = self._decode(self._ids)
        piece = text[len(self._shown) :] if text.startswith(self._shown) else text
        self._ids, self._shown = [], ""
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)


def _require_objects(name: str, values: object) -> None:
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, Mapping) for value in values):
        raise InputError(f"{name}: expected a list of objects")


def _read_settings(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    return dict(JsonObject.read(path, TokenizerError, most_bytes=MAX_TOKENIZER_BYTES).data)


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in _SPECIAL_TOKEN_NAMES:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens[name] = value
    return tokens
