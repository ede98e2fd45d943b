"""The sample model's tokenizer: byte-level BPE, digits one by one, LFM2.5's special tokens; and its chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = Path(__file__).with_name("tiny_chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")
SPECIAL_TOKENS = (
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|fim_pre|>",
    "<|fim_mid|>",
    "<|fim_suf|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|tool_list_start|>",
    "<|tool_list_end|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_response_start|>",
    "<|tool_response_end|>",
)
THINKING_TOKENS = ("<think>", "</think>")
PAD, BOS, EOS = "<|pad|>", "<|startoftext|>", "<|im_end|>"
# Contractions, words with one leading mark or space, single digits, punctuation runs, line ends, spaces: the
# pre-tokenization that every client of byte-level BPE files knows.
PRE_TOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Learn the merges from rendered chats.

    Returns:
        A ``tokenizers.Tokenizer`` with ``vocab_size`` tokens: special ones first, then bytes, then merges.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *THINKING_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The trainer does not cut texts at special tokens by itself; without this, merges would run across "<think>".
    marks = re.compile("|".join(map(re.escape, (*SPECIAL_TOKENS, *THINKING_TOKENS))))
    tokenizer.train_from_iterator((piece for text in texts for piece in marks.split(text) if piece), trainer)
    # Thinking marks are single tokens, but ordinary text: they stay when special tokens are skipped in decoding.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINKING_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def tokenizer_config(context_length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json, chat template included."""
    return {
        "add_bos_token": True,
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "legacy": False,
        "model_max_length": context_length,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def save_tokenizer(tokenizer: Any, folder: Path, context_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(context_length), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n", encoding="utf-8")


def render(
    messages: list[dict[str, str]],
    tools: list[dict[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
    keep_past_thinking: bool = False,
) -> str:
    """Render a chat through the template with jinja2's sandbox alone."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    global _compiled
    if _compiled is None:
        _compiled = ImmutableSandboxedEnvironment().from_string(CHAT_TEMPLATE)
    return str(
        _compiled.render(
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            bos_token=BOS,
            keep_past_thinking=keep_past_thinking,
        )
    )


_compiled: Any = None
