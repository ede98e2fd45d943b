"""What options hold besides text and numbers."""

from __future__ import annotations

import re
from typing import Any

import click

from ..artifact.formats import BLOCK_SIZES

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_MOST_BYTES = 1 << 60
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


class Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A number of bytes, such as 4.8GB or 300MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole bytes; a usage error for what is no size, or for one of more than 2**60 bytes."""
        match = _SIZE.fullmatch(str(value))
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is no size: expected such as 4.8GB, 300MB or 1GiB", param, ctx)
        size = float(match[1]) * _UNITS[match[2].upper()]
        if size > _MOST_BYTES:
            self.fail(f"{value!r} is more than any disk holds", param, ctx)
        return int(size)


class BlockSizeChoice(click.Choice):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A number of weights per scale."""

    def __init__(self) -> None:
        super().__init__([str(size) for size in BLOCK_SIZES])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The choice as an int; a usage error for what is none of the choices."""
        return int(super().convert(value, param, ctx))


class ContextLengths(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """One or more numbers of positions, separated by commas."""

    name = "lengths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers in the order given; a usage error unless all are whole and at least 1."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) >= 1 for part in parts):
            self.fail(f"{value!r}: expected numbers of positions from 1 on, such as 1024 or 1024,4096", param, ctx)
        return tuple(map(int, parts))
