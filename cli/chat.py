"""The command `lfm-onnx chat`: a conversation, a line at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .generation_options import generation_options, npu_settings, read_tools
from .options import artifact_argument


@click.command()
@artifact_argument
@generation_options
def chat(
    artifact: Path,
    system: str | None,
    tools: Path | None,
    threads: int | None,
    context_length: int | None,
    variant: str | None,
    native: bool | None,
    hide_thinking: bool,
    **options: Any,
) -> None:
    """Talk with ARTIFACT, a line at a time.

    /reset forgets the conversation, /tool TEXT gives a tool's result, /exit or Ctrl-D leaves, Ctrl-C stops an answer.
    """
    from ..runtime.chat import Conversation
    from ..runtime.model import LfmModel
    from .terminal import chat_loop

    schemas = read_tools(tools)
    npu = npu_settings(options)
    model = LfmModel.load(
        artifact, variant=variant, threads=threads, context_length=context_length, native=native, npu=npu
    )
    _ = model.tokenizer  # a broken one is told before the first question
    chat_loop(Conversation(model, system=system, tools=schemas, **options), hide_thinking=hide_thinking)
