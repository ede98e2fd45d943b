"""Options of the commands that write an artifact: what `export` and `quantize` share."""

from __future__ import annotations

from typing import Any

import click

from ..artifact.formats import SCALE_DTYPES
from ..artifact.method import Method
from ..artifact.precision import PRECISIONS
from ..export.ops import OpsProfile
from ..export.options import ExportOptions
from ..quantize.calibration_text import DEFAULT_CALIBRATION_TOKENS, LEAST_TOKENS, MOST_TOKENS
from .finite_float import FiniteFloat
from .options import PATH, Command, dry_run_option, json_option, threads_option
from .values import BlockSizeChoice, Size

_OPTIONS = (
    click.option("-o", "--output", type=PATH, required=True, help="Folder to write."),
    click.option("--precision", type=click.Choice(list(PRECISIONS)), help="[default: fp32; q4 with a promise]"),
    click.option(
        "--ops",
        type=click.Choice([profile.value for profile in OpsProfile]),
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
    click.option("--block-size", type=BlockSizeChoice(), help="Weights per scale [default: 32]."),
    click.option("--scale-dtype", type=click.Choice(SCALE_DTYPES), help="Type of the scales [default: float16]."),
    click.option("--zero-points", is_flag=True, help="Store a zero point per block."),
    click.option(
        "--calibration",
        type=PATH,
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
    click.option("--recipe", type=PATH, help="Bits by tensor from a recipe, or from an artifact's manifest."),
    threads_option,
    click.option("--tokenizer/--no-tokenizer", default=True, help="Require and copy the tokenizer files."),
    dry_run_option,
    click.option("--force", is_flag=True, help="Replace an artifact that stands in the output folder."),
    json_option,
)


def export_options(command: Command) -> Command:
    """Declare the shared options on a click command; ``taken_options`` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def taken_options(options: dict[str, Any]) -> ExportOptions:
    """The options as they were given, as the library takes them; context_length may be among them."""
    renamed = {"ops": "ops_profile", "force": "replace"}
    return ExportOptions(**{renamed.get(name, name): value for name, value in options.items()})
