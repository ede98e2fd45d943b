"""The units that a block format is chosen for: which weights of the graph share one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..artifact.formats import BlockFormat
from ..artifact.graph_weights import GraphWeight, TensorKind

Formats = Mapping[str, BlockFormat]
"""The block format of each group, by the group's name."""


@dataclass(frozen=True)
class TensorGroup:
    """Weights that share a format because one node of the graph holds them. ``layer`` is None outside of the layers."""

    name: str
    kind: TensorKind
    layer: int | None
    weights: tuple[GraphWeight, ...]

    @property
    def parameters(self) -> int:
        """Number of elements of all weights together."""
        return sum(weight.rows * weight.columns for weight in self.weights)

    @property
    def is_feed_forward(self) -> bool:
        """Whether it is what stands behind a layer's second norm, dense or of experts."""
        return self.kind in (TensorKind.FEED_FORWARD, TensorKind.EXPERTS)

    def nbytes(self, fmt: BlockFormat) -> int:
        """Bytes of codes, scales and zero points in the file, alignment aside."""
        return sum(weight.rows * _row_bytes(weight.columns, fmt) for weight in self.weights)

    def takes(self, fmt: BlockFormat) -> bool:
        """Whether the format fits: experts are read by kernels that know no part of a block."""
        return self.kind is not TensorKind.EXPERTS or all(
            weight.columns % fmt.block_size == 0 for weight in self.weights
        )


def tensor_groups(weights: Iterable[GraphWeight]) -> list[TensorGroup]:
    """All groups of the weights of a model with block formats, in the weights' order."""
    members: dict[str, list[GraphWeight]] = {}
    for weight in weights:
        if weight.group is not None:
            members.setdefault(weight.group, []).append(weight)
    return [TensorGroup(name, own[0].kind, own[0].layer, tuple(own)) for name, own in members.items()]


def same_format(groups: Sequence[TensorGroup], fmt: BlockFormat) -> dict[str, BlockFormat]:
    """One format for every group."""
    return {group.name: fmt for group in groups}


def _row_bytes(columns: int, fmt: BlockFormat) -> int:
    scales = fmt.blocks(columns) * fmt.scale_numpy.itemsize
    return fmt.row_bytes(columns) + scales + fmt.zero_point_bytes(columns)
