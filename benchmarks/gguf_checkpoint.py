"""A checkpoint as a GGUF file for llama.cpp: weights in the dtype they are stored in, and no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.config import LfmConfig

# Canonical names inside a layer, and what they are called in a GGUF file.
_LAYER_TENSORS = {
    "operator_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "conv.conv.weight": "shortconv.conv.weight",
    "conv.in_proj.weight": "shortconv.in_proj.weight",
    "conv.out_proj.weight": "shortconv.out_proj.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.out_proj.weight": "attn_output.weight",
    "self_attn.q_layernorm.weight": "attn_q_norm.weight",
    "self_attn.k_layernorm.weight": "attn_k_norm.weight",
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
    "feed_forward.gate.weight": "ffn_gate_inp.weight",
    "feed_forward.expert_bias": "exp_probs_b.bias",
}
_EXPERT_TENSORS = {"w1": "ffn_gate_exps.weight", "w2": "ffn_down_exps.weight", "w3": "ffn_up_exps.weight"}
_MODEL_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.embedding_norm.weight": "token_embd_norm.weight",
    "lm_head.weight": "output.weight",
}
_STORED_TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
}


@dataclass(frozen=True)
class _Tensor:
    """A GGUF tensor made of checkpoint tensors: one, or an expert's each, stacked."""

    name: str
    sources: tuple[str, ...]
    stacked: bool

    def shape(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        # The kernel [H, 1, L] of a depthwise convolution is [H, L] in GGUF.
        shape = tuple(size for size in checkpoint.shape(self.sources[0]) if size != 1)
        return (len(self.sources), *shape) if self.stacked else shape

    def dtype(self, checkpoint: Checkpoint) -> str:
        """Matrices keep their dtype; what llama.cpp wants in float32 is small: vectors, kernels, the router."""
        is_matrix = len(checkpoint.shape(self.sources[0])) == 2 and "ffn_gate_inp" not in self.name
        return checkpoint.dtype(self.sources[0]) if is_matrix else "F32"


def write_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``checkpoint`` to ``path``, one tensor in memory at a time. Dense and MoE models without conv bias."""
    config = checkpoint.config
    if config.conv_bias:
        raise ValueError("llama.cpp has no bias in LFM2's short convolution")
    writer = gguf.GGUFWriter(path, "lfm2moe" if config.num_experts else "lfm2")
    _add_hyperparameters(writer, config)
    tensors = list(_tensors(config))
    for tensor in tensors:
        dtype = tensor.dtype(checkpoint)
        shape, itemsize = tensor.shape(checkpoint), 4 if dtype == "F32" else 2
        size = int(np.prod(shape)) * itemsize
        byte_shape = (*shape[:-1], shape[-1] * itemsize)
        writer.add_tensor_info(tensor.name, byte_shape, np.dtype(np.uint8), size, raw_dtype=_STORED_TYPES[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(_data(checkpoint, tensor))
    writer.close()


def touched_bytes_per_token(path: Path, config: LfmConfig) -> int:
    """Bytes of weights that decoding one token reads: the chosen experts, a table's row, everything else whole."""
    tensors = gguf.GGUFReader(path).tensors
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    total = 0
    for tensor in tensors:
        size = int(tensor.n_bytes)
        if "_exps" in tensor.name:
            size = size * config.num_experts_per_tok // config.num_experts
        elif tensor.name == "token_embd.weight" and not tied:
            size //= config.vocab_size
        total += size
    return total


def _add_hyperparameters(writer: gguf.GGUFWriter, config: LfmConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ff_dim)
    writer.add_head_count(config.num_attention_heads)
    kv_heads = config.num_key_value_heads
    writer.add_head_count_kv([kv_heads if kind == "full_attention" else 0 for kind in config.layer_types])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_leading_dense_block_count(config.num_dense_layers)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_tokenizer_model("none")


def _tensors(config: LfmConfig) -> Iterator[_Tensor]:
    from lfm_onnx.checkpoint.expected_tensors import expected_tensors

    for name, _ in expected_tensors(config):
        if name in _MODEL_TENSORS:
            yield _Tensor(_MODEL_TENSORS[name], (name,), stacked=False)
            continue
        layer, _, inner = name.removeprefix("model.layers.").partition(".")
        if not inner.startswith("feed_forward.experts."):
            yield _Tensor(f"blk.{layer}.{_LAYER_TENSORS[inner]}", (name,), stacked=False)
        elif ".experts.0." in name:
            kind = inner.split(".")[-2]
            experts = tuple(name.replace(".experts.0.", f".experts.{e}.") for e in range(config.num_experts))
            yield _Tensor(f"blk.{layer}.{_EXPERT_TENSORS[kind]}", experts, stacked=True)


def _data(checkpoint: Checkpoint, tensor: _Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype(checkpoint) == "F32":
        parts = [checkpoint.float32(source) for source in tensor.sources]
    else:
        parts = [checkpoint.raw(source) for source in tensor.sources]
    data = np.ascontiguousarray(np.stack(parts) if tensor.stacked else parts[0]).reshape(tensor.shape(checkpoint))
    return data.view(np.uint8)
