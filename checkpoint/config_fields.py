"""Typed access to the fields of a model config: a value of the wrong type or range is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..strict_json import shown

_REQUIRED: Any = object()


class ConfigFields:
    """The members of one JSON object of ``file``; ``prefix`` is its place there, e.g. "rope_scaling."."""

    def __init__(self, data: Mapping[str, Any], file: str, prefix: str = "") -> None:
        self.data = data
        self.file = file
        self.prefix = prefix

    def refuse(self, name: str, allowed: str) -> ConfigError:
        """The error to raise for a field: its value, or that it is missing, and what is allowed."""
        found = f"is {shown(self.data[name])}" if name in self.data else "is missing"
        # A name that comes from the file itself may hold anything.
        field = self.prefix + (name if name.isidentifier() else shown(name))
        return ConfigError(f"{self.file}: {field} {found}; it must be {allowed}")

    def integer(self, name: str, low: int, high: int, default: int = _REQUIRED) -> int:
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float = _REQUIRED) -> float:
        value = self.data.get(name, default)
        # The comparison also turns away NaN, infinity and integers beyond float64.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.data.get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value
