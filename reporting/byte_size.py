"""A number of bytes as text, the same in every message, table and report."""

from __future__ import annotations

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def byte_size(count: float) -> str:
    """At most four significant digits in decimal units, as disks and app stores count them: 4.812 GB, 300 MB, 12 B."""
    for unit, factor in _UNITS:
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count:.0f} B"
