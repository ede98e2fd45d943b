"""How a quantized weight's codes and scales are chosen."""

from __future__ import annotations

from enum import Enum


class Method(str, Enum):
    """The value is the name on the command line, in recipes and in manifests."""

    RTN = "rtn"
    """Round to nearest."""
    SEARCH = "search"
    """The search for the scale of least error."""
    GPTQ = "gptq"
    """Rounding errors are made good by the columns that follow."""

    def __str__(self) -> str:
        return self.value
