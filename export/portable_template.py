"""The chat template written, with the same meaning, so that onnxruntime-genai renders it like every other client."""

from __future__ import annotations

import re

_TAG = re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)

# `"</think>" in content`, between words after and before which it stands for a whole operand.
_THINK_TEST = re.compile(
    r"""(?P<before>(?:\b(?:if|elif|and|or|not)\s+|[(=]\s*))
    (?P<tag>"</?think>"|'</?think>')\s+(?P<negated>not\s+)?in\s+
    (?P<text>[A-Za-z_]\w*(?:\.\w+|\[(?:"\w+"|'\w+'|-?\d+)\])*)
    (?=\s*(?:\)|-?%\}|-?\}\}|\b(?:and|or|else)\b))""",
    re.VERBOSE,
)


def portable_template(template: str) -> str:
    """``template`` with ``"</think>" in content`` written by ``content.split("</think>") | length > 1``.

    LFM2.5 templates leave past reasoning out by that test, but genai's template engine takes every ``in`` on a string
    for false and keeps it. Other tests with ``in`` stay: their right side may be a mapping or a list.
    """
    return _TAG.sub(lambda tag: _THINK_TEST.sub(_split_test, tag[0]), template)


def _split_test(test: re.Match[str]) -> str:
    text, tag = test["text"], test["tag"]
    contained = f"({text} is string and {text}.split({tag}) | length > 1)"
    return test["before"] + (f"(not {contained})" if test["negated"] else contained)
