"""The library's messages name parameters, and the command line gives each the spelling of its option."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import lfm_onnx
import pytest
from lfm_onnx.cli.flags import PARAMETERS, with_flags
from lfm_onnx.cli.main import main

PACKAGE = Path(lfm_onnx.__file__).parent
LIBRARY = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "cli")


def literals() -> Iterator[tuple[str, str]]:
    """(place, text) of every string of the library that is no docstring."""
    for folder in LIBRARY:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            # A string that is a statement: a docstring, of a module, class, function or field.
            prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.value


def test_no_message_of_the_library_speaks_of_the_command_lines_options() -> None:
    # Whole commands may be named: what `lfm-onnx compile DIR --soc NAME` does, no function of the same package does.
    options = {option for name in main.list_commands(None) for option in options_of(name)}
    found = [(place, text) for place, text in literals() if set(re.findall(r"--[a-z][a-z0-9-]+", text)) & options]
    assert [item for item in found if "lfm-onnx " not in item[1] and not item[1].startswith(" --")] == []


def options_of(command: str) -> set[str]:
    found = main.get_command(None, command)
    assert found is not None
    return {spelling for option in found.params for spelling in (*option.opts, *option.secondary_opts)}


def test_every_parameter_is_an_option_of_a_command() -> None:
    options = {option for name in main.list_commands(None) for option in options_of(name)}
    for name in PARAMETERS:
        spelled = with_flags(f"`{name}=False`" if name in ("tokenizer", "native") else f"`{name}`")
        assert spelled in options, name


@pytest.mark.parametrize(
    "message, expected",
    [
        ("`max_kld` is 0", "--max-kld is 0"),
        ("`max_kld=0.001` cannot be kept", "--max-kld 0.001 cannot be kept"),
        ('use `precision="fp16"`', "use --precision fp16"),
        ("leave out `tokenizer=False`", "leave out --no-tokenizer"),
        ("add `replace=True`", "add --force"),
        ("run `lfm-onnx compile a --soc b`", "run `lfm-onnx compile a --soc b`"),
        ("`never_heard_of`", "`never_heard_of`"),
    ],
)
def test_parameters_become_flags(message: str, expected: str) -> None:
    assert with_flags(message) == expected
