"""Options of several commands, declared once: the same thing has the same name, placeholder and help everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from .values import Size

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


class Respelled(click.Option):
    """An option with ``former`` spellings, which go on working: neither help nor errors show them."""

    def __init__(self, declarations: Sequence[str], *, former: Sequence[str], **settings: Any) -> None:
        super().__init__([*declarations, *former], **settings)
        self._former = frozenset(former)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's line in --help, without the former spellings; None for a hidden option."""
        shown = copy.copy(self)
        shown.opts = [name for name in self.opts if name not in self._former]
        return super(Respelled, shown).get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The first spelling in quotes, as errors name the option."""
        return f"'{self.opts[0]}'"


class Target(click.Choice):  # type: ignore[type-arg]  # generic since click 8.3 only
    """What a model runs on; the names of --plan, which --target was called before, are understood."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The target as the choices spell it, "npu" taken for "qnn"; a usage error for any other."""
        return super().convert("qnn" if value == "npu" else value, param, ctx)


artifact_argument = click.argument("artifact", metavar="ARTIFACT", type=PATH)
variant_option = click.option(
    "--variant", metavar="NAME", help="Which of ARTIFACT's precisions, such as fp32 or q4 [default: its first]."
)
reference_help = "The checkpoint that ARTIFACT came from, to compare with."
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads [default: one for each processor]."
)
native_option = click.option(
    "--no-native", "native", flag_value=False, default=None, help="Run without the native library."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
report_option = click.option("--report", metavar="FILE.html|.md", type=PATH, help="Write a report.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan, and write nothing.")
memory_budget_option = click.option(
    "--memory-budget", type=Size(), metavar="SIZE", help="qnn: memory that compiling a part may take, such as 24GB."
)
soc_option = click.option("--soc", metavar="NAME", help="qnn: the chip, such as sm8750.")
socs_option = click.option(
    "--soc", "socs", metavar="NAME[,NAME...]", help="qnn: the chips to compile for, such as sm8750,sm8650."
)
npu_backend_option = click.option(
    "--npu-backend",
    type=click.Choice(["qnn", "cpu"]),
    help="qnn: what runs its graphs, the NPU or its emulator (qnn, the default), or the CPU.",
)
_TARGET_HELP = "What ARTIFACT is to run on."


def target_option(*targets: str, **settings: Any) -> Callable[[Command], Command]:
    """--target with the names that a command knows."""
    return click.option("--target", **{"type": click.Choice(targets), "help": _TARGET_HELP, **settings})


_RUN_OPTIONS = (
    click.option(
        "--target",
        cls=Respelled,
        former=["--plan"],
        type=Target(["auto", "cpu", "qnn", "hybrid"]),
        help="What ARTIFACT is to run on; hybrid: the prompt on the NPU, the answer on the CPU; auto: an NPU that is "
        "there, else the CPU.",
    ),
    npu_backend_option,
    soc_option,
    click.option("--cpu-artifact", metavar="ARTIFACT", type=PATH, help="qnn: the same model, exported for the CPU."),
)


def run_options(command: Command) -> Command:
    """Adds --target, --npu-backend, --soc and --cpu-artifact; ``taken_run_options`` reads them."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


def taken_run_options(options: dict[str, Any]) -> dict[str, Any]:
    """Removes those options from ``options``; what was given, as keywords of ``NpuRunOptions``."""
    target = options.pop("target")
    values = {
        "plan": "npu" if target == "qnn" else target,
        "backend": options.pop("npu_backend"),
        "soc": options.pop("soc"),
        "cpu_artifact": options.pop("cpu_artifact"),
    }
    return {name: value for name, value in values.items() if value is not None}
