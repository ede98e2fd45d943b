"""Tiny random LFM2 checkpoints, one per config variant that is supported, and transformers' logits for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Lfm2Config, Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

_DENSE: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "block_auto_adjust_ff_dim": False,
    "max_position_embeddings": 512,
    "rope_theta": 1e6,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
_MOE: dict[str, Any] = {
    **{name: value for name, value in _DENSE.items() if name != "block_auto_adjust_ff_dim"},
    "model_type": "lfm2_moe",
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "moe_intermediate_size": 64,
    "num_dense_layers": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "rope_theta": 5e6,
}

# Fields of config.json by variant.
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": _DENSE,
    "dense_untied": {**_DENSE, "tie_word_embeddings": False},
    # Two thirds of 200 is 133, times 1.3 is 172, rounded up to 192.
    "dense_adjusted_ff": {
        **_DENSE,
        "intermediate_size": 200,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.3,
        "block_multiple_of": 64,
    },
    "dense_conv_bias": {**_DENSE, "conv_bias": True},
    "dense_conv_length_2": {**_DENSE, "conv_L_cache": 2},
    "dense_conv_length_4": {**_DENSE, "conv_L_cache": 4},
    "dense_conv_length_5": {**_DENSE, "conv_L_cache": 5},
    "dense_attention_after_first": {**_DENSE, "layer_types": ["conv"] + ["full_attention"] * 3},
    "dense_attention_only": {**_DENSE, "layer_types": ["full_attention"] * 4},
    "dense_conv_only": {**_DENSE, "layer_types": ["conv"] * 4},
    "dense_kv_heads_equal_heads": {**_DENSE, "num_key_value_heads": 4},
    "dense_one_kv_head": {**_DENSE, "num_key_value_heads": 1},
    "dense_rope_theta_1e4": {**_DENSE, "rope_theta": 1e4},
    "dense_own_head_dim": {**_DENSE, "head_dim": 32},
    "dense_fp16": _DENSE,
    "dense_fp32": _DENSE,
    "dense_sharded": _DENSE,
    "moe": _MOE,
    "moe_untied": {**_MOE, "tie_word_embeddings": False},
    "moe_no_expert_bias": {**_MOE, "use_expert_bias": False},
    "moe_unnormalized_top_k": {**_MOE, "norm_topk_prob": False},
    "moe_top_1": {**_MOE, "num_experts_per_tok": 1},
    "moe_top_4": {**_MOE, "num_experts_per_tok": 4},
    "moe_top_8_of_8": {**_MOE, "num_experts_per_tok": 8},
    "moe_top_8_of_16": {**_MOE, "num_experts_per_tok": 8, "num_experts": 16},
    "moe_scaled_routing": {**_MOE, "routed_scaling_factor": 2.5},
    "moe_conv_bias": {**_MOE, "conv_bias": True},
    "moe_conv_length_4": {**_MOE, "conv_L_cache": 4},
    "moe_no_dense_layers": {**_MOE, "num_dense_layers": 0},
    "moe_dense_layers_only": {**_MOE, "num_dense_layers": 4},
    "moe_fused": _MOE,
    "moe_fused_sharded_fp16": _MOE,
    "moe_fp32": _MOE,
    "moe_sharded": _MOE,
}

# How a variant's files are laid out where that is what it varies.
STORAGE: dict[str, dict[str, Any]] = {
    "dense_fp16": {"dtype": "float16"},
    "dense_fp32": {"dtype": "float32"},
    "dense_sharded": {"shards": 3},
    "moe_fused": {"layout": "fused"},
    "moe_fused_sharded_fp16": {"layout": "fused", "dtype": "float16", "shards": 2},
    "moe_fp32": {"dtype": "float32"},
    "moe_sharded": {"shards": 3},
}


def make_checkpoint(
    folder: Path,
    variant: str,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    shards: int | None = None,
    seed: int = 0,
) -> Path:
    """Write the variant as a checkpoint folder (no tokenizer) with seeded random weights; returns ``folder``.

    ``layout`` "per_expert" | "fused", ``dtype`` "bfloat16" | "float16" | "float32" and ``shards`` replace what the
    variant says of itself (else per_expert, bfloat16, one file). Router biases stay float32, as in published files.
    """
    stored_as = {"layout": "per_expert", "dtype": "bfloat16", "shards": 1, **STORAGE.get(variant, {})}
    given = {"layout": layout, "dtype": dtype, "shards": shards}
    stored_as.update({name: value for name, value in given.items() if value is not None})

    model = _random_model(VARIANTS[variant], seed)
    tensors = dict(_stored_tensors(model, stored_as["layout"], getattr(torch, stored_as["dtype"])))
    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = stored_as["dtype"]
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _save(folder, tensors, stored_as["shards"])
    return folder


def reference_logits(folder: Path, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """transformers' logits for one sequence of T ids, weights as stored, computed in float32: float32 [T, V]."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", local_files_only=True
    ).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(np.asarray(ids)[None], dtype=torch.int64), use_cache=False).logits
    return logits[0].numpy()


def _random_model(fields: dict[str, Any], seed: int) -> Any:
    torch.set_num_threads(1)
    config_class, model_class = {
        "lfm2": (Lfm2Config, Lfm2ForCausalLM),
        "lfm2_moe": (Lfm2MoeConfig, Lfm2MoeForCausalLM),
    }[fields["model_type"]]
    model = model_class(config_class(**{name: value for name, value in fields.items() if name != "model_type"}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.1 * noise)
            elif "conv.conv" in name:
                tensor.copy_(0.5 * noise)
            elif name.endswith("gate.weight"):
                # Wide router logits: rounding elsewhere does not change which experts are chosen.
                tensor.copy_(0.3 * noise)
            else:
                tensor.copy_(0.1 * noise)
        if fields.get("tie_word_embeddings", True):
            model.tie_weights()
    return model


def _stored_tensors(model: Any, layout: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor as a checkpoint file of that layout holds them."""
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        tensor = tensor.to(torch.float32 if name.endswith("expert_bias") else dtype)
        prefix = name.rpartition(".")[0]
        if layout == "per_expert" and name.endswith("experts.gate_up_proj"):
            for e, gate_up in enumerate(tensor):
                w1, w3 = gate_up.chunk(2)
                yield f"{prefix}.{e}.w1.weight", w1.clone()
                yield f"{prefix}.{e}.w3.weight", w3.clone()
        elif layout == "per_expert" and name.endswith("experts.down_proj"):
            for e, w2 in enumerate(tensor):
                yield f"{prefix}.{e}.w2.weight", w2.clone()
        else:
            yield name, tensor.clone()


def _save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = names[k::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
