"""Writes one part: its graphs as .onnx files beside one file of weights that all of them refer to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ... import __version__
from ...hardware.cores import thread_count
from .float_model import FloatModel
from .float_weights import FloatWeight
from .ordered_work import in_order
from .part_graph import Phase
from .qdq_model import QdqModel
from .quantization import QuantizationParameters
from .static_graph import StaticGraph, Weight, WeightKind
from .weight_codes import StoredAs, quantize_weight
from .weight_inputs import WeightInputs

Arrays = dict[str, npt.NDArray[np.generic]]
"""Initializers by name."""

WEIGHTS_FILE = "weights.bin"
ALIGNMENT = 4096
INLINE_BYTES = 1024
"""Tensors up to this size are inside the .onnx files."""


@dataclass(frozen=True)
class DeclaredGraph:
    """A graph of a part, and the file that it goes to."""

    phase: Phase
    context_length: int
    tokens: int
    graph: StaticGraph

    @property
    def file(self) -> str:
        """The file's name in the part's folder, such as prefill-1024.onnx."""
        return f"{self.phase.value}-{self.context_length}.onnx"


@dataclass(frozen=True)
class Stored:
    """Where an initializer lies in the file of weights."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class _WeightArrays:
    """What makes the initializers of one weight, and the layer that it belongs to."""

    layer: int | None
    arrays: Callable[[], Arrays]

    @property
    def order(self) -> tuple[bool, int]:
        """Layer by layer, as several graphs read the same tensors of the checkpoint; weights of no layer come last."""
        return self.layer is None, self.layer or 0


class PartWriter:
    """Writes graphs and weights of one part into ``folder``; a weight that several graphs use is written once."""

    def __init__(
        self,
        folder: Path,
        quantization: Mapping[str, QuantizationParameters] | None,
        stored_as: Callable[[Weight], StoredAs],
        inputs: WeightInputs | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """quantization None: float graphs. The files do not depend on ``threads``."""
        self._folder = folder
        self._quantization = quantization
        self._stored_as = stored_as
        self._inputs = inputs
        self._threads = threads
        self._stored: dict[str, Stored] = {}
        self._inline: dict[str, npt.NDArray[np.generic]] = {}
        self.weight_bytes: dict[str, dict[str, int]] = {}
        """By graph file: bytes by initializer."""

    def write(self, graphs: list[DeclaredGraph]) -> None:
        """The file of weights, flushed to disk, then one .onnx file for each graph; the folder is made if missing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        models: dict[str, ir.Model] = {}
        weights: dict[str, _WeightArrays] = {}
        for declared in graphs:
            models[declared.file], added = self._lower(declared.graph)
            weights |= added
        contents = sorted(weights.values(), key=lambda content: content.order)
        with (
            (self._folder / WEIGHTS_FILE).open("wb") as out,
            ThreadPoolExecutor(thread_count(self._threads)) as pool,
        ):
            for _, arrays in in_order(
                pool, lambda item: item.arrays(), contents, ahead=thread_count(self._threads) + 1
            ):
                for name, array in arrays.items():
                    self._put(name, array, out)
            out.flush()
            os.fsync(out.fileno())
        for file, model in models.items():
            self._fill(model, file)
            model.producer_name, model.producer_version = "lfm-onnx", __version__
            ir.save(model, self._folder / file)

    def _lower(self, graph: StaticGraph) -> tuple[ir.Model, dict[str, _WeightArrays]]:
        """The model without the data of its large weights, and by name what makes their initializers."""
        if self._quantization is None:
            lowered = FloatModel(graph)
            return lowered.model, {
                name: _WeightArrays(source.weight.layer, partial(_float, name, source))
                for name, source in lowered.weights.items()
            }
        quantized = QdqModel(graph, self._quantization, self._stored_as)
        return quantized.model, {
            name: _WeightArrays(weight.layer, partial(_codes, name, weight, stored_as, self._inputs))
            for name, (weight, stored_as) in quantized.weights.items()
        }

    def _put(self, name: str, array: npt.NDArray[np.generic], out: BinaryIO) -> None:
        if array.nbytes <= INLINE_BYTES:
            self._inline[name] = array
            return
        offset = -(-out.tell() // ALIGNMENT) * ALIGNMENT
        out.write(bytes(offset - out.tell()))
        out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._stored[name] = Stored(offset, array.nbytes)

    def _fill(self, model: ir.Model, file: str) -> None:
        sizes: dict[str, int] = {}
        for name, value in model.graph.initializers.items():
            assert value.shape is not None and value.dtype is not None
            if name in self._stored:
                stored = self._stored[name]
                value.const_value = ir.ExternalTensor(
                    WEIGHTS_FILE,
                    stored.offset,
                    stored.nbytes,
                    value.dtype,
                    shape=value.shape,
                    name=name,
                    base_dir=self._folder,
                )
            elif name in self._inline:
                array = self._inline[name]
                if value.dtype == ir.DataType.INT4:
                    value.const_value = ir.PackedTensor(array, value.dtype, shape=value.shape, name=name)
                else:
                    value.const_value = ir.tensor(array.reshape(value.shape.numpy()), name=name)
            assert value.const_value is not None, name
            sizes[name] = value.const_value.nbytes
        self.weight_bytes[file] = sizes


def _float(name: str, source: FloatWeight) -> Arrays:
    return {name: source.array()}


def _codes(name: str, weight: Weight, stored_as: StoredAs, inputs: WeightInputs | None) -> Arrays:
    made = quantize_weight(weight, stored_as, inputs)
    return {name: made.codes, f"{name}.scale": made.scales} if weight.kind is WeightKind.LINEAR else {name: made.codes}
