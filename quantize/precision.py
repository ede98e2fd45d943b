"""The precisions of an artifact: what each stores its weights in, and how its files are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Precision:
    """One precision: ``name`` on the command line and in the manifest, ``suffix`` of the model's file name.

    ``weight_dtype`` is the numpy dtype of linear, expert and embedding weights; norms, router, expert bias and
    convolution kernels are float32 in every precision.
    """

    name: str
    suffix: str
    weight_dtype: np.dtype[np.generic]

    @property
    def model_file(self) -> str:
        """File name of the graph."""
        return f"model{self.suffix}.onnx"

    def data_file(self, index: int) -> str:
        """File name of the index-th file of external weights."""
        return f"{self.model_file}_data" + (f"_{index}" if index else "")


FP32 = Precision("fp32", "", np.dtype(np.float32))
FP16 = Precision("fp16", "_fp16", np.dtype(np.float16))

PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in (FP32, FP16)}
