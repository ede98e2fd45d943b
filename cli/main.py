"""The command line: each command parses, calls one library function and prints."""

from __future__ import annotations

import importlib
import os
import sys

import click

from .. import __version__
from ..errors import LfmOnnxError
from .flags import with_flags

# Command name: where it is declared, and its line in the overview. A command's module is imported when it is called,
# so that `generate` does not wait for the exporter's libraries.
_COMMANDS = {
    "export": (".export:export", "Export a checkpoint to an ONNX artifact."),
    "quantize": (".quantize:quantize", "Quantize an exported fp32 or fp16 artifact."),
    "parity": (".parity:parity", "Prove that an artifact equals its checkpoint."),
    "generate": (".generate:generate", "Answer one prompt."),
    "chat": (".chat:chat", "Hold a conversation."),
    "inspect": (".inspect:inspect", "Show what is in an artifact and what it needs."),
    "bench": (".bench:bench", "Measure an artifact's speed and memory."),
    "compile": (".compile:compile_command", "Compile an NPU export for chosen chips."),
    "check": (".check:check", "Say what an execution provider makes of an artifact."),
    "doctor": (".doctor:doctor", "Say what this machine has for lfm-onnx."),
}

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


class CommandLine(click.Group):
    """The commands by name; a user's mistake ends as one line on stderr and its exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module, __package__), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LfmOnnxError as error:
            click.echo(f"Error: {with_flags(str(error))}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of our output has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lfm-onnx")
def main() -> None:
    """LFM2 and LFM2.5 models to ONNX, for phones and Copilot+ PCs."""
