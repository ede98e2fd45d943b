"""One model's quantization, settled before anything is written: its recipe, calibration text and quantizer."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..artifact.formats import BlockFormat, Float32, QuantizedRows
from ..artifact.graph_weights import GraphWeight
from ..artifact.method import Method
from ..artifact.precision import Precision
from ..errors import InputError
from .calibration_text import DEFAULT_CALIBRATION_TOKENS, TextHalf, load_calibration
from .methods import Quantizer
from .own_text import own_text, writes_own_text
from .recipe import CalibrationText, Recipe
from .tensor_groups import Formats, TensorGroup, same_format, tensor_groups

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

Sequences = list[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class QuantizationOptions:
    """What the caller chooses. ``method`` None: the precision's default; ``calibration`` None: calibration_sequences'.

    ``recipe`` replaces method, formats and number of calibration tokens by what it says.
    """

    method: Method | None = None
    calibration: Path | None = None
    calibration_tokens: int = DEFAULT_CALIBRATION_TOKENS
    threads: int | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Quantization:
    """Makes its quantizer when that is first used.

    weights: the table of a graph with block formats. note: one line for the user where a default had to give way.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    weights: tuple[GraphWeight, ...]
    calibration: Path | None = None
    sequences: Sequences | None = None
    threads: int | None = None
    note: str | None = None
    _quantizers: dict[str, Quantizer] = field(default_factory=dict, compare=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def calibrated(self) -> bool:
        """Whether there is calibration text; without it ``sequences`` is None."""
        return self.sequences is not None

    @property
    def quantizer(self) -> Quantizer:
        """The one quantizer, made at the first call; safe to ask for from several threads."""
        with self._lock:
            if "quantizer" not in self._quantizers:
                self._quantizers["quantizer"] = Quantizer(
                    self.recipe.method, self.checkpoint, self.sequences, weights=self.weights, threads=self.threads
                )
            return self._quantizers["quantizer"]

    @cached_property
    def groups(self) -> list[TensorGroup]:
        """The groups of ``weights`` that share a format each, in the weights' order."""
        return tensor_groups(self.weights)

    def quantize(self, weight: GraphWeight, rows: Float32, first_row: int, fmt: BlockFormat) -> QuantizedRows:
        """Blocks of ``rows`` [n, K], which start at row ``first_row`` of ``weight``; see ``Quantizer.quantize``."""
        return self.quantizer.quantize(weight, rows, first_row, fmt)

    def tensor_reports(self) -> dict[str, dict[str, Any]]:
        """What the quantizer says of each weight it has seen, by name, as far as it says anything.

        relative_error and round_to_nearest_error: |X(W - Q)| / |XW| on a sample of rows; expert_tokens: calibration
        tokens of each expert; fallbacks: expert (or "all") → why it was left to the weighted search.
        """
        report = self.quantizer.report()
        by_tensor: dict[str, dict[str, Any]] = {}
        for name, errors in report["tensors"].items():
            by_tensor[name] = {
                "relative_error": float(f"{errors['quantized'] ** 0.5:.6g}"),
                "round_to_nearest_error": float(f"{errors['round_to_nearest'] ** 0.5:.6g}"),
            }
        for name, tokens in report["expert_tokens"].items():
            by_tensor.setdefault(name, {})["expert_tokens"] = tokens
        for entry in report["fallbacks"]:
            expert = "all" if entry["expert"] is None else str(entry["expert"])
            by_tensor.setdefault(entry["tensor"], {}).setdefault("fallbacks", {})[expert] = entry["reason"]
        return by_tensor

    def format_of_weights(self) -> dict[str, BlockFormat]:
        """The format of each weight of the graph by the weight's name."""
        return {weight.name: self.recipe.formats[group.name] for group in self.groups for weight in group.weights}

    def with_formats(self, formats: Formats, method: Method | None = None) -> Quantization:
        """The same text and, unless another is given, method, for other formats; with a quantizer of its own."""
        method = method or self.recipe.method
        recipe = replace(self.recipe, formats=dict(formats), method=method)
        if method is Method.RTN:
            recipe = replace(recipe, calibration=None)
        return replace(self, recipe=recipe, _quantizers={}, _lock=threading.Lock())

    def held_out(self, tokens: int) -> Sequences:
        """Text of the same kind that no method has seen, to measure on."""
        return calibration_sequences(self.checkpoint, self.calibration, tokens, "held-out")


def settle_quantization(
    checkpoint: Checkpoint,
    weights: tuple[GraphWeight, ...],
    precision: Precision,
    options: QuantizationOptions,
    *,
    tokenizer: bool,
) -> Quantization:
    """Decide method and formats, and read the calibration text. InputError where the options contradict one another.

    weights: the table of a graph with block formats. tokenizer: whether calibration text can be tokenized at all.
    """
    fmt = precision.weights
    if not isinstance(fmt, BlockFormat):
        raise InputError(f'{precision.name} stores no blocks: choose `precision="q4"`, q8 or q4f16')
    recipe, note = options.recipe, None
    tokens = options.calibration_tokens
    if recipe is not None:
        _check_replay(recipe, precision, options)
        method, formats = recipe.method, recipe.formats
        calibrates = recipe.calibration is not None
        tokens = recipe.calibration.tokens if recipe.calibration is not None else tokens
    else:
        method, note = _method(precision, options, tokenizer)
        formats = same_format(tensor_groups(weights), fmt)
        calibrates = tokenizer and method is not Method.RTN
    if calibrates and not tokenizer:
        raise InputError(
            f"{'this recipe' if recipe else method} needs calibration text, and that a tokenizer: leave out "
            '`tokenizer=False`, or use `method="rtn"` or search'
        )
    if options.calibration is not None and not calibrates:
        reason = "without a tokenizer nothing" if method is not Method.RTN and not recipe else f"{method} here not"
        raise InputError(f"`calibration`: {reason} is calibrated; leave it out")
    if not calibrates:
        recipe = recipe or Recipe(precision.name, method, formats)
        return Quantization(recipe, checkpoint, weights, threads=options.threads, note=note)
    sequences = calibration_sequences(checkpoint, options.calibration, tokens)
    text = CalibrationText(sequences_digest(sequences), tokens)
    if recipe is not None and text != recipe.calibration:
        raise InputError(
            "the recipe was made with other calibration text or another tokenizer: give the same `calibration`"
        )
    recipe = recipe or Recipe(precision.name, method, formats, text)
    return Quantization(recipe, checkpoint, weights, options.calibration, sequences, options.threads)


def calibration_sequences(
    checkpoint: Checkpoint, path: Path | None, tokens: int, half: TextHalf = "calibration"
) -> Sequences:
    """Token ids of the calibration text, no sequence longer than the model's context.

    Without a ``path`` it is the text shipped here; to calibrate a small model, twice as much that the model writes
    itself comes before it: such a model may know another world than that of the shipped text. What is measured on is
    the shipped text alone, the harder one.
    """
    longest = checkpoint.config.max_position_embeddings
    sequences = [ids[:longest] for ids in load_calibration(path, checkpoint, tokens, half=half)]
    if path is None and half == "calibration" and writes_own_text(checkpoint):
        sequences = own_text(checkpoint, 2 * tokens) + sequences
    return sequences


def sequences_digest(sequences: Sequence[npt.NDArray[np.int64]]) -> str:
    """SHA-256 of the token ids and of where the sequences end."""
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(b"%d\n" % len(ids))
        digest.update(np.ascontiguousarray(ids, "<i8").tobytes())
    return digest.hexdigest()


def _method(precision: Precision, options: QuantizationOptions, tokenizer: bool) -> tuple[Method, str | None]:
    """The method to use, and a note where the default needs a tokenizer that is not there."""
    method = Method(options.method or precision.default_method)
    if tokenizer or method is Method.RTN:
        return method, None
    if options.method == Method.GPTQ or options.calibration is not None:
        needs = "`calibration`" if options.calibration is not None else '`method="gptq"`'
        raise InputError(
            f'{needs} needs a tokenizer: leave out `tokenizer=False`, or use `method="rtn"` or search alone'
        )
    if options.method is not None:
        return method, None
    note = "without a tokenizer no text can calibrate: the search weighs all columns of a weight the same"
    return Method.SEARCH, note


def _check_replay(recipe: Recipe, precision: Precision, options: QuantizationOptions) -> None:
    if recipe.precision != precision.name:
        raise InputError(f"the recipe is one of precision {recipe.precision}, not {precision.name}")
    if options.method is not None and options.method != recipe.method:
        raise InputError(f"the recipe says method {recipe.method}, not {options.method}; give one of the two")
