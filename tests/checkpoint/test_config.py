"""config.json: what transformers reads is read alike, everything else is refused by field and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.errors import ConfigError
from model_variants import VARIANTS

DENSE, MOE = VARIANTS["dense"], VARIANTS["moe"]
REQUIRED_OF_MOE = [name for name in MOE if not name.endswith(("_token_id", "_embeddings", "_theta"))]
# The fields with which the first LFM2 checkpoints were published.
HUB_2025_DENSE = {
    "model_type": "lfm2",
    "block_auto_adjust_ff_dim": True,
    "block_dim": 1024,
    "block_ff_dim": 6656,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "block_norm_eps": 1e-5,
    "block_use_swiglu": True,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_dim": 1024,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 1024,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "num_attention_heads": 16,
    "num_heads": 16,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 1000000.0,
    "theta": 1000000.0,
    "tie_embedding": True,
    "torch_dtype": "bfloat16",
    "use_pos_enc": True,
    "vocab_size": 65536,
}


def _write(folder: Path, text: str | bytes) -> Path:
    (folder / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def _refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        LfmConfig.from_dict(fields)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400
    return message


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_by_transformers_and_as_given_read_alike(variant: str, variant_checkpoint: Any) -> None:
    config = LfmConfig.load(variant_checkpoint(variant))
    given = VARIANTS[variant]
    assert config == LfmConfig.from_dict(given)
    assert config.layer_types == tuple(given["layer_types"])
    assert config.rope_theta == given["rope_theta"]
    assert config.eos_token_ids == (7,) and config.bos_token_id == 1 and config.pad_token_id == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_models_that_transformers_builds_have_the_sizes_that_are_read(variant: str) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

    fields = {name: value for name, value in VARIANTS[variant].items() if name != "model_type"}
    ours = LfmConfig.from_dict(VARIANTS[variant])
    model: Any = Lfm2MoeForCausalLM(Lfm2MoeConfig(**fields)) if ours.is_moe else Lfm2ForCausalLM(Lfm2Config(**fields))
    for i, layer in enumerate(model.model.layers):
        assert ours.is_moe_layer(i) == hasattr(layer.feed_forward, "experts")
        if ours.is_moe_layer(i):
            assert layer.feed_forward.experts.down_proj.shape[0] == ours.num_experts
            assert layer.feed_forward.gate.top_k == ours.num_experts_per_tok
            assert layer.feed_forward.gate.norm_topk_prob == ours.norm_topk_prob
            assert layer.feed_forward.gate.routed_scaling_factor == ours.routed_scaling_factor
            assert hasattr(layer.feed_forward, "expert_bias") == ours.use_expert_bias
        else:
            assert layer.feed_forward.w1.out_features == ours.ff_dim
        if i in ours.attention_layers:
            assert layer.self_attn.head_dim == ours.head_dim
            assert layer.self_attn.k_proj.out_features == ours.kv_dim
        else:
            assert i in ours.conv_layers
            assert layer.conv.conv_kernel_size == ours.conv_L_cache
            assert (layer.conv.in_proj.bias is not None) == ours.conv_bias
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == ours.tie_word_embeddings


def test_the_spelling_of_the_first_published_checkpoints_is_read() -> None:
    config = LfmConfig.from_dict(HUB_2025_DENSE)
    assert config.attention_layers == (2, 5, 8, 10, 12, 14)
    assert config.ff_dim == 4608
    assert config.tie_word_embeddings and config.head_dim == 64 and config.rope_theta == 1e6
    assert config.num_dense_layers == 16 and not config.is_moe


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}},
        {"rope_parameters": {"rope_theta": 12345.0}, "rope_theta": 1.5},
        {"rope_scaling": {"type": "default", "rope_theta": 12345}, "rope_parameters": {"rope_theta": 1.5}},
        {"rope_scaling": None, "rope_theta": 12345.0},
        {"rope_theta": 12345, "rope_parameters": None},
        {"rope_theta": 12345, "rope_parameters": {"rope_type": "default"}},
    ],
)
def test_rope_theta_comes_from_where_transformers_takes_it(change: dict[str, Any]) -> None:
    from transformers import Lfm2Config

    fields = {**DENSE, **change}
    theirs: Any = Lfm2Config(**json.loads(json.dumps({k: v for k, v in fields.items() if k != "model_type"})))
    assert LfmConfig.from_dict(fields).rope_theta == theirs.rope_parameters["rope_theta"] == 12345.0


def test_absent_fields_take_the_defaults_of_transformers() -> None:
    from transformers import Lfm2MoeConfig

    fields = {name: MOE[name] for name in REQUIRED_OF_MOE}
    ours = LfmConfig.from_dict(fields)
    theirs: Any = Lfm2MoeConfig(**{name: value for name, value in fields.items() if name != "model_type"})
    for name, default in {
        "conv_L_cache": 3,
        "conv_bias": False,
        "norm_eps": 1e-5,
        "max_position_embeddings": 128_000,
        "tie_word_embeddings": True,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }.items():
        assert getattr(ours, name) == getattr(theirs, name) == default, name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.eos_token_ids == () and ours.bos_token_id is None


def test_several_end_tokens_are_all_kept() -> None:
    assert LfmConfig.from_dict({**DENSE, "eos_token_id": [7, 2]}).eos_token_ids == (7, 2)


@pytest.mark.parametrize("name", REQUIRED_OF_MOE)
def test_a_missing_field_is_named(name: str) -> None:
    message = _refusal({key: value for key, value in MOE.items() if key != name})
    assert f"{name} is missing, expected " in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, 'model_type is "llama", expected one of lfm2, lfm2_moe'),
        ({"model_type": "lfm2_vl"}, 'model_type is "lfm2_vl"'),
        ({"model_type": ["lfm2"]}, 'model_type is ["lfm2"]'),
        ({"layer_types": ["conv"] * 3}, "layer_types has 3 entries, expected a list of 4 entries"),
        ({"layer_types": ["conv", "conv", "mamba", "conv"]}, 'layer_types[2] is "mamba"'),
        ({"layer_types": ["conv", 3, "conv", "conv"]}, "layer_types[1] is 3"),
        ({"layer_types": "conv"}, 'layer_types is "conv"'),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, expected at most num_experts, which is 8"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        ({"num_attention_heads": 5, "num_key_value_heads": 1}, "num_attention_heads is 5, expected a divisor of hid"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of num_attention_heads"),
        ({"num_attention_heads": 64, "num_key_value_heads": 1}, "the head dimension, now 1, is even"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"num_dense_layers": 5}, "num_dense_layers is 5, expected at most num_hidden_layers, which is 4"),
        ({"num_dense_layers": -1}, "num_dense_layers is -1"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0, expected an integer"),
        ({"hidden_size": True}, "hidden_size is true"),
        ({"hidden_size": "64"}, 'hidden_size is "64"'),
        ({"hidden_size": None}, "hidden_size is null"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, expected an integer from 1 to "),
        ({"vocab_size": 10**5000}, "vocab_size is an integer of 16610 bits"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ({"norm_eps": float("inf")}, "norm_eps is Infinity"),
        ({"norm_eps": float("nan")}, "norm_eps is NaN"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"norm_eps": 10**400}, "norm_eps is an integer of 1329 bits"),
        ({"conv_L_cache": 1}, "conv_L_cache is 1, expected an integer from 2"),
        ({"conv_bias": 1}, "conv_bias is 1, expected true or false"),
        ({"tie_embedding": "yes"}, 'tie_embedding is "yes"'),
        ({"routed_scaling_factor": [1]}, "routed_scaling_factor is [1]"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 'rope_parameters.rope_type is "yarn"'),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling.type is "linear"'),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention is "),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor is 0.5"),
        ({"rope_parameters": [1]}, "rope_parameters is [1]"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized checkpoints are not supported"),
        ({"scoring_func": "softmax"}, 'scoring_func is "softmax"'),
        ({"n_shared_experts": 2}, "n_shared_experts is 2"),
        ({"eos_token_id": [7, 96]}, "eos_token_id is [7, 96]"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"bos_token_id": "1"}, 'bos_token_id is "1"'),
        ({"model_type": "llama\n" * 1000}, "model_type is "),
    ],
)
def test_unsupported_and_contradictory_values_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    assert said in _refusal({**MOE, **change})


def test_dense_contradictions_are_refused_by_name() -> None:
    by_index = {name: value for name, value in DENSE.items() if name != "layer_types"}
    assert "full_attn_idxs is [4]" in _refusal({**by_index, "full_attn_idxs": [4]})
    assert "layer_types is missing" in _refusal(by_index)
    adjusted = {**DENSE, "block_auto_adjust_ff_dim": True}
    assert "block_multiple_of is 0" in _refusal({**adjusted, "block_multiple_of": 0})
    assert "the adjusted width, now 0" in _refusal({**adjusted, "intermediate_size": 1})
    assert "block_ff_dim is 0" in _refusal({**DENSE, "block_ff_dim": 0})


def test_values_that_change_nothing_are_accepted() -> None:
    harmless = {"hidden_act": "silu", "sliding_window": None, "attention_bias": False, "quantization_config": None}
    assert LfmConfig.from_dict({**DENSE, **harmless, "head_dim": None}) == LfmConfig.from_dict(DENSE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "expected a JSON object, found []"),
        ('{"hidden_size": 64,', "not JSON"),
        ('{"hidden_size": 64, "hidden_size": 128}', 'key "hidden_size" appears twice'),
        ('{"a": {"b": 1, "b": 2}}', 'key "b" appears twice'),
        ('{"norm_eps": NaN}', "NaN is not a JSON number"),
        ('{"norm_eps": -Infinity}', "-Infinity is not a JSON number"),
        ("[" * 200_000, "nested too deeply"),
        ('{"hidden_size": ' + "9" * 10_000 + "}", "config.json"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"\xfe{}", "not UTF-8 at byte 0"),
    ],
)
def test_a_file_that_is_not_plain_json_is_refused(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        LfmConfig.load(_write(tmp_path, text))
    assert said in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_number_beyond_float64_is_refused_where_it_is_used(tmp_path: Path) -> None:
    text = json.dumps({**MOE, "norm_eps": 0}).replace('"norm_eps": 0', '"norm_eps": 1e400')
    with pytest.raises(ConfigError, match="norm_eps is Infinity, expected a number from"):
        LfmConfig.load(_write(tmp_path, text))


def test_a_missing_unreadable_or_huge_file_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        LfmConfig.load(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        LfmConfig.load(tmp_path)
    (tmp_path / "config.json").rmdir()
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="larger than 16 MB"):
        LfmConfig.load(tmp_path)


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 100)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["conv", "full_attention", "default", "lfm2", "lfm2_moe"])
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
_FIELDS = sorted({*MOE, *DENSE, *HUB_2025_DENSE, "head_dim", "rope_parameters", "rope_scaling", "sliding_window"})


@settings(max_examples=300, deadline=None)
@given(base=st.sampled_from([DENSE, MOE, HUB_2025_DENSE]), changes=st.dictionaries(st.sampled_from(_FIELDS), _VALUES))
def test_any_change_is_read_consistently_or_refused_in_one_line(base: dict[str, Any], changes: dict[str, Any]) -> None:
    try:
        config = LfmConfig.from_dict({**base, **changes})
    except ConfigError as error:
        assert str(error).isprintable()
        return
    assert len(config.layer_types) == config.num_hidden_layers
    assert config.num_attention_heads % config.num_key_value_heads == 0 and config.head_dim % 2 == 0
    assert set(config.conv_layers) | set(config.attention_layers) == set(range(config.num_hidden_layers))
    assert 0 <= config.num_dense_layers <= config.num_hidden_layers
    assert config.num_experts_per_tok <= config.num_experts
    assert all(token < config.vocab_size for token in config.eos_token_ids)
    assert config.ff_dim >= 1 and 0 < config.norm_eps <= 1 and config.rope_theta >= 1


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    valid = json.dumps(MOE).encode()
    at, length = data.draw(st.integers(0, len(valid))), data.draw(st.integers(0, 20))
    corrupt = valid[:at] + data.draw(st.binary(max_size=20)) + valid[at + length :]
    folder = tmp_path_factory.getbasetemp() / "any_config_bytes"
    folder.mkdir(exist_ok=True)
    try:
        config = LfmConfig.load(_write(folder, corrupt))
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert len(config.layer_types) == config.num_hidden_layers
