"""The exported graphs on Qualcomm's compiler and emulator: nothing falls back, and the numbers are the CPU's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.export.npu import MoeForm, NpuOptions, NpuWeights, export_npu
from lfm_onnx.hardware.chips import chip
from lfm_onnx.reference.model import Reference
from lfm_onnx.runtime.npu.provider import NpuUnavailable, device, open_session
from npu_graphs import NpuGraphs, unpacking_model

try:
    EMULATOR, REASON = device().emulator, "this machine has a real NPU"
except NpuUnavailable as error:
    EMULATOR, REASON = False, str(error)
pytestmark = pytest.mark.skipif(not EMULATOR, reason=REASON)

OPTIONS = chip("sm8750").provider_options


def emulated(path: Path) -> ort.InferenceSession:
    """All nodes on the NPU, or an error."""
    return open_session(path, provider_options=OPTIONS)


@pytest.fixture(scope="module")
def chats(tiny_lfm: Path) -> list[np.ndarray]:
    tokenizer = ChatTokenizer.load(tiny_lfm)
    tasks = [json.loads(line) for line in (tiny_lfm / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = (
        tokenizer.render(task["messages"], tools=task.get("tools"), add_generation_prompt=True) + task["expected"]
        for task in tasks[::20]
    )
    return [np.array(tokenizer.encode(text)) for text in texts]


@pytest.mark.parametrize(
    "weights, decode, shared",
    [
        (NpuWeights.INT8, MoeForm.GATHERED, False),
        (NpuWeights.INT8, MoeForm.WIDE, False),
        (NpuWeights.INT4, MoeForm.PACKED, False),
        (NpuWeights.INT4, MoeForm.PACKED, True),
    ],
)
def test_every_form_compiles_whole_and_agrees_with_the_cpu(
    weights: NpuWeights, decode: MoeForm, shared: bool, tiny_lfm: Path, chats: list[np.ndarray], tmp_path: Path
) -> None:
    options = NpuOptions(
        weights=weights,
        chunk=32 if shared else 128,  # the many operators of experts in turn are slow to emulate
        moe_decode=decode,
        share_experts=shared,
        context_lengths=(256,),
        calibration=chats,
    )
    export_npu(Checkpoint.open(tiny_lfm), tmp_path / "out", options)
    on_cpu, on_npu = NpuGraphs(tmp_path / "out"), NpuGraphs(tmp_path / "out", emulated)
    ids = np.concatenate(chats)[:133]
    wanted, found, reference = [], [], []
    # One token, a padded chunk, and a chunk with a padded one behind it.
    for first, count in ((0, 1), (4, 20), (0, 40 if shared else 130)):
        prompt, more = ids[first : first + count], ids[first + count : first + count + 2]
        for model, logits in ((on_cpu, wanted), (on_npu, found)):
            model.reset()
            logits += [model.prefill(prompt), *(model.decode(int(token)) for token in more)]
        reference += list(Reference(Checkpoint.open(tiny_lfm)).forward([*prompt, *more])[0][-3:])
    differences = np.abs(np.stack(wanted) - np.stack(found)).max(axis=1) / np.std(wanted)
    # A router may choose otherwise between two experts that are nearly equal; that shows in single tokens.
    assert np.median(differences) < 0.05, differences
    assert np.sum(np.argmax(wanted, axis=1) == np.argmax(found, axis=1)) >= 8
    assert np.sum(np.argmax(reference, axis=1) == np.argmax(found, axis=1)) >= 7


def test_packed_experts_unpack_to_the_bit_on_the_npu() -> None:
    """Every pair of codes through Gather and the arithmetic that separates them."""
    model, steps = unpacking_model()
    session = open_session(model, provider_options=OPTIONS)
    for expert in (0, 1):
        high, low = session.run(["high", "low"], {"chosen": np.array([expert], np.int32)})
        assert np.array_equal(high[0, 0].astype(int) - 8, steps[expert, :225])
        assert np.array_equal(low[0, 0].astype(int) - 128, steps[expert, 225:])
