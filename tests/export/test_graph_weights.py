"""The table of graph weights says of every model what its graph declares and its checkpoint holds."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import pytest
from graph_weights import block_weights
from lfm_onnx.artifact.formats import BlockFormat
from lfm_onnx.artifact.graph_weights import (
    SCALES,
    ZERO_POINTS,
    Layout,
    TensorKind,
    current_name,
    tensor_kind,
    weights_by_source,
)
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.checkpoint.expected_tensors import expected_tensors, parameter_count
from lfm_onnx.export import OpsProfile
from lfm_onnx.export.decoder import GraphOptions, declare_model, graph_weights, model_weights
from lfm_onnx.export.weight_parameters import WeightFormats
from lfm_onnx.quantize.tensor_groups import same_format, tensor_groups
from model_variants import VARIANTS

CONFIGS = {name: LfmConfig.from_dict(fields) for name, fields in VARIANTS.items()}
variants = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
blocks_or_floats = pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "floats"])


def options_of(config: LfmConfig, ops_profile: OpsProfile, *, blocks: bool) -> GraphOptions:
    groups = tensor_groups(block_weights(config).values())
    formats = WeightFormats(blocks=same_format(groups, BlockFormat(4, symmetric=False))) if blocks else WeightFormats()
    return GraphOptions(ops_profile, formats, config.max_position_embeddings)


@variants
@blocks_or_floats
@pytest.mark.parametrize("ops_profile", OpsProfile)
def test_the_table_has_the_graph_s_initializers(config: LfmConfig, ops_profile: OpsProfile, blocks: bool) -> None:
    options = options_of(config, ops_profile, blocks=blocks)
    model = declare_model(config, options)
    values = {value.name: value for value in model.graph.initializers.values() if value.const_value is None}
    table = graph_weights(config, options)
    parts = {weight.name + part for weight in table if blocks and weight.group for part in (SCALES, ZERO_POINTS)}
    assert {weight.name for weight in table} | parts == set(values)
    assert len({weight.name for weight in table}) == len(table)
    for weight in table:
        if blocks and weight.group:
            shape = shape_of(values[weight.name + SCALES])
            assert shape[:-1] == weight.shape[:-1] and shape[-1] == math.ceil(weight.columns / 32)
        else:
            assert shape_of(values[weight.name]) == weight.shape


def shape_of(value: ir.Value) -> tuple[Any, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())


@variants
@blocks_or_floats
def test_every_tensor_of_the_checkpoint_is_in_one_weight(config: LfmConfig, blocks: bool) -> None:
    shapes = dict(expected_tensors(config))
    table = model_weights(config, blocks=blocks)
    sources = [source for weight in table for source in weight.sources]
    assert len(sources) == len(set(sources)) and set(sources) == set(shapes)
    for weight in table:
        assert weight.rows * weight.columns == sum(math.prod(shapes[source]) for source in weight.sources) or (
            weight.layout is Layout.ZEROS and not weight.sources
        )
        assert tuple(source for _, own in weight.sources_by_expert() for source in own) == weight.sources
    assert parameter_count(config) == sum(math.prod(shape) for shape in shapes.values())


@variants
def test_tensors_with_one_input_are_in_one_weight_whatever_the_form(config: LfmConfig) -> None:
    """A float graph's projections q, k and v see what the one matrix of a graph with blocks sees."""
    by_source = weights_by_source(model_weights(config, blocks=True))
    for weight in model_weights(config, blocks=False):
        assert len({by_source[source].name for source in weight.sources}) <= 1
        assert all(by_source[source].kind is weight.kind for source in weight.sources)
        assert all(by_source[source].layer == weight.layer for source in weight.sources)


@variants
def test_weights_of_a_group_are_of_one_kind_and_layer(config: LfmConfig) -> None:
    groups = tensor_groups(model_weights(config, blocks=True))
    for group in groups:
        assert {(weight.kind, weight.layer) for weight in group.weights} == {(group.kind, group.layer)}
    layers = [group.layer for group in groups if group.layer is not None]
    assert layers == sorted(layers)
    assert groups[0].name == "model.embed_tokens"
    assert (groups[-1].name == "lm_head") == (not config.tie_word_embeddings)


def test_all_experts_see_what_the_router_sees_and_each_its_own_second_input() -> None:
    weights = block_weights(CONFIGS["moe"])
    block = "model.layers.2.feed_forward."
    gate_up, down = weights[block + "experts.gate_up"], weights[block + "experts.down_proj"]
    assert gate_up.common_input == block + "gate.weight" and down.common_input is None
    assert gate_up.sources_of(3) == (f"{block}experts.3.w1.weight", f"{block}experts.3.w3.weight")
    assert down.sources_of(3) == (f"{block}experts.3.w2.weight",)
    assert [gate_up.expert_of_row(row) for row in (0, 127, 128)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.11.feed_forward.experts.gate_up_proj", TensorKind.EXPERTS),
        ("model.layers.11.feed_forward.experts.gate_up_scales", TensorKind.EXPERTS),
        ("model.layers.0.self_attn.q_layernorm.weight", TensorKind.NORM),
        ("model.layers.0.conv.in_proj.bias", TensorKind.BIAS),
        ("lm_head.weight_zero_points", TensorKind.LM_HEAD),
        ("rotary.inverse_frequencies", TensorKind.ROTARY),
        ("model.layers.0.norm_constant", None),
        ("val_17", None),
    ],
)
def test_a_name_tells_the_kind(name: str, kind: TensorKind | None) -> None:
    assert tensor_kind(name) is kind


def test_names_of_version_0_1_0_are_those_of_today() -> None:
    layer = "model.layers.3.feed_forward.experts."
    assert current_name(layer + "gate_up_proj") == layer + "gate_up"
    assert current_name(layer + "down_proj") == layer + "down_proj"
    assert current_name("model.embed_tokens.weight") == "model.embed_tokens.weight"
