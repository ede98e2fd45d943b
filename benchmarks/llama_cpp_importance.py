"""llama.cpp's importance matrix: what its own tool measures on a text, from this package's float32 reference.

Of every matrix within the layers: the mean square of each column of its input, of experts over the tokens they get.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.export.decoder import model_weights
from lfm_onnx.quantize.layer_inputs import LayerInputs

Float32 = npt.NDArray[np.float32]

# Matrices of our graph, and the GGUF tensors that have the same input.
_GGUF_TENSORS = {
    "conv.in_proj.weight": ("shortconv.in_proj",),
    "conv.out_proj.weight": ("shortconv.out_proj",),
    "self_attn.qkv_proj.weight": ("attn_q", "attn_k", "attn_v"),
    "self_attn.out_proj.weight": ("attn_output",),
    "feed_forward.gate_up.weight": ("ffn_gate", "ffn_up"),
    "feed_forward.down.weight": ("ffn_down",),
    "feed_forward.experts.gate_up": ("ffn_gate_exps", "ffn_up_exps"),
    "feed_forward.experts.down_proj": ("ffn_down_exps",),
}


def importance_matrix(checkpoint: Checkpoint, sequences: Sequence[npt.NDArray[np.int64]]) -> dict[str, Float32]:
    """By GGUF name; [K], of experts [experts * K]. An expert that the text never chooses has ones, as in the tool."""
    weights = model_weights(checkpoint.config, blocks=True)
    inputs = LayerInputs(checkpoint, weights, sequences)
    found: dict[str, Float32] = {}
    for weight in weights:
        if weight.group is None or weight.layer is None:
            continue
        if weight.experts:
            columns = [inputs.importance(weight, expert) for expert in range(weight.experts)]
            values = np.concatenate([one if one.any() else np.ones_like(one) for one in columns])
        else:
            values = inputs.importance(weight)
        inner = weight.name.removeprefix(f"model.layers.{weight.layer}.")
        found |= {f"blk.{weight.layer}.{name}.weight": values for name in _GGUF_TENSORS[inner]}
    return found
