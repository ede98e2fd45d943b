"""The units that a block format is chosen for: which weights of the graph, from which tensors of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..artifact.formats import BlockFormat
from ..checkpoint.config import LfmConfig

Formats = Mapping[str, BlockFormat]
"""The block format of each group, by the group's name."""


@dataclass(frozen=True)
class GroupWeight:
    """One matrix of the graph: ``name`` there, its rows (of all experts) and columns.

    ``sources``: the checkpoint's tensors that its rows come from. ``rows_per_expert``: 0 unless it holds experts.
    """

    name: str
    rows: int
    columns: int
    sources: tuple[str, ...]
    rows_per_expert: int = 0

    def nbytes(self, fmt: BlockFormat) -> int:
        """Bytes of codes, scales and zero points."""
        scales = fmt.blocks(self.columns) * fmt.scale_numpy.itemsize
        return self.rows * (fmt.row_bytes(self.columns) + scales + fmt.zero_point_bytes(self.columns))


@dataclass(frozen=True)
class TensorGroup:
    """Weights that share a format because one node of the graph holds them.

    ``kind``: embedding, lm_head, conv, attention, feed_forward or experts. ``layer`` is None outside of the layers.
    """

    name: str
    kind: str
    layer: int | None
    weights: tuple[GroupWeight, ...]

    @property
    def parameters(self) -> int:
        return sum(weight.rows * weight.columns for weight in self.weights)

    def nbytes(self, fmt: BlockFormat) -> int:
        """Bytes in the file, alignment aside."""
        return sum(weight.nbytes(fmt) for weight in self.weights)

    def takes(self, fmt: BlockFormat) -> bool:
        """Whether the format fits: experts are read by kernels that know no part of a block."""
        return self.kind != "experts" or all(weight.columns % fmt.block_size == 0 for weight in self.weights)


def tensor_groups(config: LfmConfig) -> list[TensorGroup]:
    """All groups of a model, in the order in which its layers run; the LM head last where it is not tied."""
    return list(_groups(config))


def formats_of_all(config: LfmConfig, fmt: BlockFormat) -> dict[str, BlockFormat]:
    """The same format for every group."""
    return {group.name: fmt for group in _groups(config)}


def _groups(config: LfmConfig) -> Iterator[TensorGroup]:
    hidden = config.hidden_size
    yield _linear("model.embed_tokens", "embedding", None, config.vocab_size, hidden)
    for i, kind in enumerate(config.layer_types):
        layer = f"model.layers.{i}."
        if kind == "conv":
            yield _linear(layer + "conv.in_proj", "conv", i, 3 * hidden, hidden)
            yield _linear(layer + "conv.out_proj", "conv", i, hidden, hidden)
        else:
            sources = tuple(f"{layer}self_attn.{part}_proj.weight" for part in "qkv")
            rows = config.q_dim + 2 * config.kv_dim
            qkv = GroupWeight(f"{layer}self_attn.qkv_proj.weight", rows, hidden, sources)
            yield TensorGroup(layer + "self_attn.qkv_proj", "attention", i, (qkv,))
            yield _linear(layer + "self_attn.out_proj", "attention", i, hidden, config.q_dim)
        yield _experts(config, i) if config.is_moe_layer(i) else _feed_forward(config, i)
    if not config.tie_word_embeddings:
        yield _linear("lm_head", "lm_head", None, config.vocab_size, hidden)


def _linear(name: str, kind: str, layer: int | None, rows: int, columns: int) -> TensorGroup:
    weight = f"{name}.weight"
    return TensorGroup(name, kind, layer, (GroupWeight(weight, rows, columns, (weight,)),))


def _feed_forward(config: LfmConfig, i: int) -> TensorGroup:
    name = f"model.layers.{i}.feed_forward"
    hidden, width = config.hidden_size, config.ff_dim
    gate_up = GroupWeight(f"{name}.gate_up.weight", 2 * width, hidden, (f"{name}.w1.weight", f"{name}.w3.weight"))
    down = GroupWeight(f"{name}.down.weight", hidden, width, (f"{name}.w2.weight",))
    return TensorGroup(name, "feed_forward", i, (gate_up, down))


def _experts(config: LfmConfig, i: int) -> TensorGroup:
    name = f"model.layers.{i}.feed_forward.experts"
    count, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
    pairs = tuple(f"{name}.{e}.{w}.weight" for e in range(count) for w in ("w1", "w3"))
    downs = tuple(f"{name}.{e}.w2.weight" for e in range(count))
    gate_up = GroupWeight(f"{name}.gate_up_proj", count * 2 * width, hidden, pairs, 2 * width)
    down = GroupWeight(f"{name}.down_proj", count * hidden, width, downs, hidden)
    return TensorGroup(name, "experts", i, (gate_up, down))
