"""The precisions of an artifact: what each stores its weights in, and how its files are called."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .formats import BlockFormat
from .method import Method

_FLOAT32: np.dtype[np.generic] = np.dtype(np.float32)


@dataclass(frozen=True)
class Precision:
    """One precision: ``name`` on the command line and in the manifest, ``suffix`` of the model's file name.

    ``weights`` is what linear, expert and embedding weights are stored in: a numpy dtype or a block format. Norms,
    router, expert bias and convolution kernels are float32 in every precision.
    """

    name: str
    suffix: str
    weights: np.dtype[np.generic] | BlockFormat
    activations: np.dtype[np.generic] = _FLOAT32
    """Of logits, states and everything between them: float16 is for GPUs."""

    @property
    def weight_format(self) -> str:
        """Name of what the weights are stored in, such as ``float16`` or ``int4-block32-symmetric-float16``."""
        return self.weights.name

    @property
    def default_method(self) -> Method:
        """How blocks are made unless the caller says: the best quality that takes minutes at 8.5 B parameters.

        At 8 bits no method has anything to gain.
        """
        return Method.RTN if isinstance(self.weights, BlockFormat) and self.weights.bits == 8 else Method.GPTQ

    @property
    def model_file(self) -> str:
        """File name of the graph."""
        return f"model{self.suffix}.onnx"

    def data_file(self, index: int) -> str:
        """File name of the index-th file of external weights."""
        return f"{self.model_file}_data" + (f"_{index}" if index else "")

    def with_blocks(self, block_size: int | None, scale_dtype: str | None, *, zero_points: bool) -> Precision:
        """This precision with another block format; None and False leave the default. ValueError for floats."""
        if block_size is None and scale_dtype is None and not zero_points:
            return self
        if not isinstance(self.weights, BlockFormat):
            raise ValueError(f"{self.name} stores no blocks: block size, zero points and scales are those of q4 and q8")
        blocks = replace(
            self.weights,
            block_size=block_size or self.weights.block_size,
            scale_dtype=scale_dtype or self.weights.scale_dtype,
            symmetric=not zero_points and self.weights.symmetric,
        )
        return replace(self, weights=blocks)


FP32 = Precision("fp32", "", np.dtype(np.float32))
FP16 = Precision("fp16", "_fp16", np.dtype(np.float16))
Q8 = Precision("q8", "_quantized", BlockFormat(bits=8))
Q4 = Precision("q4", "_q4", BlockFormat(bits=4))
Q4F16 = Precision("q4f16", "_q4f16", BlockFormat(bits=4), np.dtype(np.float16))

PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in (FP32, FP16, Q8, Q4, Q4F16)}
