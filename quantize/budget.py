"""Bits by tensor: the cheapest formats first, then upgrades in the order of KLD saved per byte spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..artifact.formats import BlockFormat
from ..errors import PromiseError
from .sensitivity import GroupOptions, Option

SMALLEST_STEP = 1e-12
"""Nats: less is no gain."""


@dataclass(frozen=True)
class Upgrade:
    """One step: ``group`` gets ``option`` instead of what it had."""

    group: str
    option: Option
    nbytes: int
    """More than before."""
    gain: float
    """Nats of KLD less than before."""

    @property
    def gain_per_byte(self) -> float:
        """Nats of KLD saved per byte spent."""
        return self.gain / self.nbytes


def candidate_formats(scale_dtype: str, *, symmetric: bool) -> list[BlockFormat]:
    """The formats that a group may get: 4 bits in blocks of 128, 64 and 32, 8 bits in blocks of 32."""
    shapes = ((4, 128), (4, 64), (4, 32), (8, 32))
    return [BlockFormat(bits, block_size, symmetric, scale_dtype) for bits, block_size in shapes]


def cheapest(groups: Sequence[GroupOptions]) -> dict[str, BlockFormat]:
    """Every group in its smallest format."""
    return {group.group.name: group.options[0].fmt for group in groups}


def upgrades(groups: Sequence[GroupOptions]) -> list[Upgrade]:
    """All steps from the cheapest formats to the best ones, most gain per byte first.

    Of each group only the options on the lower convex hull of (bytes, effect) are used: along it gain per byte falls,
    so that the steps of a group stay in order when those of all groups are sorted.
    """
    steps = [step for group in groups for step in _hull_steps(group)]
    return sorted(steps, key=lambda step: (-step.gain_per_byte, step.group, step.nbytes))


def apply(formats: dict[str, BlockFormat], steps: Sequence[Upgrade]) -> dict[str, BlockFormat]:
    """The formats after ``steps``."""
    return {**formats, **{step.group: step.option.fmt for step in steps}}


def spend(steps: Sequence[Upgrade], nbytes: int) -> list[Upgrade]:
    """The steps that fit into ``nbytes`` more bytes, in order; one that does not fit ends its own group's alone."""
    taken: list[Upgrade] = []
    ended: set[str] = set()
    for step in steps:
        if step.group in ended:
            continue
        if step.nbytes > nbytes:
            ended.add(step.group)
            continue
        taken.append(step)
        nbytes -= step.nbytes
    return taken


def fewest_steps(steps: Sequence[Upgrade], start: int, keeps_promise: Callable[[int], bool]) -> int:
    """The smallest number of steps after which ``keeps_promise(number)`` holds, by bisection from the guess ``start``.

    PromiseError if it does not hold after all of them.
    """
    low, high = 0, len(steps)
    guess = min(max(start, 0), high)
    certain = False
    while low < high or not certain:
        if keeps_promise(guess):
            high, certain = guess, True
        elif guess == len(steps):
            raise PromiseError("even the best format of every tensor does not keep the promise")
        else:
            low = guess + 1
        # Up in growing strides until the promise is kept once, then halves.
        guess = (low + high) // 2 if certain else min(len(steps), max(low, low + (low - start) * 2 + 1))
    return high


def _hull_steps(group: GroupOptions) -> list[Upgrade]:
    steps: list[Upgrade] = []
    here, rest = group.options[0], list(group.options[1:])
    while True:
        rest = [
            option for option in rest if option.nbytes > here.nbytes and here.effect - option.effect > SMALLEST_STEP
        ]
        if not rest:
            return steps
        best = max(rest, key=lambda option: (here.effect - option.effect) / (option.nbytes - here.nbytes))
        steps.append(Upgrade(group.group.name, best, best.nbytes - here.nbytes, here.effect - best.effect))
        here = best
