"""Tool calls are read from text in every form that LFM models write, and nothing in them is ever executed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lfm_onnx.runtime.tool_calls import MAX_CALL_CHARACTERS, ToolCall, parse_tool_calls
from lfm_onnx.strict_json import parse_json


def read(block: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of the calls in one block."""
    parsed = parse_tool_calls(f"<|tool_call_start|>{block}<|tool_call_end|>")
    assert not parsed.malformed
    return [(call.name, call.arguments) for call in parsed.calls]


@pytest.mark.parametrize(
    ("block", "calls"),
    [
        ('[get_weather(city="Berlin", days=3)]', [("get_weather", {"city": "Berlin", "days": 3})]),
        ("[f(a='x', b=\"it's\")]", [("f", {"a": "x", "b": "it's"})]),
        ("[f(a=True, b=False, c=None)]", [("f", {"a": True, "b": False, "c": None})]),
        ("[f(a=true, b=false, c=null)]", [("f", {"a": True, "b": False, "c": None})]),
        ("[f(a=[1, [2.5, -3]], b={'k': {'n': [None]}})]", [("f", {"a": [1, [2.5, -3]], "b": {"k": {"n": [None]}}})]),
        ("[calendar.events.create(day=1)]", [("calendar.events.create", {"day": 1})]),
        ("[search-the-docs(q='x')]", [("search-the-docs", {"q": "x"})]),
        ("f(a=1)", [("f", {"a": 1})]),
        ("f(a=1), g(b=2)", [("f", {"a": 1}), ("g", {"b": 2})]),
        ("[f(), g()]", [("f", {}), ("g", {})]),
        ("\n[f(a=1)]\n", [("f", {"a": 1})]),
        ('[f(code="if x:\n  y = \\"1\\"")]', [("f", {"code": 'if x:\n  y = "1"'})]),
        (r'[f(pattern="\d+")]', [("f", {"pattern": r"\d+"})]),
        ('[f(text="größer 🙂")]', [("f", {"text": "größer 🙂"})]),
        ("[f(t=(1, 2))]", [("f", {"t": [1, 2]})]),
        (r"[f(text='done \ud83d\ude00', x={'\ud83d\ude00': 1})]", [("f", {"text": "done 😀", "x": {"😀": 1}})]),
        ("[f(x={2: 'a', 2.5: 'b', True: 'c'})]", [("f", {"x": {"2": "a", "2.5": "b", "true": "c"}})]),
    ],
)
def test_pythonic_calls(block: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert read(block) == calls


@pytest.mark.parametrize(
    "block",
    [
        '[{"name": "f", "arguments": {"a": [1, null, true]}}]',
        '{"name": "f", "arguments": {"a": [1, null, true]}}',
        '{"name": "f", "parameters": {"a": [1, null, true]}}',
        '{"name": "f", "arguments": "{\\"a\\": [1, null, true]}"}',
        '[{"type": "function", "function": {"name": "f", "arguments": {"a": [1, null, true]}}}]',
    ],
)
def test_json_calls(block: str) -> None:
    assert read(block) == [("f", {"a": [1, None, True]})]


def test_text_before_between_and_after_is_content() -> None:
    parsed = parse_tool_calls(
        "Let me look.<|tool_call_start|>[f(a=1)]<|tool_call_end|> And <|tool_call_start|>[g()]<|tool_call_end|>then."
    )
    assert parsed.content == "Let me look. And then."
    assert parsed.calls == (ToolCall("f", {"a": 1}), ToolCall("g", {}))
    assert parse_tool_calls("f(a=1)").calls == (), "without its markers a call is text"


@pytest.mark.parametrize(
    "block",
    [
        "[__import__('os').system(command='true')]",
        "[f(a=__import__('os').getcwd())]",
        "[f(a=open('x'))]",
        "[f(a=[x for x in (1,)])]",
        "[f(a=lambda: 1)]",
        "[f(**{'a': 1})]",
        "[f(1, 2)]",
        "[f(a=1, a=2)]",
        "[f(a=b'x')]",
        "[f(a={[1]: 2})]",
        "[f(a=f'{1}')]",
        "[f(a=1)",
        "[1, 2]",
        "[]",
        "",
        "not a call",
        "[f(a=" + "[" * 5000 + "]" * 5000 + ")]",
        "[" * 100_000,
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        "[f(a='" + "x" * MAX_CALL_CHARACTERS + "')]",
        "[f(a=1e999)]",
        "[f(a=[-1e999])]",
        "[f(a={1e999: 1})]",
        "[f(a={1: 1, '1': 2})]",
        "[f(a=0x" + "f" * 5000 + ")]",
        r"[f(a='\ud83d')]",
        r"[f(a={'\ude00': 1})]",
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "f", "arguments": {"a": "\\ud83d"}}',
        '{"name": "\\ud83d", "arguments": {}}',
        '{"name": "f", "arguments": {"a": ' + "[" * 400 + "]" * 400 + "}}",
    ],
    ids=lambda block: block[:40],
)
def test_what_is_not_a_call_of_plain_data_is_malformed(block: str) -> None:
    parsed = parse_tool_calls(f"a<|tool_call_start|>{block}<|tool_call_end|>b")
    assert parsed.calls == ()
    assert parsed.malformed == (() if block == "[]" else (block,))
    assert parsed.content == "ab"


