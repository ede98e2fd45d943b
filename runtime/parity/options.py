"""What a comparison is asked to compare, and how strictly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ParityOptions:
    """What to compare, and how strictly (limits that are None are those of the artifact's precision).

    backend: the reference, see ``open_judge``. tokens: of all passages together; passage_tokens: of one passage.
    token_ids: passages to compare on instead of any prompts. greedy_prompts and greedy_tokens: continuations to
    compare, 0 for none. most_tasks: of the tasks, spread over the file; None for all. provider, native: of an export
    for the CPU. npu_backend and soc: of one for the NPU; "qnn" (the NPU, or its emulator) is compared with the same
    graphs on the CPU as well, "cpu" is these alone.
    """

    backend: str | None = None
    prompts: Path | None = None
    token_ids: Sequence[Sequence[int]] | None = None
    tokens: int = 2048
    passage_tokens: int = 256
    greedy_prompts: int = 8
    greedy_tokens: int = 32
    tasks: Path | None = None
    most_tasks: int | None = None
    layers: bool = False
    provider: str | None = None
    threads: int | None = None
    native: bool | None = None
    npu_backend: str = "qnn"
    soc: str | None = None
    max_logit_diff: float | None = None
    max_kld: float | None = None
    min_top1: float | None = None
    min_accuracy: float | None = None
