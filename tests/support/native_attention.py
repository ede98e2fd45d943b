"""Calls of ai.liquid::GroupQueryAttention on random tensors, on the native kernel and on the function's body."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from lfm_onnx.export.ops import group_query_attention_function
from native_models import Array, activations, one_node_model, run_native

Feeds = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Call:
    """Sizes of one call: each row of the batch has had ``pasts[row]`` tokens and gets ``new`` more.

    room: columns that the cache has beyond those; None for a cache that grows, as long as the longest past.
    """

    pasts: tuple[int, ...]
    new: int
    heads: int = 8
    kv_heads: int = 2
    size: int = 64
    room: int | None = None
    attributes: dict[str, int | float] = field(default_factory=dict)

    def all_attributes(self) -> dict[str, int | float]:
        sizes = {"num_heads": self.heads, "kv_num_heads": self.kv_heads}
        return {**sizes, "do_rotary": 1, "scale": self.size**-0.5, **self.attributes}

    def feeds(self, seed: int = 0) -> Feeds:
        batch, longest = len(self.pasts), max(self.pasts)
        columns = longest if self.room is None else longest + self.new + self.room
        angles = np.arange(longest + self.new + 3)[:, None] * 100.0 ** -np.linspace(0, 1, self.size // 2)
        past = (batch, self.kv_heads, columns, self.size)
        return {
            "query": activations(seed, batch, self.new, self.heads * self.size),
            "key": activations(seed + 1, batch, self.new, self.kv_heads * self.size),
            "value": activations(seed + 2, batch, self.new, self.kv_heads * self.size),
            "past_key": activations(seed + 3, *past),
            "past_value": activations(seed + 4, *past),
            "seqlens_k": np.array(self.pasts, np.int32) + np.int32(self.new - 1),
            "total_sequence_length": np.array(longest + self.new, np.int32),
            "cos_cache": np.cos(angles).astype(np.float32),
            "sin_cache": np.sin(angles).astype(np.float32),
        }

    def run(self, feeds: Feeds, *, threads: int = 1, isa: str = "") -> list[Array]:
        """Output, present keys and present values of the kernel."""
        return run_native(
            "GroupQueryAttention", feeds, feeds, self.all_attributes(), outputs=3, threads=threads, isa=isa
        )

    def body(self, feeds: Feeds) -> list[Array]:
        """What the function's body gives. It takes several rows with several new tokens without a past alone."""
        rows = [slice(None)]
        if self.new > 1 and max(self.pasts) > 0:
            rows = [slice(b, b + 1) for b in range(len(self.pasts))]
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        function = group_query_attention_function()
        model = one_node_model("GroupQueryAttention", feeds, feeds, self.all_attributes(), 3, function)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        shared = ("total_sequence_length", "cos_cache", "sin_cache")
        parts = [
            session.run(None, {name: value if name in shared else value[row] for name, value in feeds.items()})
            for row in rows
        ]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]
