"""What a checkpoint's config.json says of the model: every value checked, what cannot be exported refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..strict_json import JsonObject, shown

CONFIG_NAME = "config.json"
MODEL_TYPES = ("lfm2", "lfm2_moe")
LAYER_KINDS = ("conv", "full_attention")
TIE_FIELDS = ("tie_word_embeddings", "tie_embedding")
"""Fields that say whether the head is the embedding table; the second goes before the first."""

_MAX_CONFIG_BYTES = 16 << 20
_MAX_LAYERS = 1024
_MAX_WIDTH = 1 << 20
_MAX_VOCABULARY = 1 << 24
_MAX_POSITIONS = 1 << 30

# Fields of related architectures: field, the values under which it changes nothing, what any other would ask for.
_UNSUPPORTED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("quantization_config", (), "quantized checkpoints are not supported: take the bf16, fp16 or fp32 one"),
    ("hidden_act", ("silu", "swish"), "the feed-forward's activation is silu"),
    ("block_use_swiglu", (True,), "the feed-forward is SwiGLU"),
    ("use_pos_enc", (True,), "attention uses rotary positions"),
    ("attention_bias", (False,), "attention projections have no bias"),
    ("mlp_bias", (False,), "feed-forward projections have no bias"),
    ("sliding_window", (False, 0), "attention is over the full context"),
    ("use_sliding_window", (False,), "attention is over the full context"),
    ("attention_chunk_size", (False, 0), "attention is over the full context"),
    ("partial_rotary_factor", (1,), "rotary positions cover the whole head"),
    ("attn_logit_softcapping", (), "attention scores are not capped"),
    ("final_logit_softcapping", (), "logits are not capped"),
    ("scoring_func", ("sigmoid",), "the router's scores are sigmoids"),
    ("n_group", (1,), "experts are not grouped"),
    ("topk_group", (1,), "experts are not grouped"),
    ("n_shared_experts", (0,), "there are no shared experts"),
    ("is_encoder_decoder", (False,), "the model is a decoder"),
)


@dataclass(frozen=True)
class LfmConfig:
    """An LFM2 / LFM2.5 model's sizes and switches, after the adjustments that its config.json asks for.

    Widths and counts are in elements. ``ff_dim`` is the width of a dense feed-forward as built. For a dense model
    ``num_dense_layers`` equals ``num_hidden_layers`` and the expert fields are 0, False and 1.0.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[str, ...]
    conv_L_cache: int
    conv_bias: bool
    norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    ff_dim: int
    tie_word_embeddings: bool
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_dense_layers: int
    use_expert_bias: bool
    norm_topk_prob: bool
    routed_scaling_factor: float
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @property
    def is_moe(self) -> bool:
        """Whether some layers' feed-forward is a mixture of experts (LFM2-MoE)."""
        return self.model_type == "lfm2_moe"

    @property
    def q_dim(self) -> int:
        """Width of all query heads together: equals hidden_size unless config.json gives its own head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are short convolutions, ascending."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "conv")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers with attention, ascending."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the layer of that index has experts: in an MoE model all but the first ``num_dense_layers``."""
        return self.is_moe and layer >= self.num_dense_layers

    @classmethod
    def load(cls, folder: str | Path) -> LfmConfig:
        """Read ``folder/config.json``; ConfigError if it is missing, malformed or asks for what is not supported."""
        path = Path(folder) / CONFIG_NAME
        return cls.from_dict(read_config_file(path), file=str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, file: str = CONFIG_NAME) -> LfmConfig:
        """Check a parsed config.json and apply transformers' defaults.

        ConfigError names ``file``, the field, its value and what is allowed.
        """
        fields = JsonObject(data, file, ConfigError)
        model_type = _model_type(fields)
        _refuse_unsupported(fields)
        moe = model_type == "lfm2_moe"
        layers = fields.integer("num_hidden_layers", 1, _MAX_LAYERS)
        hidden = fields.integer("hidden_size", 1, _MAX_WIDTH)
        vocabulary = fields.integer("vocab_size", 1, _MAX_VOCABULARY)
        heads, kv_heads, head_dim = _heads(fields, hidden)
        experts = fields.integer("num_experts", 1, 4096) if moe else 0
        return cls(
            model_type=model_type,
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            layer_types=_layer_types(fields, layers),
            conv_L_cache=fields.integer("conv_L_cache", 2, 256, 3),
            conv_bias=fields.flag("conv_bias", False),
            norm_eps=fields.number("norm_eps", 1e-30, 1.0, 1e-5),
            rope_theta=_rope_theta(fields),
            max_position_embeddings=fields.integer("max_position_embeddings", 1, _MAX_POSITIONS, 128_000),
            ff_dim=fields.integer("intermediate_size", 1, _MAX_WIDTH) if moe else _dense_ff_dim(fields),
            tie_word_embeddings=fields.flag("tie_embedding", fields.flag("tie_word_embeddings", True)),
            num_experts=experts,
            num_experts_per_tok=_top_k(fields, experts) if moe else 0,
            moe_intermediate_size=fields.integer("moe_intermediate_size", 1, _MAX_WIDTH) if moe else 0,
            num_dense_layers=_dense_layers(fields, layers) if moe else layers,
            use_expert_bias=moe and fields.flag("use_expert_bias", True),
            norm_topk_prob=moe and fields.flag("norm_topk_prob", True),
            routed_scaling_factor=fields.number("routed_scaling_factor", 1e-6, 1e6, 1.0) if moe else 1.0,
            bos_token_id=_token_id(fields, "bos_token_id", vocabulary),
            eos_token_ids=_eos_token_ids(fields, vocabulary),
            pad_token_id=_token_id(fields, "pad_token_id", vocabulary),
        )


