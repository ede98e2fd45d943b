"""What an export will write: options settled, the graph declared, its weights laid out in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..artifact.formats import BlockFormat
from ..artifact.graph_weights import GraphWeight, TensorKind
from ..artifact.method import Method
from ..artifact.precision import PRECISIONS, Precision
from ..checkpoint.checkpoint import Checkpoint
from ..errors import InputError
from ..hardware.cores import check_threads
from ..quantize.choice import ChosenFormats, choose_formats
from ..quantize.quantization import Quantization, QuantizationOptions, settle_quantization
from ..quantize.recipe import Recipe, read_recipe
from ..quantize.tensor_groups import Formats, tensor_groups
from .client_configs import check_client_files, require_tokenizer
from .data_files import DataFile, plan_data_files
from .decoder import GraphOptions, declare_model, graph_weights, model_weights
from .manifest import state_bytes
from .notes import checkpoint_notes
from .ops import OpsProfile
from .options import ExportOptions
from .output_folder import check_target, output_folder
from .weight_parameters import WeightFormats, check_block_formats
from .weights import WeightTensor, weight_tensors

INLINE_BYTES = 1024
"""Tensors up to this size stay inside the .onnx file."""


Progress = Callable[[str], None]
"""Is told in lines what is being done."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export will write; made without reading weights or writing anything."""

    checkpoint: Checkpoint
    options: ExportOptions
    precision: Precision
    ops_profile: OpsProfile
    context_length: int
    model: ir.Model
    inline: tuple[WeightTensor, ...]
    data_files: tuple[DataFile, ...]
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()
    """One line on each thing of the checkpoint that is not used, or not as it says."""
    chosen: ChosenFormats | None = None
    """What the formats were chosen among, where a promise asked for a choice."""

    @property
    def tensors(self) -> list[WeightTensor]:
        """All tensors to write: those inside the .onnx file, then those of the data files in order."""
        return [*self.inline, *(placed.tensor for file in self.data_files for placed in file.tensors)]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, external and inside the .onnx file."""
        return self.data_bytes + sum(tensor.nbytes for tensor in self.inline)

    @property
    def data_bytes(self) -> int:
        """Bytes of external weights."""
        return sum(file.nbytes for file in self.data_files)

    def to_dict(self) -> dict[str, Any]:
        """The plan for people and machines: files, bytes, states."""
        return {
            "checkpoint": self.checkpoint.source,
            "precision": self.precision.name,
            "weights": self._weights,
            **({} if self.quantization is None else {"quantization": self.quantization.recipe.to_dict()}),
            "ops": self.ops_profile.value,
            "context_length": self.context_length,
            "data_files": [{"path": f"onnx/{file.name}", "bytes": file.nbytes} for file in self.data_files],
            "data_bytes": self.data_bytes,
            "state_bytes": state_bytes(
                self.checkpoint.config, self.context_length, self.precision.activations.itemsize
            ),
            "nodes": self.model.graph.num_nodes(),
            "notes": list(self.notes),
        }

    @property
    def _weights(self) -> str:
        """The format of the weights, or of most of them where each has its own."""
        if self.quantization is None:
            return self.precision.weight_format
        names = {fmt.name for fmt in self.quantization.recipe.formats.values()}
        return names.pop() if len(names) == 1 else "mixed"


def resolve_export(
    checkpoint: Checkpoint | Path | str,
    options: ExportOptions,
    *,
    output: Path | None = None,
    progress: Progress = lambda line: None,
) -> ExportPlan:
    """What an export of ``checkpoint`` with ``options`` writes: graph, files, the format of every weight.

    Weights are read only where ``budget`` or ``max_kld`` asks for formats, which are chosen by measuring; text is
    read where a method is calibrated. output: the folder to be written, refused before that work if it cannot be.
    Raises LfmOnnxError, and of those PromiseError where no formats keep the promise.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint, progress=progress)
    if output is not None:
        check_target(output_folder(output), replace=options.replace, source=checkpoint.folder)
    check_threads(options.threads)
    weights = model_weights(checkpoint.config, blocks=True)
    recipe = _recipe(options, weights)
    precision = options.settled_precision(recipe)
    options.check(precision)
    if not isinstance(precision.weights, BlockFormat):
        return lay_out(checkpoint, options, precision, None)
    calibration = Path(options.calibration) if options.calibration is not None else None
    own = QuantizationOptions(
        options.settled_method(), calibration, options.calibration_tokens, options.threads, recipe
    )
    if recipe is None:
        # What cannot be exported at all is said before any text is read or written for calibration.
        plain = replace(own, method=Method.RTN, calibration=None)
        lay_out(
            checkpoint, options, precision, settle_quantization(checkpoint, weights, precision, plain, tokenizer=False)
        )
    quantization = settle_quantization(checkpoint, weights, precision, own, tokenizer=options.tokenizer)
    if quantization.note is not None:
        progress(f"note: {quantization.note}")
    if options.budget is None and options.max_kld is None:
        return lay_out(checkpoint, options, precision, quantization)
    return _choose(checkpoint, options, precision, quantization, progress)


