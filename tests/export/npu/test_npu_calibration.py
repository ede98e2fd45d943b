"""Calibration and writing of NPU exports: what the experts' own pass sees is what the graphs would see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.export.npu import MoeForm, NpuOptions, NpuWeights, export_npu
from lfm_onnx.export.npu.calibration import calibrate
from lfm_onnx.export.npu.float_runner import FloatPart, Ranges
from lfm_onnx.export.npu.ordered_work import in_order
from lfm_onnx.export.npu.part_graph import PartShape
from lfm_onnx.reference.model import Reference

IDS = np.random.default_rng(0).integers(0, 96, 24)


def ranges_of_whole_graphs(
    checkpoint: Checkpoint, decode: MoeForm, prefill: MoeForm, *, chunks: bool
) -> dict[str, tuple[float, float]]:
    """Of all layers as they are exported, no expert left out: by chunks of 8 tokens, or token by token."""
    seen = Ranges()
    x = checkpoint.float32("model.embed_tokens.weight")[IDS]
    step = 8 if chunks else 1
    for layer in range(checkpoint.config.num_hidden_layers):
        shape = PartShape(layer, layer + 1, False, len(x))
        part = FloatPart(checkpoint, shape, 8, decode=decode, prefill=prefill, ranges=seen)
        state = part.new_state()
        pieces = [part.feed(x[at : at + step], state, prefill=chunks) for at in range(0, len(x), step)]
        x = np.concatenate([piece["hidden_states_next"] for piece in pieces])
    return seen.by_tensor


def differences(
    found: dict[str, tuple[float, float]], wanted: dict[str, tuple[float, float]], scope: str
) -> dict[str, float]:
    """Largest difference of the ranges within a feed-forward, relative to the range, by name."""
    return {
        name: float(np.abs(np.subtract(found[name], bounds)).max() / (np.ptp(bounds) or 1))
        for name, bounds in wanted.items()
        if f".feed_forward.{scope}" in name and name in found
    }


@pytest.mark.parametrize("form", [MoeForm.GATHERED, MoeForm.PACKED])
@pytest.mark.parametrize("variant", ["moe", "moe_scaled_routing", "moe_unnormalized_top_k", "moe_no_expert_bias"])
def test_decode_graphs_have_the_ranges_of_the_experts_that_tokens_choose(
    variant: str, form: MoeForm, variant_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    found = calibrate(checkpoint, [IDS], form)
    wanted = ranges_of_whole_graphs(checkpoint, form, MoeForm.WIDE, chunks=False)
    compared = differences(found, wanted, "gathered.")
    assert {name.rpartition("gathered.")[2] for name in compared} >= {"silu", "gated", "weighted", "total"}
    assert len(compared) > 16 and max(compared.values()) < 1e-4, compared


@pytest.mark.parametrize("prefill, scope", [(MoeForm.WIDE, "wide."), (MoeForm.PACKED, "gathered.expert")])
def test_where_every_token_goes_to_every_expert_prefill_has_the_same_ranges(
    prefill: MoeForm, scope: str, variant_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe_top_8_of_8"))
    found = calibrate(checkpoint, [IDS], MoeForm.PACKED, prefill)
    wanted = ranges_of_whole_graphs(checkpoint, MoeForm.PACKED, prefill, chunks=True)
    compared = differences(found, wanted, scope)
    if prefill is MoeForm.WIDE:
        assert len(compared) > 5 and max(compared.values()) < 1e-4, compared
        return
    # In turn, all experts have one range: that of all of them together.
    for name, bounds in wanted.items():
        if scope in name and name in found:
            assert found[name][0] <= bounds[0] + 1e-4 and found[name][1] >= bounds[1] - 1e-4, name


def test_what_no_token_chooses_does_not_widen_the_ranges(variant_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe_top_1"))
    found = calibrate(checkpoint, [IDS], MoeForm.GATHERED)
    whole = ranges_of_whole_graphs(checkpoint, MoeForm.GATHERED, MoeForm.WIDE, chunks=True)
    name = next(name for name in whole if name.endswith("wide.gated"))
    assert np.ptp(found[name]) < np.ptp(whole[name])


def test_the_stream_behind_the_experts_is_the_references(variant_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe_scaled_routing"))
    found = calibrate(checkpoint, [IDS], MoeForm.GATHERED)
    hidden: list[np.ndarray] = []
    logits, _ = Reference(checkpoint).forward(IDS, hidden=hidden)
    for layer in range(checkpoint.config.num_hidden_layers):
        wanted = (hidden[layer + 1].min(), hidden[layer + 1].max())
        np.testing.assert_allclose(found[f"hidden_states.{layer}"], wanted, rtol=1e-4)
    np.testing.assert_allclose(found["logits"], (logits.min(), logits.max()), rtol=1e-4)


@pytest.mark.parametrize("weights", [NpuWeights.INT8, NpuWeights.INT4])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    weights: NpuWeights, variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe"))
    for threads in (1, 3):
        options = NpuOptions(
            weights=weights,
            chunk=16,
            context_lengths=(64,),
            calibration=[IDS, IDS[:9]],
            threads=threads,
            tokenizer=False,
        )
        export_npu(checkpoint, tmp_path / str(threads), options)
    for path in sorted((tmp_path / "1").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "3" / path.relative_to(tmp_path / "1")).read_bytes(), path.name


def test_results_come_in_order_and_a_failure_ends_the_work() -> None:
    from concurrent.futures import ThreadPoolExecutor

    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 5:
            raise ValueError("five")
        return item * item

    with ThreadPoolExecutor(3) as pool:
        assert list(in_order(pool, lambda item: item * item, range(9))) == [(item, item * item) for item in range(9)]
        taken = []
        with pytest.raises(ValueError, match="five"):
            for item, _ in in_order(pool, work, range(1000), ahead=3):
                taken.append(item)
    assert taken == [0, 1, 2, 3, 4] and max(begun) < 12
