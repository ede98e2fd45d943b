"""A recipe: everything that decides the bytes of a quantized artifact besides its checkpoint, as JSON to replay."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifact.artifact import MANIFEST_NAME
from ..artifact.formats import BlockFormat
from ..artifact.method import Method
from ..errors import InputError
from ..strict_json import parse_json, shown
from .tensor_groups import Formats, TensorGroup

RECIPE_VERSION = 1

_MAX_BYTES = 16 << 20
_FORMAT_NAME = re.compile(r"int(4|8)-block(32|64|128)-(symmetric|zero-points)-(float16|float32)")
_FIELDS = {"recipe_version", "precision", "method", "formats", "calibration", "choice"}
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
    path = path / MANIFEST_NAME if path.is_dir() else path
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} is larger than a recipe can be ({_MAX_BYTES} bytes)")
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"the recipe {path} cannot be read: {reason}") from None
    return parse_recipe(_recipe_in_manifest(data, path), groups, str(path))


def _recipe_in_manifest(data: Any, path: Path) -> Any:
    """The recipe of a manifest's only quantized variant; anything else as it is."""
    if not isinstance(data, dict) or "manifest_version" not in data:
        return data
    variants = data.get("variants")
    entries = list(variants.values()) if isinstance(variants, dict) else []
    found = [entry["quantization"] for entry in entries if isinstance(entry, dict) and "quantization" in entry]
    if len(found) != 1 or not isinstance(found[0], dict):
        raise InputError(f"{path} has no recipe: it is the manifest of an artifact that is not quantized")
    return found[0].get("recipe")


def parse_recipe(data: Any, groups: Sequence[TensorGroup], file: str) -> Recipe:
    """Check parsed JSON. InputError names ``file`` and the field that is missing, unknown or has no valid value."""
    if not isinstance(data, dict):
        raise InputError(f"{file}: expected a recipe (an object), found {shown(data)}")
    if unknown := sorted(set(data) - _FIELDS):
        raise InputError(f"{file}: unknown field {shown(unknown[0])}; a recipe has {', '.join(sorted(_FIELDS))}")
    if missing := sorted(_FIELDS - set(data)):
        raise InputError(f"{file}: the field {missing[0]} is missing")
    version = data["recipe_version"]
    if isinstance(version, bool) or version != RECIPE_VERSION:
        raise InputError(f"{file}: recipe_version is {shown(version)}, this lfm-onnx reads {RECIPE_VERSION}")
    method = _method(data["method"], file)
    precision = data["precision"]
    if not isinstance(precision, str):
        raise InputError(f"{file}: precision is {shown(precision)}, expected a name such as q4")
    formats = _formats(data["formats"], groups, file)
    text, choice = _calibration(data["calibration"], file), _choice(data["choice"], file)
    if method is Method.GPTQ and text is None:
        raise InputError(f"{file}: method gptq needs calibration")
    return Recipe(precision, method, formats, text, choice)


def _method(data: Any, file: str) -> Method:
    try:
        return Method(data)
    except ValueError:
        names = ", ".join(method.value for method in Method)
        raise InputError(f"{file}: method is {shown(data)}, expected one of {names}") from None


def _choice(data: Any, file: str) -> Choice | None:
    if data is None:
        return None
    if isinstance(data, dict) and set(data) == {"budget", "max_kld", "kld", "measured_tokens"}:
        counts = (data["budget"], data["measured_tokens"])
        measures = (data["max_kld"], data["kld"])
        if all(map(_is_count, counts)) and all(map(_is_measure, measures)):
            return Choice(**data)
    raise InputError(f"{file}: choice is {shown(data)}, expected null or budget, max_kld, kld and measured_tokens")


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _is_measure(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and math.isfinite(value) and value >= 0)


def _calibration(data: Any, file: str) -> CalibrationText | None:
    if data is None:
        return None
    if isinstance(data, dict) and set(data) == {"sha256", "tokens"}:
        sha256, tokens = data["sha256"], data["tokens"]
        is_digest = isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None
        if is_digest and isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
            return CalibrationText(sha256, tokens)
    raise InputError(f"{file}: calibration is {shown(data)}, expected null or a sha256 and a number of tokens")


def _formats(data: Any, groups: Sequence[TensorGroup], file: str) -> dict[str, BlockFormat]:
    if not isinstance(data, Mapping):
        raise InputError(f"{file}: formats is {shown(data)}, expected an object")
    if unknown := sorted(set(data) - {group.name for group in groups}):
        raise InputError(f"{file}: this model has no weights {shown(unknown[0])}; was the recipe made for another one?")
    formats = {}
    for group in groups:
        if group.name not in data:
            raise InputError(f"{file}: no format for {group.name}; was the recipe made for another model?")
        fmt = _format(data[group.name], f"{file}: formats: {group.name}")
        if not group.takes(fmt):
            raise InputError(f"{file}: {group.name} cannot be cut into blocks of {fmt.block_size}")
        formats[group.name] = fmt
    if len({fmt.symmetric for fmt in formats.values()}) > 1:
        raise InputError(f"{file}: formats with and without zero points; a model has the one or the other")
    return formats


def _format(name: Any, where: str) -> BlockFormat:
    match = _FORMAT_NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise InputError(f"{where} is {shown(name)}, expected such as {BlockFormat(4).name}")
    bits, block_size, kind, scale_dtype = match.groups()
    return BlockFormat(int(bits), int(block_size), kind == "symmetric", scale_dtype)
