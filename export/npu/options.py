"""What the caller of an NPU export chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.config import LfmConfig
from ...errors import InputError
from ...hardware.cores import check_threads
from .calibration import CalibrationOptions, Ids
from .part_graph import MoeForm
from .parts import WEIGHT_BUDGET, NpuWeights, PartPlan, plan_parts
from .quantization import FOREIGN_HEADROOM, HEADROOM


@dataclass(frozen=True)
class NpuOptions:
    """calibration: sequences of token ids, None for the text that ships with the package."""

    weights: NpuWeights = NpuWeights.INT8
    chunk: int = 128
    """Tokens of a prefill call."""
    context_lengths: tuple[int, ...] = (1024,)
    weight_budget: int = WEIGHT_BUDGET
    memory_budget: int | None = None
    """Host memory for compiling a part, in bytes."""
    moe_decode: MoeForm | None = None
    """None: gathered experts, packed where weights are int4."""
    share_experts: bool = False
    """Prefill takes one expert after another from the weights that decode gathers from, instead of all at once from a
    copy of its own: half the bytes where both are compiled together, many more operators."""
    calibration: Sequence[Ids] | None = None
    calibration_options: CalibrationOptions = field(default_factory=CalibrationOptions)
    calibration_tokens: int = 1024
    """Of the text that ships with the package."""
    headroom: float | None = None
    """How much wider 16-bit ranges are than what calibration saw; None: little with the caller's own texts, more with
    the text that ships with the package, which may be unlike what the model is used for."""
    error_feedback: bool = True
    """Weights are rounded so that errors cancel on the calibration text (GPTQ); False rounds to the nearest."""
    threads: int | None = None
    """None: one for each processor. The files' bytes do not depend on them."""
    replace: bool = False
    tokenizer: bool = True
    """False exports a checkpoint without tokenizer files."""

    @property
    def decode(self) -> MoeForm:
        """The form of the experts in decode graphs: ``moe_decode``, or what suits the weights."""
        if self.moe_decode is not None:
            return self.moe_decode
        return MoeForm.PACKED if self.weights is NpuWeights.INT4 else MoeForm.GATHERED

    @property
    def chosen_headroom(self) -> float:
        """The headroom in use, a factor: ``headroom``, or the default for the kind of calibration text."""
        if self.headroom is not None:
            return self.headroom
        return FOREIGN_HEADROOM if self.calibration is None else HEADROOM

    @property
    def prefill(self) -> MoeForm:
        """The form of the experts in prefill graphs: that of decode where these share them, else all at once."""
        return self.decode if self.share_experts else MoeForm.WIDE

    def parts(self, config: LfmConfig) -> list[PartPlan]:
        """What a model is cut into; see ``plan_parts``."""
        return plan_parts(
            config,
            self.weights,
            weight_budget=self.weight_budget,
            memory_budget=self.memory_budget,
            decode=self.decode,
            prefill=self.prefill,
            lengths=len(self.context_lengths),
        )

    def check(self, checkpoint: Checkpoint) -> None:
        """InputError where a number does not fit the model."""
        check_threads(self.threads)
        longest = checkpoint.config.max_position_embeddings
        lengths = self.context_lengths
        if not lengths or len(set(lengths)) != len(lengths):
            raise InputError("expected one or more different context lengths; give each once")
        for length in lengths:
            if not 1 <= length <= longest:
                raise InputError(f"context length {length}: {checkpoint.source} was made for 1 to {longest} positions")
        config = checkpoint.config
        if config.is_moe and self.decode.is_packed and (config.hidden_size % 2 or config.moe_intermediate_size % 2):
            raise InputError(
                f"packed experts need even widths, found hidden_size {config.hidden_size} and moe_intermediate_size "
                f"{config.moe_intermediate_size}; choose int8 weights"
            )
        if not 1 <= self.chosen_headroom <= 64:
            raise InputError(f"a headroom of {self.headroom}: expected 1 to 64")
        if not 2 <= self.chunk <= longest:
            raise InputError(f"a prefill chunk of {self.chunk} tokens: expected 2 to {longest}")
