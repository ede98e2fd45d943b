"""The table of chips, and the projection of tokens per second from it."""

from __future__ import annotations

import dataclasses
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lfm_onnx.errors import InputError
from lfm_onnx.hardware.chips import CHIPS, chip, chips
from lfm_onnx.mobile_bridge.projection import (
    PUBLISHED,
    WEIGHT_BITS,
    assumptions,
    part_costs,
    project,
    projections,
    speed_of,
    stored_bytes,
    touched_bytes,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from npu_projection import published_config

MOE = published_config("LFM2.5-8B-A1B")
DENSE = published_config("LFM2-1.2B")


def test_chips_are_found_by_any_spelling_and_listed_once() -> None:
    assert chip("SM8750").provider_options == {"soc_model": "69", "htp_arch": "79"}
    assert chip("X_Elite") is chip("sc8380xp")
    assert [item.name for item in chips("sm8750, SM8650,sm8750")] == ["sm8750", "sm8650"]
    with pytest.raises(InputError, match="unknown chip 'sm1': expected one of sm8450"):
        chip("sm1")
    with pytest.raises(InputError, match="no chip named"):
        chips(" , ")
    assert len({item.soc_model for item in CHIPS}) == len(CHIPS)


@pytest.mark.parametrize("figure", PUBLISHED, ids=lambda figure: f"{figure.model} on {figure.chip}")
def test_published_rates_are_met_within_half(figure: Any) -> None:
    where, speed = chip(figure.chip), speed_of(chip(figure.chip))
    share = speed.npu_bandwidth_share if figure.plan == "npu" else speed.cpu_bandwidth_share
    assert share * where.memory_bandwidth / figure.weight_bytes == pytest.approx(figure.tokens_per_s, rel=0.5)
    if figure.first_chunk_s:
        assert 2 * 128 * figure.parameters / speed.npu_operations == pytest.approx(figure.first_chunk_s, rel=0.3)


def test_a_token_of_the_8b_model_reads_a_fifth_of_its_weights() -> None:
    layers = [*range(MOE.num_hidden_layers), None]
    read = sum(touched_bytes(MOE, 4.5, layer) for layer in layers)
    stored = sum(stored_bytes(MOE, 4.5, layer) for layer in layers)
    assert read == pytest.approx(0.947e9, rel=0.01)  # 1.68 G weights of 4.5 bits
    assert stored == pytest.approx(8.47e9 * 4.5 / 8, rel=0.01)
    dense = sum(touched_bytes(DENSE, 8.0, layer) for layer in [*range(16), None])
    assert dense == sum(stored_bytes(DENSE, 8.0, layer) for layer in [*range(16), None])


def test_parts_cover_all_layers_in_order_and_the_head_is_in_the_last() -> None:
    parts = part_costs(MOE, "int4", 512, budget=1e9)
    assert len(parts) > 4 and parts[0].layers[0] == 0 and parts[-1].layers[1] == 24
    assert all(before.layers[1] == after.layers[0] for before, after in pairwise(parts))
    assert [part.head for part in parts] == [False] * (len(parts) - 1) + [True]
    whole = part_costs(MOE, "int4", 512, budget=1e12)
    assert len(whole) == 1
    assert whole[0].bytes == pytest.approx(sum(part.bytes for part in parts))


def test_more_bandwidth_is_faster_and_more_context_bits_or_parts_are_slower() -> None:
    base = project(DENSE, chip("sm8750"), "npu")
    faster = dataclasses.replace(chip("sm8750"), memory_bandwidth=2 * chip("sm8750").memory_bandwidth)
    assert project(DENSE, faster, "npu").decode_tokens_per_s > 1.8 * base.decode_tokens_per_s
    assert project(DENSE, chip("sm8750"), "npu", context=8192).decode_tokens_per_s < base.decode_tokens_per_s
    assert project(DENSE, chip("sm8750"), "npu", weights="int8").decode_tokens_per_s < base.decode_tokens_per_s
    assert WEIGHT_BITS["int8"] > WEIGHT_BITS["int4"]


def test_hybrid_decodes_as_the_cpu_and_prefills_as_the_npu() -> None:
    for item in CHIPS:
        npu, hybrid, cpu = (project(MOE, item, plan) for plan in ("npu", "hybrid", "cpu"))
        assert hybrid.decode_tokens_per_s == cpu.decode_tokens_per_s
        assert hybrid.prefill_tokens_per_s == npu.prefill_tokens_per_s


def test_every_figure_is_labelled_as_a_projection_and_comes_with_its_assumptions() -> None:
    found = projections(MOE)
    assert len(found) == 3 * len(CHIPS)
    assert {item.to_dict()["kind"] for item in found} == {"projection"}
    assert "Nothing was measured on a chip." in assumptions()[0]
