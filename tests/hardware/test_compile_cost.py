"""The plan's memory and seconds against what was measured with Qualcomm's compiler on two x86-64 cores."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from lfm_onnx.hardware.compile_cost import WITHIN, GraphToCompile, compile_memory, compile_seconds


def int4(gigabytes: float, *, in_turn: bool = False) -> GraphToCompile:
    return GraphToCompile(round(gigabytes * 1e9), "int4", in_turn)


# Graphs, whether they go into one binary, gigabytes of memory, and seconds of processor time (other work was running).
MEASURED = [
    ([int4(0.215), int4(0.205)], False, 1.35, 28),
    ([int4(0.215), int4(0.205)], True, 2.74, 42),
    ([int4(0.205, in_turn=True), int4(0.205)], False, 1.46, 86),
    ([int4(0.205, in_turn=True), int4(0.205)], True, 2.44, 87),
    ([int4(1.148)], False, 5.76, 91),
    ([int4(1.115)], False, 5.06, 95),
    ([int4(0.956), int4(0.934)], True, 10.74, 227),
    ([int4(1.008), int4(0.981)], True, 11.30, 260),
    ([int4(0.949), int4(0.921)], True, 10.88, 226),
    ([int4(0.516), int4(0.505)], True, 5.91, 128),
]


@pytest.mark.parametrize("graphs, shared, memory, seconds", MEASURED)
def test_the_plan_is_near_to_what_was_measured(
    graphs: Sequence[GraphToCompile], shared: bool, memory: float, seconds: float
) -> None:
    assert 1 / WITHIN < compile_memory(graphs, shared=shared) / (memory * 1e9) < WITHIN
    assert 1 / WITHIN < compile_seconds(graphs) / seconds < WITHIN


def test_weights_that_the_formula_does_not_know_are_taken_for_the_slowest() -> None:
    graphs = [GraphToCompile(10**9, weights) for weights in ("int8", "int4", "a form to come")]
    int8, slowest, unknown = (compile_seconds([graph]) for graph in graphs)
    assert int8 < slowest == unknown
