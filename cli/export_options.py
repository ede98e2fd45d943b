"""Options of the commands that write an artifact: what `export` and `quantize` share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..artifact.formats import SCALE_DTYPES
from ..artifact.method import Method
from ..artifact.precision import PRECISIONS
from ..export.ops import OpsProfile
from ..quantize.calibration_text import DEFAULT_CALIBRATION_TOKENS, LEAST_TOKENS, MOST_TOKENS
from .finite_float import FiniteFloat

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_MOST_BYTES = 1 << 60
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


class Size(click.ParamType):
    """A number of bytes, such as 4.8GB or 300MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value))
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is no size: expected such as 4.8GB, 300MB or 1GiB", param, ctx)
        size = float(match[1]) * _UNITS[match[2].upper()]
        if size > _MOST_BYTES:
            self.fail(f"{value!r} is more than any disk holds", param, ctx)
        return int(size)


class ContextLengths(click.ParamType):
    """One or more numbers of positions, separated by commas."""

    name = "lengths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) >= 1 for part in parts):
            self.fail(f"{value!r}: expected numbers of positions from 1 on, such as 1024 or 1024,4096", param, ctx)
        return tuple(map(int, parts))


_FILE = click.Path(path_type=Path)

_OPTIONS = (
    click.option("-o", "--output", type=_FILE, required=True, help="Folder to write."),
    click.option("--precision", type=click.Choice(list(PRECISIONS)), help="[default: fp32; q4 with a promise]"),
    click.option(
        "--ops",
        type=click.Choice([style.value for style in OpsProfile]),
        default=OpsProfile.CUSTOM.value,
        show_default=True,
        help="custom: with ONNX Runtime's contrib ops, fastest there; standard: ai.onnx alone, for any runtime.",
    ),
    click.option(
        "--method",
        type=click.Choice([method.value for method in Method]),
        callback=lambda _ctx, _param, value: None if value is None else Method(value),
        help="How blocks are made [default: the precision's best].",
    ),
    click.option("--block-size", type=click.Choice(["32", "64", "128"]), help="Weights per scale [default: 32]."),
    click.option("--scale-dtype", type=click.Choice(SCALE_DTYPES), help="Type of the scales [default: float16]."),
    click.option("--zero-points", is_flag=True, help="Store a zero point per block."),
    click.option(
        "--calibration",
        type=_FILE,
        help="Text that calibrates: .txt, .jsonl, or a folder of them [default: text in many languages].",
    ),
    click.option(
        "--calibration-tokens",
        type=click.IntRange(LEAST_TOKENS, MOST_TOKENS),
        default=DEFAULT_CALIBRATION_TOKENS,
        show_default=True,
        help="Most tokens of it.",
    ),
    click.option("--budget", type=Size(), metavar="SIZE", help="Choose bits by tensor: at most SIZE, such as 4.8GB."),
    click.option("--max-kld", type=FiniteFloat(min=0, min_open=True), help="Choose bits by tensor: KLD in nats."),
    click.option("--recipe", type=_FILE, help="Bits by tensor from a recipe, or from an artifact's manifest."),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads; bytes do not depend on them."),
    click.option("--tokenizer/--no-tokenizer", default=True, help="Require and copy the tokenizer files."),
    click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing."),
    click.option("--force", is_flag=True, help="Replace an artifact that stands in the output folder."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
)


def export_options(command: Command) -> Command:
    """Declare the shared options on a click command; they and context_length are the fields of ``ExportRequest``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
