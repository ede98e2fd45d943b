"""What each weight of the static graphs is multiplied by on the calibration text: what rounding errors are fed back by.

The graphs name and lay out weights in their own way (experts side by side in the wide form); here stands which tensor
of the CPU graphs, whose inputs ``quantize`` records, has the same input.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt

from ...artifact.method import Method
from ...checkpoint.checkpoint import Checkpoint
from ...quantize.hessian import HessianFactor
from ...quantize.methods import Quantizer

_WEIGHT = re.compile(r"layers\.(\d+)\.(.+)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")

_SAME_INPUT = {
    "conv.in_proj.weight": "conv.in_proj.weight",
    "conv.out_proj.weight": "conv.out_proj.weight",
    "self_attn.q_proj.weight": "self_attn.qkv_proj.weight",
    "self_attn.k_proj.weight": "self_attn.qkv_proj.weight",
    "self_attn.v_proj.weight": "self_attn.qkv_proj.weight",
    "self_attn.out_proj.weight": "self_attn.out_proj.weight",
    "feed_forward.w1.weight": "feed_forward.gate_up.weight",
    "feed_forward.w3.weight": "feed_forward.gate_up.weight",
    "feed_forward.w2.weight": "feed_forward.down.weight",
}
_EXPERTS = re.compile(r"feed_forward\.(wide|gathered)\.w([123])")


@dataclass(frozen=True)
class Share:
    """Rows (outputs) and columns (inputs) of a matrix [N, K] whose rounding errors add up: those of one expert.

    expert: None where the matrix is that of no expert.
    """

    rows: slice
    columns: slice
    expert: int | None = None


class WeightInputs:
    """Second moments of the weights' inputs on ``sequences`` of token ids, factored. Safe to call from several threads.

    Nothing is computed before it is asked for; then the reference goes through the layers, forwards only: weights are
    best asked for layer by layer.
    """

    def __init__(
        self, checkpoint: Checkpoint, sequences: Sequence[npt.ArrayLike], *, threads: int | None = None
    ) -> None:
        self._config = checkpoint.config
        self._quantizer = Quantizer(Method.GPTQ, checkpoint, sequences, threads=threads)
        self._lock = threading.Lock()
        self._factors: dict[tuple[str, int | None], HessianFactor | None] = {}

    def shares(self, name: str, shape: tuple[int, int]) -> list[Share]:
        """The parts of the LINEAR weight ``name`` of ``shape`` [K, N] that are rounded on their own."""
        columns, rows = shape
        found = re.fullmatch(r".*feed_forward\.wide\.w([123])", name)
        if found is None:
            return [Share(slice(0, rows), slice(0, columns))]
        width = self._config.moe_intermediate_size
        parts = [slice(e * width, (e + 1) * width) for e in range(self._config.num_experts)]
        if found[1] == "2":
            return [Share(slice(0, rows), part, expert) for expert, part in enumerate(parts)]
        return [Share(part, slice(0, columns), expert) for expert, part in enumerate(parts)]

    def factor(self, name: str, expert: int | None = None) -> HessianFactor | None:
        """For the weight ``name``, or its part that is one expert's; None where the calibration says too little.

        Kept as long as weights of the same layer and its neighbours are asked for: the graphs have the same experts in
        several forms.
        """
        tensor = _tensor(name)
        with self._lock:
            if (tensor, expert) in self._factors:
                return self._factors[tensor, expert]
        made = self._quantizer.factor(tensor, expert)
        with self._lock:
            layer = self._layer(tensor)
            for other in [key for key in self._factors if abs(self._layer(key[0]) - layer) > 1]:
                del self._factors[other]
            self._factors[tensor, expert] = made
        return made

    def _layer(self, tensor: str) -> int:
        match = _LAYER.match(tensor)
        return self._config.num_hidden_layers if match is None else int(match[1])


def _tensor(name: str) -> str:
    """The tensor of the CPU graph that is multiplied by the same as ``name``."""
    match = _WEIGHT.fullmatch(name)
    if match is None:
        return name
    layer, rest = match.groups()
    if (experts := _EXPERTS.fullmatch(rest)) is not None:
        matrix = "down_proj" if experts[2] == "2" else "gate_up_proj"
        return f"model.layers.{layer}.feed_forward.experts.{matrix}"
    return f"model.layers.{layer}.{_SAME_INPUT[rest]}"