def test_a_call_cut_off_by_the_length_limit_is_malformed() -> None:
    parsed = parse_tool_calls("one <|tool_call_start|>[f(a=1)]<|tool_call_end|><|tool_call_start|>[f(a=")
    assert parsed.calls == (ToolCall("f", {"a": 1}),)
    assert parsed.malformed == ("[f(a=",)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
arguments = st.dictionaries(st.from_regex(r"a[a-z_]{0,5}", fullmatch=True).map(lambda s: s + "_x"), values, max_size=4)


@settings(max_examples=150, deadline=None)
@given(arguments)
def test_whatever_arguments_are_written_are_read_back(given_arguments: dict[str, Any]) -> None:
    assume("<|tool_call_end|>" not in str(given_arguments))
    pythonic = f"[tool({', '.join(f'{name}={value!r}' for name, value in given_arguments.items())})]"
    assert read(pythonic) == [("tool", given_arguments)]
    assert read(json.dumps({"name": "tool", "arguments": given_arguments})) == [("tool", given_arguments)]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("[](){}=,.'\"\\\nfa1-*<|>:")))
def test_any_text_is_taken_apart_without_an_error(text: str) -> None:
    parsed = parse_tool_calls(f"<|tool_call_start|>{text}<|tool_call_end|>")
    assert all(isinstance(call.name, str) and isinstance(call.arguments, dict) for call in parsed.calls)


# What Python's and JSON's syntax can write, of which JSON holds a part.
LITERALS = st.recursive(
    st.sampled_from(["1e999", "-1e999", "0x" + "f" * 400, "1_0", "None", "true", "1j", "b'x'", "2 ** 3", "nan"])
    | st.floats().map(repr)
    | st.integers().map(repr)
    | st.text(st.sampled_from("a\\ud83e0x'\"\n")).map(lambda text: f"'{text}'"),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(inner, inner), max_size=3).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(LITERALS, st.booleans())
def test_what_is_read_is_valid_json_and_reads_back_the_same(literal: str, as_json: bool) -> None:
    text = f'{{"name": "f", "arguments": {{"a": {literal}}}}}' if as_json else f"[f(a={literal})]"
    for call in parse_tool_calls(f"<|tool_call_start|>{text}<|tool_call_end|>").calls:
        written = json.dumps(call.arguments, allow_nan=False, ensure_ascii=False).encode("utf-8")
        assert parse_json(written) == call.arguments
