"""Exports the parts of a model one by one: each is declared, quantized, written, checked and forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...artifact.npu_manifest import Embedding
from ...artifact.npu_parts import NpuPart
from ...checkpoint.checkpoint import Checkpoint
from ...errors import InputError, OutputError
from ...strict_json import JsonObject
from ..staging import Staging
from .forms import check_graph
from .manifest_entries import npu_graph, npu_part
from .options import NpuOptions
from .part_files import WEIGHTS_FILE, DeclaredGraph, PartWriter
from .part_graph import PartShape, Phase, declare_part
from .parts import NpuWeights, PartPlan
from .quantization import EMBEDDINGS, QuantizationParameters, Range, assign
from .static_graph import Weight
from .weight_codes import BLOCK_SIZE, StoredAs
from .weight_inputs import WeightInputs

EMBEDDING_FILE = "npu/embedding.bin"
_TABLE_PIECE = 4 << 20
"""Elements of the embedding table that are converted at a time."""


class PartExport:
    """Writes parts below ``npu/`` of the staging folder.

    ranges None: float graphs. inputs: by what rounding errors are fed back; None rounds to the nearest.
    """

    def __init__(
        self,
        staging: Staging,
        checkpoint: Checkpoint,
        options: NpuOptions,
        ranges: Mapping[str, Range] | None,
        inputs: WeightInputs | None = None,
    ) -> None:
        self._staging = staging
        self._checkpoint = checkpoint
        self._options = options
        self._ranges = ranges
        self._inputs = inputs

    def write(self, part: PartPlan) -> NpuPart:
        """The part as the manifest lists it; its files are written unless an earlier run finished them.

        InputError where a graph has a form that the compiler would get wrong.
        """
        folder = f"npu/part{part.index}"
        graphs = self._declare(part)
        names = [*(f"{folder}/{declared.file}" for declared in graphs), f"{folder}/{WEIGHTS_FILE}"]
        records = [self._staging.finished(name) for name in names]
        if (last := records[-1]) is not None and None not in records:
            return NpuPart.from_json(JsonObject(last["entry"], f"{self._staging.folder}: the journal", OutputError))
        quantization = None
        if self._ranges is not None:
            quantization = assign([declared.graph for declared in graphs], self._ranges, self._options.chosen_headroom)
        target = self._staging.folder / folder
        writer = PartWriter(target, quantization, self._stored_as, self._inputs, threads=self._options.threads)
        writer.write(graphs)
        listed = []
        for declared in graphs:
            self._refuse_wrong_forms(target / declared.file)
            sizes = writer.weight_bytes[declared.file]
            listed.append(npu_graph(declared, folder, quantization, sizes))
        written = npu_part(part, listed, (target / WEIGHTS_FILE).stat().st_size, folder)
        for name in names:
            record: dict[str, Any] = {"bytes": (self._staging.folder / name).stat().st_size}
            self._staging.finish(name, {**record, "entry": written.to_dict()} if name == names[-1] else record)
        return written

    def write_embedding(self) -> Embedding:
        """The table in the quantization of the first part's input, so that a lookup copies a row."""
        config = self._checkpoint.config
        used = None
        if self._ranges is not None:
            used = QuantizationParameters.over(*self._ranges[EMBEDDINGS], "uint16")
        with (self._staging.folder / EMBEDDING_FILE).open("wb") as out:
            self._write_table(out, used)
        dtype, rows, width = np.dtype(used.dtype if used else "float32"), config.vocab_size, config.hidden_size
        if used is None:
            return Embedding(EMBEDDING_FILE, dtype, rows, width)
        return Embedding(EMBEDDING_FILE, dtype, rows, width, scale=used.scale, zero_point=used.zero_point)

    def _write_table(self, out: BinaryIO, used: QuantizationParameters | None) -> None:
        config = self._checkpoint.config
        step = max(1, _TABLE_PIECE // config.hidden_size)
        for first in range(0, config.vocab_size, step):
            last = min(first + step, config.vocab_size)
            rows = self._checkpoint.float32("model.embed_tokens.weight", slice(first, last))
            out.write((rows if used is None else used.codes(rows)).tobytes())

    def _declare(self, part: PartPlan) -> list[DeclaredGraph]:
        declared = []
        for context_length in self._options.context_lengths:
            shape = PartShape(part.first_layer, part.last_layer, part.head, context_length)
            for phase, tokens, moe in (
                (Phase.PREFILL, self._options.chunk, self._options.prefill),
                (Phase.DECODE, 1, self._options.decode),
            ):
                graph = declare_part(self._checkpoint, shape, phase, tokens, moe)
                declared.append(DeclaredGraph(phase, context_length, tokens, graph))
        return declared

    def _stored_as(self, weight: Weight) -> StoredAs:
        fits = weight.value.shape[0] % BLOCK_SIZE == 0
        return StoredAs.INT4_BLOCKS if self._options.weights is NpuWeights.INT4 and fits else StoredAs.INT8_COLUMNS

    def _refuse_wrong_forms(self, path: Path) -> None:
        findings = check_graph(path)
        if findings:
            raise InputError(
                f"{path.name}, {findings[0].node}: {findings[0].message} ({len(findings)} findings); the NPU cannot "
                "take a model of this shape" + ("; try int8 weights" if self._ranges is None else "")
            )
