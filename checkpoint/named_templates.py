"""The chat templates of a folder by name: "default", and others such as "tool_use" for conversations with tools."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from ..strict_json import read_untrusted

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"
_MOST_BYTES = 4 << 20


def read_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Sources by name, as transformers takes them: files go before what tokenizer_config.json (``settings``) holds.

    TokenizerError where a file cannot be read, or the settings hold neither a text nor a list of named texts.
    """
    paths = {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    if os.path.lexists(folder / TEMPLATE_FILE):
        paths = {DEFAULT: folder / TEMPLATE_FILE} | paths
    if paths:
        return {name: _read(path) for name, path in paths.items()}
    template = settings.get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {DEFAULT: template}
    if isinstance(template, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        for item in template
    ):
        return {item["name"]: item["template"] for item in template}
    raise TokenizerError(f"{folder / 'tokenizer_config.json'}: chat_template: expected text or a list of named texts")


def template_path(name: str) -> str:
    """Where in a folder the template of that name stands; TokenizerError for a name that no file can have."""
    if name == DEFAULT:
        return TEMPLATE_FILE
    if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:
        raise TokenizerError(f"a chat template has the name {name!r:.80}: expected letters, digits, - and _")
    return f"{TEMPLATE_FOLDER}/{name}.jinja"


def _read(path: Path) -> str:
    try:
        text = read_untrusted(path, TokenizerError, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
