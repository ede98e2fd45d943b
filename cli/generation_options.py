"""Options of the commands that answer: what `generate` and `chat` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from ..strict_json import parse_json, read_untrusted
from .options import PATH, Command, native_option, run_options, taken_run_options, threads_option, variant_option
from .progress import say

if TYPE_CHECKING:
    from ..runtime.npu.run_options import NpuRunOptions


def generation_options(command: Command) -> Command:
    """Adds what `generate` and `chat` share."""
    for option in reversed(
        [
            click.option("--system", help="System message."),
            click.option("--tools", type=PATH, metavar="FILE.json", help="Tools: JSON schemas."),
            click.option("--max-new-tokens", type=int, help="Most tokens of an answer."),
            click.option("--temperature", type=float, help="0 takes the most likely token."),
            click.option("--top-k", type=int, help="Draw from the K most likely tokens; 0 for all."),
            click.option("--top-p", type=float, help="Draw from the most likely tokens that make up this share."),
            click.option("--min-p", type=float, help="Leave out tokens below this share of the likeliest one's."),
            click.option("--repetition-penalty", type=float, help="Above 1 makes tokens that occurred less likely."),
            click.option("--seed", type=int, help="Makes sampling repeatable."),
            threads_option,
            click.option(
                "--context-length",
                type=click.IntRange(min=1),
                metavar="N",
                help="Tokens of context to keep room for [default: ARTIFACT's].",
            ),
            variant_option,
            native_option,
            click.option("--hide-thinking", is_flag=True, help="Leave out the reasoning, <think> to </think>."),
        ]
    ):
        command = option(command)
    return run_options(command)


def npu_settings(options: dict[str, Any]) -> NpuRunOptions | None:
    """Removes the NPU's options from ``options``; None where none was given."""
    from ..runtime.npu.run_options import NpuRunOptions

    given = taken_run_options(options)
    return NpuRunOptions(**given, notice=say) if given else None


def read_tools(path: Path | None) -> list[dict[str, Any]] | None:
    """The schemas in a file. InputError where it holds no list of objects."""
    if path is None:
        return None
    try:
        tools = parse_json(read_untrusted(path, InputError))
    except ValueError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"{path}: expected a list of JSON schemas")
    return tools
