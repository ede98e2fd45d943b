"""Options of the commands that run a model: how an NPU export is to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_NAMES = ("plan", "npu_backend", "soc", "cpu_artifact")


def npu_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --plan, --npu-backend, --soc and --cpu-artifact."""
    for option in reversed(
        [
            click.option(
                "--plan",
                type=click.Choice(["auto", "npu", "hybrid", "cpu"]),
                help="NPU export: all there, the prompt alone (hybrid), or the CPU; auto takes an NPU that is there.",
            ),
            click.option(
                "--npu-backend", type=click.Choice(["qnn", "cpu"]), help="NPU export: cpu runs its graphs there."
            ),
            click.option("--soc", metavar="NAME", help="NPU export: the chip whose binaries to take."),
            click.option(
                "--cpu-artifact",
                metavar="DIR",
                type=click.Path(path_type=Path),
                help="NPU export: its CPU counterpart.",
            ),
        ]
    ):
        command = option(command)
    return command


def take_npu_options(options: dict[str, Any]) -> dict[str, Any]:
    """Removes those options from ``options``; what was given, as keywords of ``NpuRunOptions``."""
    found = {name: options.pop(name, None) for name in _NAMES}
    found["backend"] = found.pop("npu_backend")
    return {name: value for name, value in found.items() if value is not None}
