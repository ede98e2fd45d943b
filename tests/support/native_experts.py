"""A random mixture of experts: the tensors of SparseMoE, and its formula in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from native_models import Array, Format, Weight, gated, quantized_activations


class Experts:
    """A random mixture: its tensors, and the formula in float64."""

    def __init__(
        self, fmt: Format | np.dtype, experts: int, hidden: int, width: int, *, seed: int = 0, equal: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        self.fmt = fmt
        self.router = (rng.standard_normal((experts, hidden)) / hidden**0.5).astype(np.float32)
        self.bias = rng.standard_normal(experts).astype(np.float32) / 10
        if equal:
            self.router[:], self.bias[:] = self.router[0], self.bias[0]
        if isinstance(fmt, Format):
            self.gate_up = Weight(fmt, experts, 2 * width, hidden, seed=seed)
            self.down = Weight(fmt, experts, hidden, width, seed=seed + 1)
            self.values = self.gate_up.values, self.down.values
        else:
            gate_up = (rng.standard_normal((experts, 2 * width, hidden)) / hidden**0.5).astype(fmt)
            down = (rng.standard_normal((experts, hidden, width)) / width**0.5).astype(fmt)
            self.values = gate_up, down

    def tensors(self, x: Array) -> dict[str, npt.NDArray[np.generic] | None]:
        shared = {"x": x, "router_weight": self.router, "expert_bias": self.bias}
        if not isinstance(self.fmt, Format):
            return {**shared, "gate_up": self.values[0], "down": self.values[1]}
        quantized = {
            **shared,
            "gate_up": self.gate_up.data,
            "down": self.down.data,
            "gate_up_scales": self.gate_up.scales,
            "down_scales": self.down.scales,
        }
        if self.fmt.zero_points:
            quantized["gate_up_zero_points"] = self.gate_up.zero_points
            quantized["down_zero_points"] = self.down.zero_points
        return quantized

    def attributes(self, top_k: int, norm: int, activation_bits: int = 0) -> dict[str, int | float]:
        routing = {"top_k": top_k, "norm_topk_prob": norm, "routed_scaling_factor": 1.5}
        return {**routing, **(self.fmt.attributes(activation_bits) if isinstance(self.fmt, Format) else {})}

    def formula(self, x: Array, top_k: int, norm: int, activation_bits: int = 0) -> npt.NDArray[np.float64]:
        """y of x [N, hidden]; int8 activations enter each product rounded by block."""

        def product(values: npt.NDArray[np.floating], inputs: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
            if activation_bits == 8:
                inputs = quantized_activations(inputs.astype(np.float32), self.fmt.block_size)
            return values.astype(np.float64) @ inputs.astype(np.float64)

        scores = 1 / (1 + np.exp(-(x.astype(np.float64) @ self.router.T)))
        y = np.zeros(x.shape)
        for n, token in enumerate(x):
            chosen = np.argsort(-(scores[n].astype(np.float32) + self.bias), kind="stable")[:top_k]
            shares = scores[n, chosen] / (scores[n, chosen].sum() + 1e-6 if norm else 1)
            for expert, share in zip(chosen, shares, strict=True):
                hidden = gated(product(self.values[0][expert], token))
                y[n] += 1.5 * share * product(self.values[1][expert], hidden)
        return y
