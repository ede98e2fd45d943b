"""An exported graph as a client runs it: plain ONNX Runtime, its states handed from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from lfm_onnx.artifact.formats import BlockFormat
from lfm_onnx.artifact.method import Method
from lfm_onnx.artifact.precision import FP32, Precision
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.export import ExportOptions, OpsProfile, export_checkpoint

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
States = dict[str, Array]


def export_quietly(
    checkpoint: Path,
    folder: Path,
    ops_profile: OpsProfile = OpsProfile.CUSTOM,
    precision: Precision = FP32,
    method: Method | None = Method.RTN,
) -> Path:
    """Export to ``folder``, tokenizer files as far as there are any; the path of the .onnx file."""
    options = ExportOptions(
        precision=precision,
        ops_profile=ops_profile,
        tokenizer=(checkpoint / "tokenizer.json").is_file(),
        method=method if isinstance(precision.weights, BlockFormat) else None,
    )
    export_checkpoint(Checkpoint.open(checkpoint), folder, options)
    return folder / "onnx" / precision.model_file


class ExportedModel:
    """One session. ``run`` maps the contract's present names back to the past names of the next call."""

    def __init__(self, model: Path | bytes, *, optimized: Path | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        source = str(model) if isinstance(model, Path) else model
        self.session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def empty_states(self, batch: int, dtype: type[np.floating] = np.float32) -> States:
        """Zeros for the convolutions, caches of no column."""
        states = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past_conv."):
                states[value.name] = np.zeros((batch, *value.shape[1:]), dtype)
            elif value.name.startswith("past_key_values."):
                states[value.name] = np.zeros((batch, value.shape[1], 0, value.shape[3]), dtype)
        return states

    def run(self, ids: Ids, mask: Ids, states: States, keep: int | None = None) -> tuple[Array, States]:
        """ids [B, S], mask [B, past + S] → logits [B, n, V] and the states after this call."""
        feeds = {"input_ids": ids, "attention_mask": mask, **states}
        if keep is not None:
            feeds["num_logits_to_keep"] = np.array(keep, np.int64)
        found = dict(zip(self.outputs, self.session.run(None, feeds), strict=True))
        logits = found.pop("logits")
        return logits, {past_name(name): value for name, value in found.items()}

    def feed(
        self, ids: Sequence[int] | Ids, states: States | None = None, keep: int | None = None
    ) -> tuple[Array, States]:
        """One row without padding, after as many tokens as ``states`` hold: logits [n, V] and the new states."""
        row = np.asarray(ids, np.int64)[None]
        states = self.empty_states(1) if states is None else states
        logits, states = self.run(row, np.ones((1, columns(states) + row.shape[1]), np.int64), states, keep)
        return logits[0], states


def past_name(present: str) -> str:
    """present.3.key → past_key_values.3.key, present_conv.0 → past_conv.0."""
    return present.replace("present_conv.", "past_conv.").replace("present.", "past_key_values.")


def columns(states: States) -> int:
    """Columns of the KV cache; 0 for a model without attention layers, which does not look at past columns."""
    return next((value.shape[2] for name, value in states.items() if name.startswith("past_key_values.")), 0)


def padded(rows: Sequence[Sequence[int] | Ids], side: str, pad: int = 0) -> tuple[Ids, Ids]:
    """Rows of unequal lengths as input_ids and mask, both [B, longest]."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad, np.int64)
    mask = np.zeros_like(ids)
    for b, row in enumerate(rows):
        kept = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[b, kept], mask[b, kept] = row, 1
    return ids, mask
