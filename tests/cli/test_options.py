"""One vocabulary on the command line: what several commands take has one name, placeholder and help."""

from __future__ import annotations

from collections import defaultdict

import click
import pytest
from click.testing import CliRunner
from lfm_onnx.cli.compile import compile_command
from lfm_onnx.cli.main import main
from lfm_onnx.cli.options import taken_run_options

DIFFER = {
    "--target": "each command knows targets of its own",
    "--soc": "one chip to run on, several to compile for",
    "--context-length": "what an export supports, and what a run keeps room for",
    "--force": "what is there: an artifact, compiled parts",
    "--max-kld": "export chooses by it, parity judges by it",
}


def commands() -> list[tuple[str, click.Command]]:
    context = click.Context(main)
    return [(name, command) for name in main.list_commands(context) if (command := main.get_command(context, name))]


def test_the_same_option_has_the_same_placeholder_and_help_everywhere() -> None:
    said = defaultdict(dict)
    for command, declared in commands():
        context = click.Context(declared)
        for option in declared.params:
            if isinstance(option, click.Option) and not option.hidden:
                said[max(option.opts, key=len)][command] = str(option.get_help_record(context)).replace(
                    "  [required]", ""
                )
    for option, records in said.items():
        assert option in DIFFER or len(set(records.values())) == 1, records
    assert all(len(said[option]) > 1 for option in DIFFER)


def test_the_same_thing_has_one_option() -> None:
    """What was called differently from command to command is shown under one name."""
    for name, command in commands():
        shown = CliRunner().invoke(main, [name, "--help"]).stdout
        assert not any(old in shown.split() for old in ("--plan", "--memory", "--backend", "--most-tasks", "DIR")), name
        context = click.Context(command)
        arguments = [item.make_metavar(context) for item in command.params if isinstance(item, click.Argument)]
        assert arguments in ([], ["ARTIFACT"], ["CHECKPOINT"]), name


@pytest.mark.parametrize(
    "command, arguments, expected",
    [
        ("generate", ["a", "-p", "x", "--plan", "npu"], {"plan": "npu"}),
        ("generate", ["a", "-p", "x", "--target", "qnn"], {"plan": "npu"}),
        ("chat", ["a", "--plan", "hybrid", "--npu-backend", "cpu"], {"plan": "hybrid", "backend": "cpu"}),
        ("bench", ["a", "--target", "cpu"], {"plan": "cpu"}),
        ("bench", ["a"], {}),
    ],
)
def test_former_spellings_of_where_a_model_runs_go_on_working(
    command: str, arguments: list[str], expected: dict[str, str]
) -> None:
    declared = dict(commands())[command]
    options = declared.make_context(command, arguments).params
    assert taken_run_options(options) == expected


def test_former_spellings_of_compile_and_parity_go_on_working() -> None:
    assert compile_command.make_context("compile", ["a", "--memory", "24"]).params["memory_gb"] == 24
    assert compile_command.make_context("compile", ["a", "--memory-budget", "2GB"]).params["memory_budget"] == 2 * 10**9
    arguments = ["a", "--reference", "c", "--backend", "transformers", "--most-tasks", "3"]
    params = dict(commands())["parity"].make_context("parity", arguments).params
    assert (params["backend"], params["most_tasks"]) == ("transformers", 3)


def test_an_error_names_the_spelling_of_today() -> None:
    result = CliRunner().invoke(main, ["generate", "a", "-p", "x", "--plan", "gpu"])
    assert result.exit_code == 2 and "'--target'" in result.stderr and "--plan" not in result.stderr
