"""Chips with a Hexagon NPU: what the compiler must be told of each, and the memory bandwidth that bounds decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Chip:
    """One system on a chip.

    name: as ``--soc`` takes it. soc_model, htp_arch: numbers of Qualcomm's compiler; a context binary runs on chips of
    its own ``htp_arch``. memory_bandwidth: bytes per second of the fastest memory that the chip takes. kind:
    "phone" or "pc".
    """

    name: str
    title: str
    soc_model: int
    htp_arch: int
    memory_bandwidth: float
    kind: str = "phone"

    @property
    def provider_options(self) -> dict[str, str]:
        """What the QNN execution provider is told of the chip."""
        return {"soc_model": str(self.soc_model), "htp_arch": str(self.htp_arch)}


# Bandwidth = bus width in bytes x transfers per second: phones 8 bytes (64 bit), PCs 16 (128 bit).
CHIPS: tuple[Chip, ...] = (
    Chip("sm8450", "Snapdragon 8 Gen 1", 36, 69, 8 * 6.4e9),
    Chip("sm8550", "Snapdragon 8 Gen 2", 43, 73, 8 * 8.4e9),
    Chip("sm8650", "Snapdragon 8 Gen 3", 57, 75, 8 * 9.6e9),
    Chip("sm8750", "Snapdragon 8 Elite", 69, 79, 8 * 10.667e9),
    Chip("sm8850", "Snapdragon 8 Elite Gen 5", 87, 81, 8 * 10.667e9),
    Chip("x-elite", "Snapdragon X Elite / X Plus", 60, 73, 16 * 8.448e9, kind="pc"),
    Chip("x2-elite", "Snapdragon X2 Elite", 88, 81, 16 * 9.523e9, kind="pc"),
)

DEFAULT_CHIP = "sm8750"
"""What graphs are compiled for on the emulator where no chip is named."""

_ALIASES = {
    "sc8380xp": "x-elite",
    "x1-elite": "x-elite",
    "x-plus": "x-elite",
    "sc8480xp": "x2-elite",
    "8-gen-1": "sm8450",
    "8-gen-2": "sm8550",
    "8-gen-3": "sm8650",
    "8-elite": "sm8750",
    "8-elite-gen-5": "sm8850",
}


def chip(name: str) -> Chip:
    """The chip called ``name``, upper or lower case; InputError for one that is not in the table."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = _ALIASES.get(key, key)
    for item in CHIPS:
        if item.name == key:
            return item
    known = ", ".join(item.name for item in CHIPS)
    raise InputError(f"unknown chip {name!r}: expected one of {known}")


def chips(names: str | Sequence[str]) -> list[Chip]:
    """Chips of a comma-separated list or a sequence, each once, in the order given."""
    given_names = names.split(",") if isinstance(names, str) else list(names)
    by_name: dict[str, Chip] = {}
    for item_name in given_names:
        if item_name.strip():
            item = chip(item_name)
            by_name.setdefault(item.name, item)
    if not by_name:
        raise InputError(f"no chip named: expected one or more of {', '.join(item.name for item in CHIPS)}")
    return list(by_name.values())
