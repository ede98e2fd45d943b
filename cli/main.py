"""The command line: each command parses, calls one library function and prints.

Exit codes: 0; 1: a limit is missed (parity, check, a promise of an export); 2: a mistake of the user; 70: an unexpected
error, a fault of this package; 74: the results cannot be printed; 130: interrupted.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import LfmOnnxError
from .flags import with_flags
from .output import OUTPUT_FAILED, OutputFailed, abandon_stdout, one_line, prepare_streams, print_error

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

UNEXPECTED = 70
"""Exit code of an error that no user can cause, as sysexits.h has it (EX_SOFTWARE)."""


class _Interrupted(Exception):
    """Ctrl-C within a command."""


class CommandLine(click.Group):
    """The commands by name. However a command ends, it ends with one line on stderr and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names in the order of the overview."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, its module imported only now and --traceback among its options; None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module, __package__), attribute)
        if _TRACEBACK not in command.params:
            command.params.append(_TRACEBACK)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, from the table alone: no command's module is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """The command's result; Ctrl-C within it becomes an exception that click leaves to ``main``."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would add an empty line
            raise _Interrupted from None

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **settings: Any
    ) -> int:
        """Run the command line and exit; with ``standalone_mode=False`` return the exit code."""
        self.shows_traceback = False
        exits = settings.pop("standalone_mode", True)
        try:
            prepare_streams()
            code = super().main(args, prog_name, **{**settings, "standalone_mode": False})
            sys.stdout.flush()
        except OutputFailed as error:
            abandon_stdout()
            code = self._ends(OUTPUT_FAILED, f"cannot write to standard output: {error}")
        except LfmOnnxError as error:
            code = self._ends(error.exit_code, with_flags(str(error)))
        except click.exceptions.NoArgsIsHelpError as error:
            print_error(error.format_message())
            code = error.exit_code
        except click.ClickException as error:
            if isinstance(error, click.UsageError) and error.ctx is not None:
                print_error(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n")
            code = self._ends(click.UsageError.exit_code, error.format_message())
        except (KeyboardInterrupt, click.Abort, _Interrupted):
            print_error("Interrupted.")
            code = INTERRUPTED
        except Exception as error:
            code = self._ends(UNEXPECTED, _fault(error))
        code = code if isinstance(code, int) else 0
        if exits:
            sys.exit(code)
        return code

    def _ends(self, code: int, message: str) -> int:
        if self.shows_traceback:
            print_error(traceback.format_exc())
        print_error(f"Error: {one_line(message)}")
        return code


def _fault(error: Exception) -> str:
    """What happened, where, and what to do about it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return (
        f"unexpected {type(error).__name__} at {where}: {str(error)[:300]}; this is a fault of lfm-onnx: please report "
        "it with what --traceback and `lfm-onnx doctor` print"
    )


def _show_traceback(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    root = ctx.find_root().command
    if value and isinstance(root, CommandLine):
        root.shows_traceback = True


_TRACEBACK = click.Option(
    ["--traceback"],
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_traceback,
    help="Show where in the code an error comes from.",
)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lfm-onnx")
def main() -> None:
    """LFM2 and LFM2.5 models to ONNX, for phones and Copilot+ PCs."""


main.params.append(_TRACEBACK)
