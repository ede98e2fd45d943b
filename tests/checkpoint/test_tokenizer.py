"""Tokens and rendered conversations are those of transformers; streams of tokens give whole characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.checkpoint.chat_template import ChatTemplate
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer, StreamingDetokenizer
from lfm_onnx.errors import InputError, TokenizerError
from lfm_onnx.runtime.reasoning import ReasoningSplitter, split_reasoning
from transformers import PreTrainedTokenizerFast

TOOL = {
    "type": "function",
    "function": {"name": "größe", "description": "a <b> & 'c'", "parameters": {"type": "object", "properties": {}}},
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2? "}],
    [
        {"role": "user", "content": "größer 🙂\n\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\nYes."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<think>so</think>\n<|tool_call_start|>[f(a=1)]<|tool_call_end|>"},
        {"role": "tool", "content": '{"x": 1}'},
    ],
]


@pytest.fixture(scope="module")
def own(tiny_lfm: Path) -> ChatTokenizer:
    return ChatTokenizer.load(tiny_lfm)


@pytest.fixture(scope="module")
def theirs(tiny_lfm: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_lfm)


@pytest.mark.parametrize("tools", [None, [TOOL], [TOOL, TOOL]], ids=["no tools", "one tool", "two tools"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["user", "system", "tool call"])
def test_conversations_render_and_encode_as_in_transformers(
    own: ChatTokenizer,
    theirs: PreTrainedTokenizerFast,
    conversation: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
) -> None:
    arguments = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    text = theirs.apply_chat_template(conversation, tokenize=False, **arguments)
    assert own.render(conversation, **arguments) == text
    assert own.encode(text) == theirs.apply_chat_template(conversation, return_dict=False, **arguments)


# Constructs of chat templates in the wild, each with a trap: whitespace rules, non-ASCII JSON, loop control, tags.
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n U {{ m.content }}\n{% endif %}\n"
    "{% endfor %}\n",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m['content'] | trim }};{% endfor %}",
    "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}|{{ 'é<' | tojson(ensure_ascii=True) }}",
    "{% for m in messages %}{% generation %}{{ m.content }}\n{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0, t='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.t = ns.t ~ m.role ~ ns.n %}{% endfor %}{{ ns.t * 2 }}",
    "{% macro turn(m, i=1) %}{{ m.role }}{{ i }}{% endmacro %}{% for m in messages if m.role != 'tool' %}"
    "{{ turn(m, loop.index) }}{% else %}none{% endfor %}",
    "{{ messages[0].reasoning_content is defined }}{{ tools is none }}{{ documents is none }}"
    "{{ unknown | default('-') }}",
    "{{ '%s and %d' % ('a', 3) }}{{ 2 ** 5 }}{{ 'x' ~ 1 ~ none }}{{ messages | map(attribute='role') | join(',') }}",
    "{%- for m in messages -%}{{ m.content.split('</think>')[-1].lstrip() }}{{ eos_token }}{%- endfor -%}",
    "{{ dict(a=1) | tojson }}{{ range(3) | list }}{{ strftime_now('%Y') | length }}{{ messages[::-1][0].role }}",
    "{% for m in messages %}{{ m.thinking or m.reasoning_content or '-' }}{% endfor %}",
]


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["user", "system", "tool call"])
def test_any_template_renders_as_in_transformers(
    theirs: PreTrainedTokenizerFast, own: ChatTokenizer, template: str, conversation: list[dict[str, Any]]
) -> None:
    conversation = [*conversation, {"role": "assistant", "content": "x", "reasoning": "because", "name": None}]
    expected = theirs.apply_chat_template(conversation, chat_template=template, tokenize=False)
    given_variables = {"tools": None, "documents": None, "add_generation_prompt": False}
    assert ChatTemplate(template).render(conversation, **given_variables, **own.special_tokens) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}", "compiled"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0].content.nothing.at_all }}", "no attribute"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "compiled"),
        ("{{ [" * 3000 + "}}", "compiled"),
    ],
    ids=lambda value: value[:30],
)
def test_a_template_that_fails_or_attacks_gives_one_line(template: str, reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason) as failure:
        ChatTemplate(template).render([{"role": "user", "content": "x"}])
    assert "\n" not in str(failure.value)


def test_raw_text_is_encoded_with_the_special_tokens_that_the_tokenizer_adds(
    own: ChatTokenizer, theirs: PreTrainedTokenizerFast
) -> None:
    for text in ("Hello there", "größer 🙂", "<|im_start|>user\nx", ""):
        assert own.encode(text, add_special=True) == theirs.encode(text)
        assert own.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert own.decode(own.encode("größer 🙂 <think>x")) == "größer 🙂 <think>x"


def test_a_begin_token_is_doubled_only_where_transformers_doubles_it(
    own: ChatTokenizer, theirs: PreTrainedTokenizerFast
) -> None:
    bos = own.special_tokens["bos_token"]
    chat = own.encode(own.render([{"role": "user", "content": "Hi"}]))
    assert chat.count(own.token_id(bos)) == 1 == own.encode("Hi", add_special=True).count(own.token_id(bos))
    for text in (bos + "Hi", bos + bos, "Hi" + bos):
        assert own.encode(text, add_special=True) == theirs.encode(text)


def test_settings_left_over_from_training_neither_cut_nor_pad_a_prompt(tiny_lfm: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_lfm / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "one two three four five six"
    ids = ChatTokenizer.load(tmp_path).encode(text)
    assert ids == ChatTokenizer.load(tiny_lfm).encode(text)
    assert len(ids) > 4


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.sampled_from(["", "<think>", "<|im_start|>"]))
def test_a_stream_of_tokens_concatenates_to_the_whole_text(own: ChatTokenizer, text: str, special: str) -> None:
    ids = own.encode((special + text).encode("utf-8", "replace").decode())
    stream = StreamingDetokenizer(own)
    pieces = [stream.push(id) for id in ids]
    assert "".join([*pieces, stream.flush()]) == own.decode(ids)


def test_a_character_of_several_tokens_comes_out_whole_with_its_last_token(own: ChatTokenizer) -> None:
    ids = own.encode("a🙂b")
    assert len(ids) > 3, "this tokenizer splits the emoji"
    stream = StreamingDetokenizer(own)
    pieces = [stream.push(id) for id in ids]
    assert [piece for piece in pieces if piece] == ["a", "🙂", "b"]
    assert stream.flush() == ""


def test_a_character_that_is_cut_off_comes_out_as_a_replacement_at_the_end(own: ChatTokenizer) -> None:
    stream = StreamingDetokenizer(own)
    pieces = [stream.push(id) for id in own.encode("a🙂")[:-1]]
    assert "".join(pieces) == "a"
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_the_stable_part_of_a_prompt_is_a_beginning_of_every_continuation(own: ChatTokenizer) -> None:
    prompt = own.encode(own.render([{"role": "user", "content": "Hi"}]))
    stable = prompt[: own.stable_length(prompt)]
    assert len(stable) < len(prompt)
    for answer in ("Yes.", "\n\nYes.", " yes", "<think>a</think>b"):
        ids = own.encode(own.render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]))
        assert ids[: len(stable)] == stable


def test_the_template_file_goes_before_the_one_in_tokenizer_config(tiny_lfm: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    (tmp_path / "tokenizer.json").write_bytes((tiny_lfm / "tokenizer.json").read_bytes())
    with pytest.raises(TokenizerError, match="no chat template"):
        ChatTokenizer.load(tmp_path).render(messages)
    config = {"chat_template": "config{{ bos_token }}", "bos_token": {"content": "<s>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTokenizer.load(tmp_path).render(messages) == "config<s>"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTokenizer.load(tmp_path).render(messages) == "d"
    assert ChatTokenizer.load(tmp_path).render(messages, tools=[TOOL]) == "t"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTokenizer.load(tmp_path).render(messages) == "file"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", None, "not found"),
        ("tokenizer.json", b"{", "tokenizer.json"),
        ("tokenizer.json", b"\x00\xff", "tokenizer.json"),
        ("tokenizer_config.json", b"[]", "expected a JSON object"),
        ("tokenizer_config.json", b"{", "not JSON"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja"),
    ],
)
def test_broken_files_are_named_in_one_line(
    tiny_lfm: Path, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_lfm / "tokenizer.json").read_bytes())
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=reason) as failure:
        ChatTokenizer.load(tmp_path)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("messages", [[], ["hi"], [{"content": "x"}], "hi", {"role": "user"}])
def test_messages_of_a_wrong_form_are_refused(own: ChatTokenizer, messages: Any) -> None:
    with pytest.raises(InputError, match="messages"):
        own.render(messages)


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("<think>a b</think>\nc", False, "a b", "c"),
        ("\n<think>\na\n</think>\n\nc", False, "a", "c"),
        ("a</think>c", True, "a", "c"),
        ("c", False, "", "c"),
        ("<think>never closed", False, "never closed", ""),
        ("an answer on <think> and </think>", False, "", "an answer on <think> and </think>"),
        ("<think>a</think>the tag <think> again", False, "a", "the tag <think> again"),
        ("<thin", False, "", "<thin"),
        ("", False, "", ""),
    ],
)
def test_reasoning_is_told_from_the_answer_however_the_text_is_cut(
    text: str, opened: bool, reasoning: str, answer: str
) -> None:
    assert split_reasoning(text, opened=opened) == (reasoning, answer)
    splitter = ReasoningSplitter(opened=opened)
    pieces = [piece for character in text for piece in splitter.feed(character)] + list(splitter.flush())
    assert "".join(piece for thinking, piece in pieces if thinking).strip() == reasoning
    assert "".join(piece for thinking, piece in pieces if not thinking).strip() == answer