def read_config_file(path: Path) -> dict[str, Any]:
    """The JSON object in a config file, unchecked but for its form; ConfigError names the file and what is wrong."""
    if not path.exists():
        raise ConfigError(f"{path}: not found; a checkpoint folder holds {path.name} beside its weights")
    return dict(JsonObject.read(path, ConfigError, most_bytes=_MAX_CONFIG_BYTES).data)


def _model_type(fields: JsonObject) -> str:
    value = fields.data.get("model_type")
    if not isinstance(value, str) or value not in MODEL_TYPES:
        allowed = f"one of {', '.join(MODEL_TYPES)} (text models of the LFM2 family)"
        if isinstance(fields.data.get("text_config"), dict):
            allowed += "; this one has a text model among others (text_config): save its language model alone"
        raise fields.refuse("model_type", allowed)
    return value


def _refuse_unsupported(fields: JsonObject) -> None:
    for name, harmless, reason in _UNSUPPORTED:
        value = fields.data.get(name)
        if value is None or value in harmless:
            continue
        allowed = " or ".join(["absent", *(shown(value) for value in harmless)])
        raise fields.refuse(name, f"{allowed}: {reason}")


def _heads(fields: JsonObject, hidden: int) -> tuple[int, int, int]:
    heads = fields.integer("num_attention_heads", 1, _MAX_WIDTH)
    kv_heads = fields.integer("num_key_value_heads", 1, _MAX_WIDTH)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    if fields.data.get("head_dim") is not None:
        head_dim = fields.integer("head_dim", 2, 65536)
        origin = "head_dim"
    elif hidden % heads:
        raise fields.refuse("num_attention_heads", f"a divisor of hidden_size, which is {hidden}")
    else:
        head_dim = hidden // heads
        origin = "num_attention_heads"
    if head_dim % 2:
        raise fields.refuse(origin, f"such that the head dimension, now {head_dim}, is even (rotary positions)")
    return heads, kv_heads, head_dim


