"""What may come of a request to the renderer."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """The first byte of an answer; the last two are those of a process that ends without one."""

    RENDERED = b"R"
    FAILED = b"F"
    OUT_OF_MEMORY = b"M"
    OUT_OF_TIME = b"T"
    ENDED = b"E"
