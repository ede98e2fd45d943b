"""The command `lfm-onnx generate`: answers one prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .generation_options import generation_options, npu_settings, read_tools
from .options import artifact_argument, json_option
from .output import print_json

_MOST_CHARACTERS = 4 << 20
"""Of standard input, which may never end; 128,000 tokens of English are some 600,000."""


@click.command()
@artifact_argument
@click.option("-p", "--prompt", required=True, help="What to answer; - reads standard input.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@generation_options
@json_option
def generate(
    artifact: Path,
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
    """Answer one prompt with ARTIFACT."""
    from ..runtime.model import LfmModel
    from .terminal import AnswerWriter

    if raw and (system is not None or tools is not None):
        raise InputError("--raw continues the text as it is: --system and --tools have no place in it")
    text = _stdin_text() if prompt == "-" else prompt
    schemas = read_tools(tools)
    npu = npu_settings(options)
    model = LfmModel.load(
        artifact, variant=variant, threads=threads, context_length=context_length, native=native, npu=npu
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
    print_json(result)


def _stdin_text() -> str:
    try:
        text = sys.stdin.read(_MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not text: {error}") from error
    if len(text) > _MOST_CHARACTERS:
        raise InputError(f"standard input: more than {_MOST_CHARACTERS} characters, which no context holds")
    return text.removeprefix("\ufeff")
