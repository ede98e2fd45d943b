"""Entries of the table of graph weights: those of a checkpoint by name, and one for rows that belong to no model."""

from __future__ import annotations

from lfm_onnx.artifact.graph_weights import GraphWeight, TensorKind
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.export.decoder import model_weights

ANY_MATRIX = GraphWeight("w", TensorKind.ATTENTION, (64, 32), ("w",), group="w")


def block_weights(config: LfmConfig) -> dict[str, GraphWeight]:
    """The table of a graph with block formats by the weights' names."""
    return {weight.name: weight for weight in model_weights(config, blocks=True)}
