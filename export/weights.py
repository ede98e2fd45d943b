"""From checkpoint tensors to the graph's initializers: names, layouts and types, read piece by piece when written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..artifact.formats import BlockFormat
from ..checkpoint.checkpoint import Checkpoint
from ..errors import CheckpointError
from ..quantize.quantization import Quantization
from .block_weights import BlockWeight, Chunks
from .graph_context import rotary_cache
from .weight_parameters import SCALES, ZERO_POINTS

CHUNK_ELEMENTS = 4 << 20
"""Elements read, converted and written at a time: 16 MiB of float32."""


@dataclass(frozen=True)
class WeightTensor:
    """One initializer to write: ``chunks`` gives C-contiguous pieces of it in order, in its dtype.

    CheckpointError comes from there where a value of the checkpoint does not fit the type.
    """

    name: str
    kind: str
    """Tensor class in the manifest: embedding, lm_head, linear, expert, router, norm, conv or rotary."""
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[npt.NDArray[np.generic]]]
    blocks: BlockFormat | None = None
    """The format that the tensor is a part of."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def is_part(self) -> bool:
        """Whether this is not a weight itself but the scales or zero points of one."""
        return self.blocks is not None and self.name.endswith((SCALES, ZERO_POINTS))


def weight_tensors(
    model: ir.Model, checkpoint: Checkpoint, quantization: Quantization | None = None
) -> list[WeightTensor]:
    """A WeightTensor for each initializer of ``model`` that has no data yet, in the graph's order.

    quantization: what makes the blocks of those weights that have scales.
    """
    formats = quantization.format_of_weights() if quantization is not None else {}
    values = {value.name: value for value in model.graph.initializers.values() if value.const_value is None}
    parts: dict[str, tuple[Callable[[], Iterator[npt.NDArray[np.generic]]], BlockFormat]] = {}
    tensors = []
    for name, value in values.items():
        assert name is not None and value.shape is not None and value.dtype is not None
        shape = tuple(int(size) for size in value.shape.numpy())
        dtype = np.dtype(value.dtype.numpy())
        if quantization is not None and name + SCALES in values:
            fmt = formats[name]
            weight = BlockWeight(
                name, fmt, _source(name, shape, checkpoint), quantization.quantize, quantization.threads
            )
            made = {"": weight.codes, SCALES: weight.scales, ZERO_POINTS: weight.zero_points}
            parts |= {name + part: (chunks, fmt) for part, chunks in made.items()}
        if name in parts:
            tensors.append(WeightTensor(name, _kind(name), dtype, shape, *parts[name]))
        else:
            source = _source(name, shape, checkpoint)
            tensors.append(WeightTensor(name, _kind(name), dtype, shape, partial(_narrow_all, source, dtype, name)))
    return tensors


_KINDS = (
    (r"embed_tokens", "embedding"),
    (r"lm_head", "lm_head"),
    (r"rotary", "rotary"),
    (r"norm", "norm"),
    (r"\.conv\.conv\.", "conv"),
    (r"expert_bias|feed_forward\.gate\.", "router"),
    (r"\.experts\.", "expert"),
    (r"_proj\.bias$", "bias"),
)


def _kind(name: str) -> str:
    return next((kind for pattern, kind in _KINDS if re.search(pattern, name)), "linear")


def _source(name: str, shape: tuple[int, ...], checkpoint: Checkpoint) -> Chunks:
    if name in ("rotary.cos", "rotary.sin"):
        return lambda: _rotary_chunks(checkpoint, shape, sine=name.endswith("sin"))
    if name.endswith(".conv.conv.weight"):
        return lambda: iter([np.ascontiguousarray(checkpoint.float32(name)[:, 0, :].T)])
    if name.endswith("expert_bias") and not checkpoint.config.use_expert_bias:
        return lambda: iter([np.zeros(shape, np.float32)])
    if name.endswith("experts.gate_up_proj"):
        return lambda: _gate_up_chunks(checkpoint, name.removesuffix("gate_up_proj"))
    if name.endswith("experts.down_proj"):
        return lambda: _down_chunks(checkpoint, name.removesuffix("down_proj"))
    if name.endswith("feed_forward.gate_up.weight"):
        return lambda: _pair_chunks(checkpoint, name.removesuffix("gate_up.weight"))
    if name.endswith("feed_forward.down.weight"):
        return lambda: _row_chunks(checkpoint, name.removesuffix("down.weight") + "w2.weight")
    if name.endswith("self_attn.qkv_proj.weight"):
        names = [name.replace("qkv_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        return lambda: chain.from_iterable(_row_chunks(checkpoint, part) for part in names)
    return lambda: _row_chunks(checkpoint, name)


def _row_chunks(checkpoint: Checkpoint, name: str) -> Iterator[npt.NDArray[np.float32]]:
    shape = checkpoint.shape(name)
    step = max(1, CHUNK_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield checkpoint.float32(name, slice(start, min(start + step, shape[0])))


def _gate_up_chunks(checkpoint: Checkpoint, experts: str) -> Iterator[npt.NDArray[np.float32]]:
    for expert in range(checkpoint.config.num_experts):
        yield from _pair_chunks(checkpoint, f"{experts}{expert}.")


def _pair_chunks(checkpoint: Checkpoint, block: str) -> Iterator[npt.NDArray[np.float32]]:
    """Row 2m is w1[m], row 2m+1 is w3[m]: the layout that ai.liquid::SparseMoE and SwiGLU read; [n, 2, H]."""
    gates, ups = (_row_chunks(checkpoint, f"{block}{matrix}.weight") for matrix in ("w1", "w3"))
    for gate, up in zip(gates, ups, strict=True):
        yield np.stack([gate, up], axis=1)


def _down_chunks(checkpoint: Checkpoint, experts: str) -> Iterator[npt.NDArray[np.float32]]:
    for expert in range(checkpoint.config.num_experts):
        yield from _row_chunks(checkpoint, f"{experts}{expert}.w2.weight")


def _rotary_chunks(checkpoint: Checkpoint, shape: tuple[int, ...], *, sine: bool) -> Iterator[npt.NDArray[np.float32]]:
    step = max(1, CHUNK_ELEMENTS // shape[1])
    for start in range(0, shape[0], step):
        yield rotary_cache(checkpoint.config, np.arange(start, min(start + step, shape[0])))[int(sine)]


def _narrow_all(source: Chunks, dtype: np.dtype[np.generic], name: str) -> Iterator[npt.NDArray[np.generic]]:
    return (_narrow(chunk, dtype, name) for chunk in source())


def _narrow(values: npt.NDArray[np.float32], dtype: np.dtype[np.generic], name: str) -> npt.NDArray[np.generic]:
    if dtype == values.dtype:
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    if not np.isfinite(narrow).all() and np.isfinite(values).all():
        largest = float(np.abs(values).max())
        raise CheckpointError(
            f"{name} holds {largest:.6g}, beyond {dtype.name}'s range (65504); export with --precision fp32"
        )
    return narrow