def _choose(
    checkpoint: Checkpoint,
    options: ExportOptions,
    precision: Precision,
    quantization: Quantization,
    progress: Progress,
) -> ExportPlan:
    if not options.tokenizer:
        raise InputError("`budget` and `max_kld` measure on text, which needs a tokenizer: leave out `tokenizer=False`")

    def weight_bytes(formats: Formats) -> int:
        return lay_out(checkpoint, options, precision, quantization.with_formats(formats)).weight_bytes

    chosen = choose_formats(
        quantization,
        precision,
        budget=options.budget,
        max_kld=options.max_kld,
        weight_bytes=weight_bytes,
        progress=progress,
    )
    return replace(lay_out(checkpoint, options, precision, chosen.quantization), chosen=chosen)


def _recipe(options: ExportOptions, weights: Sequence[GraphWeight]) -> Recipe | None:
    if options.recipe is None or isinstance(options.recipe, Recipe):
        recipe = options.recipe
    else:
        recipe = read_recipe(Path(options.recipe), tensor_groups(weights))
    if recipe is not None and recipe.precision not in PRECISIONS:
        where = "the recipe" if isinstance(options.recipe, Recipe) else options.recipe
        raise InputError(f"{where}: precision is {recipe.precision!r:.40}, expected a quantized one")
    return recipe


def lay_out(
    checkpoint: Checkpoint, options: ExportOptions, precision: Precision, quantization: Quantization | None
) -> ExportPlan:
    """Declare the graph and lay out its weights. Raises LfmOnnxError where the checkpoint or an option does not fit.

    quantization: where ``precision`` stores blocks, how they are made.
    """
    ops_profile = options.settled_ops_profile()
    context_length = _context_length(checkpoint, options)
    if options.tokenizer:
        require_tokenizer(checkpoint)
    check_client_files(checkpoint)
    activations = ir.DataType.from_numpy(precision.activations)
    if activations != ir.DataType.FLOAT and ops_profile is not OpsProfile.CUSTOM:
        raise InputError(f'{precision.name} is for ONNX Runtime\'s GPU operators: use `ops_profile="custom"`')
    if isinstance(precision.weights, BlockFormat):
        assert quantization is not None
        check_block_formats(checkpoint.config, quantization.groups, quantization.recipe.formats)
        formats = WeightFormats(blocks=quantization.recipe.formats)
    else:
        formats = WeightFormats(ir.DataType.from_numpy(precision.weights))
    graph = GraphOptions(ops_profile, formats, context_length, activations)
    model = declare_model(checkpoint.config, graph)
    tensors = weight_tensors(model, graph_weights(checkpoint.config, graph), checkpoint, quantization)
    inline = tuple(tensor for tensor in tensors if tensor.nbytes <= INLINE_BYTES)
    external = sorted((tensor for tensor in tensors if tensor.nbytes > INLINE_BYTES), key=_comes_last)
    files = tuple(plan_data_files(external, precision.data_file))
    notes = checkpoint_notes(checkpoint)
    return ExportPlan(
        checkpoint, options, precision, ops_profile, context_length, model, inline, files, quantization, notes
    )


def _context_length(checkpoint: Checkpoint, options: ExportOptions) -> int:
    longest = checkpoint.config.max_position_embeddings
    length = options.context_length if options.context_length is not None else checkpoint.context_length
    if not 1 <= length <= longest:
        raise InputError(
            f"context length {length}: {checkpoint.source} was made for 1 to {longest} positions "
            "(max_position_embeddings)"
        )
    return length


def _comes_last(tensor: WeightTensor) -> bool:
    """The table: as the head it is quantized by what leaves the last layer, known when all layers have been visited."""
    return tensor.weight.kind is TensorKind.EMBEDDING
