"""The commands that run an artifact: generate, chat, inspect."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from ..strict_json import parse_json
from .npu_options import npu_options, take_npu_options

if TYPE_CHECKING:
    from ..runtime.npu.model import NpuOptions

_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
_VARIANT = click.option("--variant", help="Precision to run, such as fp32 or fp16; the artifact's first by default.")


def _generation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        [
            click.option("--system", help="System message."),
            click.option("--tools", type=click.Path(path_type=Path), metavar="FILE.json", help="Tools: JSON schemas."),
            click.option("--max-new-tokens", type=int, help="Most tokens of an answer."),
            click.option("--temperature", type=float, help="0 takes the most likely token."),
            click.option("--top-k", type=int, help="Draw from the K most likely tokens; 0 for all."),
            click.option("--top-p", type=float, help="Draw from the most likely tokens that make up this share."),
            click.option("--min-p", type=float, help="Leave out tokens below this share of the likeliest one's."),
            click.option("--repetition-penalty", type=float, help="Above 1 makes tokens that occurred less likely."),
            click.option("--seed", type=int, help="Makes sampling repeatable."),
            click.option("--threads", type=int, help="CPU threads; every core by default."),
            click.option("--context-length", type=int, help="Most tokens to keep; the artifact's own by default."),
            _VARIANT,
            click.option("--no-native", "native", flag_value=False, default=None, help="Go without native kernels."),
            click.option("--hide-thinking", is_flag=True, help="Leave out <think>…</think>."),
        ]
    ):
        command = option(command)
    return npu_options(command)


@click.command()
@_FOLDER
@click.option("-p", "--prompt", required=True, help="What to answer; - reads standard input.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@_generation_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def generate(
    folder: Path,
    prompt: str,
    raw: bool,
    system: str | None,
    tools: Path | None,
    threads: int | None,
    context_length: int | None,
    variant: str | None,
    native: bool | None,
    hide_thinking: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer one prompt with the model exported to DIR."""
    from ..runtime.model import LfmModel
    from .terminal import AnswerWriter

    if raw and (system is not None or tools is not None):
        raise InputError("--raw continues the text as it is: --system and --tools have no place in it")
    text = _stdin_text() if prompt == "-" else prompt
    schemas = _read_tools(tools)
    npu = _npu(options)
    model = LfmModel.load(
        folder, variant=variant, threads=threads, context_length=context_length, native=native, npu=npu
    )
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    generation = model.generate(text if raw else messages, tools=schemas, **options)
    if not as_json:
        AnswerWriter(hide_thinking=hide_thinking).write(generation)
        return
    result = generation.result.to_dict()
    if hide_thinking:
        del result["reasoning"], result["text"]
    click.echo(json.dumps(result, ensure_ascii=False))


@click.command()
@_FOLDER
@_generation_options
def chat(
    folder: Path,
    system: str | None,
    tools: Path | None,
    threads: int | None,
    context_length: int | None,
    variant: str | None,
    native: bool | None,
    hide_thinking: bool,
    **options: Any,
) -> None:
    """Talk with the model exported to DIR, a line at a time.

    /reset forgets the conversation, /tool TEXT gives a tool's result, /exit or Ctrl-D leaves, Ctrl-C stops an answer.
    """
    from ..runtime.chat import Conversation
    from ..runtime.model import LfmModel
    from .terminal import chat_loop

    schemas = _read_tools(tools)
    npu = _npu(options)
    model = LfmModel.load(
        folder, variant=variant, threads=threads, context_length=context_length, native=native, npu=npu
    )
    _ = model.tokenizer  # a broken one is told before the first question
    chat_loop(Conversation(model, system=system, tools=schemas, **options), hide_thinking=hide_thinking)


@click.command()
@_FOLDER
@_VARIANT
@click.option("--verify", is_flag=True, help="Compare the SHA-256 of every file first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(folder: Path, variant: str | None, verify: bool, as_json: bool) -> None:
    """Show what the artifact in DIR holds and costs."""
    from ..runtime.inspection import inspect_artifact
    from .inspection_tables import print_inspection

    inspection = inspect_artifact(folder, variant, verify="full" if verify else "quick")
    if as_json:
        click.echo(json.dumps(inspection.to_dict(), ensure_ascii=False))
    else:
        print_inspection(inspection)


def _npu(options: dict[str, Any]) -> NpuOptions | None:
    from ..runtime.npu.model import NpuOptions

    given = take_npu_options(options)
    return NpuOptions(**given, notice=lambda line: click.echo(line, err=True)) if given else None


def _stdin_text() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not text: {error}") from error


def _read_tools(path: Path | None) -> list[dict[str, Any]] | None:
    if path is None:
        return None
    try:
        tools = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"{path}: expected a list of JSON schemas")
    return tools