def _layer_types(fields: JsonObject, layers: int) -> tuple[str, ...]:
    kinds = fields.data.get("layer_types")
    if kinds is None:
        return _layer_types_by_index(fields, layers)
    allowed = f"a list of {layers} entries (num_hidden_layers), each {' or '.join(LAYER_KINDS)}"
    if not isinstance(kinds, (list, tuple)):
        raise fields.refuse("layer_types", allowed)
    if len(kinds) != layers:
        raise ConfigError(f"{fields.where}: layer_types has {len(kinds)} entries, expected {allowed}")
    for i, kind in enumerate(kinds):
        if not isinstance(kind, str) or kind not in LAYER_KINDS:
            raise ConfigError(
                f"{fields.where}: layer_types[{i}] is {shown(kind)}, expected one of {', '.join(LAYER_KINDS)}"
            )
    return tuple(kinds)


def _layer_types_by_index(fields: JsonObject, layers: int) -> tuple[str, ...]:
    indices = fields.data.get("full_attn_idxs")
    if indices is None:
        raise fields.refuse("layer_types", f"a list of {layers} entries, each {' or '.join(LAYER_KINDS)}")
    if not isinstance(indices, (list, tuple)) or not all(type(i) is int and 0 <= i < layers for i in indices):
        raise fields.refuse("full_attn_idxs", f"a list of layer indices from 0 to {layers - 1}")
    attention = set(indices)
    return tuple("full_attention" if i in attention else "conv" for i in range(layers))


def _rope_theta(fields: JsonObject) -> float:
    """Base of the rotary frequencies, from wherever the config's generation keeps it."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.data.get(name)
        if rope is None or rope == {}:
            continue
        inner = fields.object(name)
        kind_field = "rope_type" if "rope_type" in rope else "type"
        if rope.get(kind_field, "default") != "default":
            raise inner.refuse(kind_field, '"default": scaled rotary positions are not supported')
        for key, value in rope.items():
            if isinstance(value, dict):
                raise inner.refuse(key, "a plain value: one set of rotary parameters for all layers")
        _refuse_unsupported(inner)
        if "rope_theta" in rope:
            return inner.number("rope_theta", 1.0, 1e15)
        break
    return fields.number("rope_theta" if "rope_theta" in fields.data else "theta", 1.0, 1e15, 1e6)


def _dense_ff_dim(fields: JsonObject) -> int:
    """Width of the dense feed-forward: two thirds of the configured one, times a factor, rounded up, if adjusted."""
    source = "block_ff_dim" if "block_ff_dim" in fields.data else "intermediate_size"
    width = fields.integer(source, 1, _MAX_WIDTH)
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if fields.data.get("block_ffn_dim_multiplier", 1.0) is not None:
        multiple = fields.integer("block_multiple_of", 1, _MAX_WIDTH, 256)
        width = int(fields.number("block_ffn_dim_multiplier", 1e-6, 1e6, 1.0) * width)
        width = -(-width // multiple) * multiple
    if not 1 <= width <= _MAX_WIDTH:
        raise fields.refuse(source, f"such that the adjusted width, now {width}, is from 1 to {_MAX_WIDTH}")
    return width


def _top_k(fields: JsonObject, experts: int) -> int:
    top_k = fields.integer("num_experts_per_tok", 1, 4096)
    if top_k > experts:
        raise fields.refuse("num_experts_per_tok", f"at most num_experts, which is {experts}")
    return top_k


def _dense_layers(fields: JsonObject, layers: int) -> int:
    dense = fields.integer("num_dense_layers", 0, _MAX_LAYERS)
    if dense > layers:
        raise fields.refuse("num_dense_layers", f"at most num_hidden_layers, which is {layers}")
    return dense


def _token_id(fields: JsonObject, name: str, vocabulary: int) -> int | None:
    return None if fields.data.get(name) is None else fields.integer(name, 0, vocabulary - 1)


def _eos_token_ids(fields: JsonObject, vocabulary: int) -> tuple[int, ...]:
    value = fields.data.get("eos_token_id")
    if not isinstance(value, (list, tuple)):
        single = _token_id(fields, "eos_token_id", vocabulary)
        return () if single is None else (single,)
    if not all(type(i) is int and 0 <= i < vocabulary for i in value):
        raise fields.refuse("eos_token_id", f"null, a token id or a list of token ids from 0 to {vocabulary - 1}")
    return tuple(value)
