"""The sample model's configuration, and writing it the way hub checkpoints of LFM2.5-MoE are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_tokenizer import save_tokenizer

CONTEXT_LENGTH = 2048
VOCAB_SIZE = 1280
PAD_ID, BOS_ID, EOS_ID = 0, 1, 7
CONFIG: dict[str, Any] = {
    "architectures": ["Lfm2MoeForCausalLM"],
    "bos_token_id": BOS_ID,
    "conv_L_cache": 3,
    "conv_bias": False,
    "dtype": "bfloat16",
    "eos_token_id": EOS_ID,
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"],
    "max_position_embeddings": CONTEXT_LENGTH,
    "model_type": "lfm2_moe",
    "moe_intermediate_size": 64,
    "norm_eps": 1e-05,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_dense_layers": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "pad_token_id": PAD_ID,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_expert_bias": True,
    "vocab_size": VOCAB_SIZE,
}
MID_SIZE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "layer_types": ["conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"],
    "moe_intermediate_size": 256,
    "num_experts": 16,
    "num_hidden_layers": 8,
}
"""What the mid-size model has of its own: 21 M parameters, in matrices whose rows are multiples of 256 weights, as
llama.cpp's K-quants need them. It is trained to compare quantizers, and not shipped."""

GENERATION_CONFIG = {
    "bos_token_id": BOS_ID,
    "do_sample": False,
    "eos_token_id": EOS_ID,
    "max_new_tokens": 128,
    "pad_token_id": PAD_ID,
}


def sample_config(size: str) -> dict[str, Any]:
    """config.json of the sample model (size "tiny") or of its larger sibling (size "mid")."""
    return CONFIG if size == "tiny" else {**CONFIG, **MID_SIZE}


def model_config(config: dict[str, Any]) -> Any:
    """transformers' ``Lfm2MoeConfig`` of such a config.json."""
    from transformers import Lfm2MoeConfig

    return Lfm2MoeConfig(**{k: v for k, v in config.items() if k not in ("architectures", "dtype", "model_type")})


def hub_tensors(model: Any) -> dict[str, Any]:
    """The weights under hub names: bfloat16, experts one by one, ``expert_bias`` float32, tied head left out."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        prefix, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            for expert, fused in enumerate(tensor):
                w1, w3 = fused.chunk(2)
                tensors[f"{prefix}.{expert}.w1.weight"] = w1
                tensors[f"{prefix}.{expert}.w3.weight"] = w3
        elif leaf == "down_proj":
            for expert, w2 in enumerate(tensor):
                tensors[f"{prefix}.{expert}.w2.weight"] = w2
        elif name != "lm_head.weight":
            tensors[name] = tensor
    return {
        name: (tensor.float() if name.endswith("expert_bias") else tensor.to(torch.bfloat16)).contiguous().clone()
        for name, tensor in sorted(tensors.items())
    }


def save_checkpoint(model: Any, tokenizer: Any, config: dict[str, Any], folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files."""
    from safetensors.torch import save_file

    save_file(hub_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    for name, content in (("config.json", config), ("generation_config.json", GENERATION_CONFIG)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder, CONTEXT_LENGTH)
