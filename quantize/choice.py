"""Chooses the format of each tensor group so that a promise of size or of quality is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..artifact.formats import BlockFormat, Float32
from ..artifact.method import Method
from ..artifact.precision import Precision
from ..errors import InputError, PromiseError
from ..reference.weights import ConvertedWeights, Weights
from ..reporting.byte_size import byte_size
from .budget import (
    Upgrade,
    apply,
    candidate_formats,
    cheapest,
    fewest_steps,
    spend,
    upgrades,
)
from .divergence import Divergence, divergence, model_logits
from .quantization import Quantization, Sequences, calibration_sequences
from .quantized_weights import QuantizedWeights
from .recipe import Choice
from .sensitivity import GroupOptions, Progress, measure_sensitivity
from .tensor_groups import Formats

SENSITIVITY_TOKENS = 512
HELD_OUT_TOKENS = 1024

_CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class ChosenFormats:
    """The quantization with its chosen formats, what they were chosen among, and the measured KLD if there is one."""

    quantization: Quantization
    groups: list[GroupOptions]
    measured: Divergence | None = None

    def effect(self, group: str) -> float | None:
        """Nats of KLD that the group's chosen format was found to cost."""
        fmt = self.quantization.recipe.formats[group]
        options = next((entry.options for entry in self.groups if entry.group.name == group), ())
        return next((option.effect for option in options if option.fmt == fmt), None)


class HeldOutText:
    """Text that calibrates nothing, and the original model's logits for it."""

    def __init__(self, quantization: Quantization, tokens: int = HELD_OUT_TOKENS) -> None:
        checkpoint = quantization.checkpoint
        self.config = checkpoint.config
        self.plain = Weights(checkpoint, ConvertedWeights(_CACHE_BYTES))
        self.sequences: Sequences = quantization.held_out(tokens)
        self.original: Float32 = model_logits(self.config, self.plain, self.sequences)

    def measure(self, quantization: Quantization) -> Divergence:
        """Of the model with weights rounded as they will be written, and activations as the kernels round them."""
        weights = QuantizedWeights.of(quantization, self.plain, quantization.recipe.formats)
        return divergence(self.original, model_logits(self.config, weights, self.sequences))


def choose_formats(
    quantization: Quantization,
    precision: Precision,
    *,
    budget: int | None,
    max_kld: float | None,
    weight_bytes: Callable[[Formats], int],
    progress: Progress = lambda line: None,
    held_out: HeldOutText | None = None,
) -> ChosenFormats:
    """Formats whose weights take at most ``budget`` bytes, or whose KLD is at most ``max_kld`` with the fewest bytes.

    weight_bytes: bytes of all weights of the artifact with given formats. Raises PromiseError where no formats keep
    the promise, with the best that there is.
    """
    base = precision.weights
    assert isinstance(base, BlockFormat)
    if quantization.recipe.method is not Method.RTN and not quantization.calibrated:
        raise InputError("`budget` and `max_kld` measure on text, which needs a tokenizer: leave out `tokenizer=False`")
    candidates = candidate_formats(base.scale_dtype, symmetric=base.symmetric)
    text = calibration_sequences(quantization.checkpoint, quantization.calibration, SENSITIVITY_TOKENS)
    groups = measure_sensitivity(quantization, candidates, text, progress)
    search = _Search(quantization, groups, weight_bytes, progress)
    if max_kld is None:
        assert budget is not None
        formats = search.within(budget)
        choice = Choice(budget=budget)
        return ChosenFormats(_with_choice(quantization, formats, choice), groups)
    formats, measured = search.as_good_as(max_kld, held_out or HeldOutText(quantization))
    if budget is not None and (needed := weight_bytes(formats)) > budget:
        raise PromiseError(
            f"`max_kld={max_kld:g}` takes {byte_size(needed)} of weights, more than the budget of {byte_size(budget)}: "
            "allow more of the one or of the other"
        )
    choice = Choice(budget, max_kld, float(f"{measured.kld:.6g}"), measured.tokens)
    return ChosenFormats(_with_choice(quantization, formats, choice), groups, measured)


def _with_choice(quantization: Quantization, formats: Formats, choice: Choice) -> Quantization:
    chosen = quantization.with_formats(formats)
    return replace(chosen, recipe=replace(chosen.recipe, choice=choice))


class _Search:
    def __init__(
        self,
        quantization: Quantization,
        groups: Sequence[GroupOptions],
        weight_bytes: Callable[[Formats], int],
        progress: Progress,
    ) -> None:
        self.quantization, self.weight_bytes, self.progress = quantization, weight_bytes, progress
        self.first = cheapest(groups)
        self.steps: list[Upgrade] = upgrades(groups)
        self.first_effect = sum(group.options[0].effect for group in groups)

    def within(self, budget: int) -> dict[str, BlockFormat]:
        smallest = self.weight_bytes(self.first)
        if smallest > budget:
            raise PromiseError(
                f"a budget of {byte_size(budget)} cannot be kept: the smallest possible is {byte_size(smallest)} "
                f"({smallest} bytes)"
            )
        allowed = budget - smallest
        while True:
            formats = apply(self.first, spend(self.steps, allowed))
            # Alignment may cost a few kilobytes more than the weights themselves.
            excess = self.weight_bytes(formats) - budget
            if excess <= 0:
                return formats
            allowed -= excess

    def as_good_as(self, max_kld: float, text: HeldOutText) -> tuple[dict[str, BlockFormat], Divergence]:
        measured: dict[int, Divergence] = {}

        def keeps_promise(steps: int) -> bool:
            formats = apply(self.first, self.steps[:steps])
            result = measured[steps] = text.measure(self.quantization.with_formats(formats))
            self.progress(
                f"{steps} of {len(self.steps)} upgrades: KLD {result.kld:.3g} ± {result.standard_error:.1g} "
                f"nats, {byte_size(self.weight_bytes(formats))}"
            )
            # With two standard errors to spare the promise holds for other text of this kind, too.
            return result.upper <= max_kld

        try:
            steps = fewest_steps(self.steps, self._guess(max_kld), keeps_promise)
        except PromiseError:
            best = measured[len(self.steps)]
            raise PromiseError(
                f"`max_kld={max_kld:g}` cannot be kept: with the best format of every tensor the KLD is {best.kld:.3g} "
                f"nats (standard error {best.standard_error:.1g} over {best.tokens} tokens); "
                'use `precision="fp16"`, or give `calibration` text of the kind that the model will see'
            ) from None
        return apply(self.first, self.steps[:steps]), measured[steps]

    def _guess(self, max_kld: float) -> int:
        """Steps after which the effects of single groups add up to the promise."""
        left = self.first_effect
        for number, step in enumerate(self.steps):
            if left <= max_kld:
                return number
            left -= step.gain
        return len(self.steps)
