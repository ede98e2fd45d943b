"""The walk through the layers takes any reader of weights, any number of sequences, and goes on where one stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.reference.layers import Step, Streams, embed, final_norm, head_logits, walk
from lfm_onnx.reference.model import Reference
from lfm_onnx.reference.weights import ConvertedWeights, WeightReader, Weights

Array = npt.NDArray[np.float32]
MakeVariant = Callable[..., Path]
VARIANTS = ["dense", "dense_untied", "dense_conv_bias", "moe"]


@dataclass
class ArraysInMemory:
    """A reader that is no checkpoint; it notes what it was asked for."""

    config: LfmConfig
    arrays: dict[str, Array]
    asked: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ArraysInMemory:
        return cls(checkpoint.config, {name: checkpoint.float32(name) for name in checkpoint.names()})

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def float32(self, name: str, rows: slice | None = None) -> Array:
        self.asked.append(name)
        return self.arrays[name][rows or slice(None)].copy()

    def gather(self, name: str, indices: npt.NDArray[np.int64]) -> Array:
        self.asked.append(name)
        return self.arrays[name][indices]


def sequences(vocab_size: int) -> list[npt.NDArray[np.int64]]:
    random = np.random.default_rng(0)
    return [random.integers(0, vocab_size, length) for length in (9, 1, 20)]


def logits_of(reader: WeightReader, ids: list[npt.NDArray[np.int64]], steps: list[Step] | None = None) -> Array:
    weights = Weights(reader, ConvertedWeights(budget=0))
    streams = walk(reader.config, weights, embed(weights, ids), steps)
    return head_logits(reader.config, weights, final_norm(reader.config, weights, streams))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_walk_is_the_same_whoever_reads_the_weights(variant_checkpoint: MakeVariant, variant: str) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    reader = ArraysInMemory.of(checkpoint)
    ids = sequences(checkpoint.config.vocab_size)
    np.testing.assert_array_equal(logits_of(reader, ids), logits_of(checkpoint, ids))
    assert set(reader.asked) <= set(checkpoint.names())
    np.testing.assert_array_equal(Reference(reader).forward(ids[0])[0], Reference(checkpoint).forward(ids[0])[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_sequences_on_one_walk_do_not_see_each_other(variant_checkpoint: MakeVariant, variant: str) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    ids = sequences(checkpoint.config.vocab_size)
    alone = np.concatenate([Reference(checkpoint).forward(sequence)[0] for sequence in ids])
    np.testing.assert_allclose(logits_of(checkpoint, ids), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sequences_of_unequal_lengths_go_on_from_their_states(variant_checkpoint: MakeVariant, variant: str) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    ids = sequences(checkpoint.config.vocab_size)
    first = [Step.of(len(sequence)) for sequence in ids]
    logits_of(checkpoint, ids, first)
    more = [sequence[:4] for sequence in (ids[0], ids[2], ids[0])]
    then = [Step.of(len(piece), step.after) for piece, step in zip(more, first, strict=True)]
    found = logits_of(checkpoint, more, then)
    whole = [np.concatenate(pair) for pair in zip(ids, more, strict=True)]
    expected = [
        Reference(checkpoint).forward(sequence)[0][-len(piece) :] for sequence, piece in zip(whole, more, strict=True)
    ]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5, rtol=0)
    assert [step.after.length for step in then] == [len(sequence) for sequence in whole]


def test_an_expert_is_read_once_for_all_sequences_and_only_if_chosen(variant_checkpoint: MakeVariant) -> None:
    reader = ArraysInMemory.of(Checkpoint.open(variant_checkpoint("moe_top_1")))
    ids = [np.array([3]), np.array([3]), np.array([3])]
    logits_of(reader, ids)
    experts = [name for name in reader.asked if name.startswith("model.layers.2.feed_forward.experts.")]
    assert len(experts) == 3 == len(set(experts))


def test_each_layer_s_streams_can_be_looked_at(variant_checkpoint: MakeVariant) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe"))
    weights = Weights(checkpoint)
    seen: list[Streams] = []
    ids = sequences(checkpoint.config.vocab_size)
    last = walk(checkpoint.config, weights, embed(weights, ids), after_layer=seen.append)
    assert len(seen) == checkpoint.config.num_hidden_layers and seen[-1] is last
    assert [[len(x) for x in streams] for streams in seen] == [[9, 1, 20]] * len(seen)
