"""A recipe: everything that decides the bytes of a quantized artifact besides its checkpoint, as JSON to replay."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifact.formats import BlockFormat
from ..artifact.manifest import MANIFEST_NAME, Manifest
from ..artifact.method import Method
from ..errors import InputError
from ..strict_json import JsonObject, shown
from .calibration_text import MOST_TOKENS
from .tensor_groups import Formats, TensorGroup

RECIPE_VERSION = 1

_FORMAT_NAME = re.compile(r"int(4|8)-block(32|64|128)-(symmetric|zero-points)-(float16|float32)")
_FIELDS = ("recipe_version", "precision", "method", "calibration", "choice", "formats")
_CHOICE_FIELDS = ("budget", "max_kld", "kld", "measured_tokens")
_LARGEST = sys.float_info.max
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CalibrationText:
    """The text that calibrated a method: digest of what was read, and tokens taken of it."""

    sha256: str
    tokens: int


@dataclass(frozen=True)
class Choice:
    """The promise that formats were chosen to keep: bytes of weights, nats of KLD; and the KLD that was measured."""

    budget: int | None = None
    max_kld: float | None = None
    kld: float | None = None
    measured_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the recipe's JSON holds it: every field by name, None where there is none."""
        return asdict(self)


@dataclass(frozen=True)
class Recipe:
    """``precision`` names the files; ``formats`` has each group of ``tensor_groups``; calibration None: without.

    ``choice``: None where the formats were given, not chosen.
    """

    precision: str
    method: Method
    formats: Formats
    calibration: CalibrationText | None = None
    choice: Choice | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, which ``parse_recipe`` reads."""
        text = self.calibration
        return {
            "recipe_version": RECIPE_VERSION,
            "precision": self.precision,
            "method": self.method.value,
            "calibration": None if text is None else {"sha256": text.sha256, "tokens": text.tokens},
            "choice": None if self.choice is None else self.choice.to_dict(),
            "formats": {group: fmt.name for group, fmt in self.formats.items()},
        }


def read_recipe(path: Path, groups: Sequence[TensorGroup]) -> Recipe:
    """The recipe in ``path`` (its own file, an artifact's manifest or folder) for a model's groups. InputError."""
    path = path / MANIFEST_NAME if os.path.isdir(path) else path
    data = JsonObject.read(path, InputError)
    return parse_recipe(_recipe_in_manifest(data) if "manifest_version" in data else data.data, groups, str(path))


def _recipe_in_manifest(data: JsonObject) -> Any:
    """The recipe of a manifest's only quantized variant."""
    accounts = [variant.quantization for variant in Manifest.from_json(data).variants.values()]
    recipes = [account.get("recipe") for account in accounts if account is not None]
    if len(recipes) != 1:
        raise data.wrong("has no recipe: it is the manifest of an artifact that is not quantized")
    return recipes[0]


def parse_recipe(data: Any, groups: Sequence[TensorGroup], file: str) -> Recipe:
    """Check parsed JSON. InputError names ``file`` and the field that is missing, unknown or has no valid value."""
    fields = JsonObject(data, file, InputError)
    fields.require_only(_FIELDS)
    if fields.integer("recipe_version") != RECIPE_VERSION:
        raise fields.refuse("recipe_version", f"{RECIPE_VERSION}, which this lfm-onnx reads")
    method = Method(fields.text("method", [method.value for method in Method]))
    text = fields.object_or_null("calibration")
    if method is Method.GPTQ and text is None:
        raise fields.refuse("calibration", "a sha256 and tokens: method gptq needs calibration")
    choice = fields.object_or_null("choice")
    return Recipe(
        precision=fields.text("precision"),
        method=method,
        formats=_formats(fields.object("formats"), groups),
        calibration=None if text is None else _calibration(text),
        choice=None if choice is None else _choice(choice),
    )


def _choice(fields: JsonObject) -> Choice:
    def count(name: str) -> int | None:
        return None if fields.data.get(name, 0) is None else fields.integer(name, 0)

    def measure(name: str) -> float | None:
        return None if fields.data.get(name, 0) is None else fields.number(name, 0, _LARGEST)

    fields.require_only(_CHOICE_FIELDS)
    return Choice(count("budget"), measure("max_kld"), measure("kld"), count("measured_tokens"))


def _calibration(fields: JsonObject) -> CalibrationText:
    fields.require_only(("sha256", "tokens"))
    if _SHA256.fullmatch(fields.text("sha256")) is None:
        raise fields.refuse("sha256", "64 hexadecimal digits")
    return CalibrationText(fields.text("sha256"), fields.integer("tokens", 1, MOST_TOKENS))


def _formats(fields: JsonObject, groups: Sequence[TensorGroup]) -> dict[str, BlockFormat]:
    if unknown := sorted(set(fields.data) - {group.name for group in groups}):
        raise fields.wrong(f"this model has no weights {shown(unknown[0])}; was the recipe made for another one?")
    formats = {}
    for group in groups:
        if group.name not in fields:
            raise fields.wrong(f"no format for {group.name}; was the recipe made for another model?")
        fmt = _format(fields, group.name)
        if not group.takes(fmt):
            raise fields.wrong(f"{group.name} cannot be cut into blocks of {fmt.block_size}")
        formats[group.name] = fmt
    if len({fmt.symmetric for fmt in formats.values()}) > 1:
        raise fields.wrong("formats with and without zero points; a model has the one or the other")
    return formats


def _format(fields: JsonObject, name: str) -> BlockFormat:
    match = _FORMAT_NAME.fullmatch(fields.text(name))
    if match is None:
        raise fields.refuse(name, f"a format such as {BlockFormat(4).name}")
    bits, block_size, kind, scale_dtype = match.groups()
    return BlockFormat(int(bits), int(block_size), kind == "symmetric", scale_dtype)
