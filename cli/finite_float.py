"""Numbers on the command line that are numbers: neither NaN nor infinity, within bounds."""

from __future__ import annotations

import math
from typing import Any

import click


class FiniteFloat(click.FloatRange):
    """A number within a range; "nan" lies in none, though no comparison says so."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error for what is no number, is infinite or NaN, or lies outside the range."""
        if not math.isfinite(number := super().convert(value, param, ctx)):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number
