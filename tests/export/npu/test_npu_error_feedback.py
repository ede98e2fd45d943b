"""How the NPU's weights are rounded: finer steps where few are, and errors made good by the columns that follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.export.npu import MoeForm, Phase
from lfm_onnx.export.npu.float_weights import column_extremes
from lfm_onnx.export.npu.part_graph import PartShape, declare_part
from lfm_onnx.export.npu.static_graph import WeightKind
from lfm_onnx.export.npu.weight_inputs import WeightInputs
from lfm_onnx.quantize.gptq import gptq_codes
from lfm_onnx.quantize.hessian import HessianFactor


@pytest.mark.parametrize("columns", [64, 2048])
def test_the_largest_packed_code_stands_for_what_leaves_the_least_error(columns: int) -> None:
    rows = np.random.default_rng(0).standard_normal((40, columns)).astype(np.float32)

    def error(extremes: np.ndarray) -> np.ndarray:
        unit = extremes[:, None] / 7
        return np.square(np.clip(np.rint(rows / unit), -7, 7) * unit - rows).sum(axis=1)

    largest = np.abs(rows).max(axis=1)
    assert np.array_equal(column_extremes(rows, packed=False), largest)
    found = column_extremes(rows, packed=True)
    assert np.all(error(found) <= error(largest) * 1.0001)
    if columns == 2048:  # the more weights, the further the largest lies from the others
        assert error(found).sum() < 0.7 * error(largest).sum()
    assert not column_extremes(np.zeros((1, columns), np.float32), packed=True).any()


@pytest.mark.parametrize("limits, blocks, gain", [((-127, 127), 1, 0.7), ((-8, 7), 8, 0.7), ((-7, 7), 1, 0.7)])
def test_feedback_makes_good_what_rounding_does_to_the_outputs(
    limits: tuple[int, int], blocks: int, gain: float
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 256)).astype(np.float32)
    inputs = rng.standard_normal((400, 24)) @ rng.standard_normal((24, 256)) + 0.3 * rng.standard_normal((400, 256))
    factor = HessianFactor.from_second_moment((inputs.T @ inputs / 400).astype(np.float32))
    scales = np.abs(rows.reshape(30, blocks, -1)).max(axis=2) / limits[1]
    steps = scales.repeat(256 // blocks, axis=1)
    codes = gptq_codes(rows, scales, factor, limits)
    assert codes.min() >= limits[0] and codes.max() <= limits[1]
    nearest = np.clip(np.rint(rows / steps), *limits)
    errors = [np.square(inputs @ (levels * steps - rows).T).mean() for levels in (codes, nearest)]
    assert errors[0] < gain * errors[1]


@pytest.mark.parametrize("variant", ["dense", "moe"])
def test_every_weight_is_rounded_by_what_it_is_multiplied_by(
    variant: str, variant_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    inputs = WeightInputs(checkpoint, [np.random.default_rng(0).integers(0, 96, 200)])
    shape = PartShape(0, checkpoint.config.num_hidden_layers, True, 16)
    seen = 0
    for phase, tokens, form in ((Phase.PREFILL, 8, MoeForm.WIDE), (Phase.DECODE, 1, MoeForm.PACKED)):
        graph = declare_part(checkpoint, shape, phase, tokens, form)
        for name, weight in graph.weights.items():
            if weight.kind is WeightKind.EXPERTS:
                experts, columns, _ = weight.value.shape
                assert all(len(_moment(inputs.factor(weight, e), columns)) == columns for e in range(experts))
            elif weight.kind is WeightKind.LINEAR:
                columns, rows = weight.value.shape
                covered = np.zeros((rows, columns), int)
                for share in inputs.shares(weight):
                    covered[share.rows, share.columns] += 1
                    width = share.columns.stop - share.columns.start
                    assert len(_moment(inputs.factor(weight, share.expert), width)) == width
                assert (covered == 1).all(), name
            else:
                continue
            seen += 1
    assert seen > 20


def _moment(factor: HessianFactor | None, columns: int) -> np.ndarray:
    """The second moment that was factored; of the identity where the text says too little of an expert."""
    if factor is None:
        return np.eye(columns)
    return factor.unit * factor.pivots @ factor.unit.T
