"""The runtime of NPU exports on the CPU: chunks, states, contexts, plans, and what happens when the NPU fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.npu_manifest import NpuManifest
from lfm_onnx.errors import ArtifactError, InputError
from lfm_onnx.runtime import LfmModel
from lfm_onnx.runtime.npu import open as npu_open
from lfm_onnx.runtime.npu.backends import CpuBackend
from lfm_onnx.runtime.npu.provider import NpuUnavailable
from lfm_onnx.runtime.npu.quantization import dequantize, quantize
from lfm_onnx.runtime.npu.run_options import NpuRunOptions
from lfm_onnx.runtime.npu.session import NpuSession
from lfm_onnx.runtime.npu.state import NpuState
from lfm_onnx.strict_json import JsonObject
from npu_toy_export import CHUNK, CONTEXTS, ToyModel, write_toy_export

EMBEDDING = {"file": "npu/embedding.bin", "dtype": "uint16", "shape": [16, 8], "offset": 0}
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4]
# The KV cache has 8 bits: steps of 1/16 in values of up to 8, which the head multiplies.
TOLERANCE = 0.15


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ToyModel]:
    folder = tmp_path_factory.mktemp("toy") / "export"
    return folder, write_toy_export(folder)


@pytest.fixture(scope="module")
def model(toy: tuple[Path, ToyModel]) -> LfmModel:
    return LfmModel.load(toy[0], target="qnn", npu=NpuRunOptions(plan="npu", backend="cpu"), threads=1)


def all_rows(model: LfmModel, ids: list[int]) -> np.ndarray:
    """Logits [n, vocab] of ``ids`` by prefill."""
    assert isinstance(model.session, NpuSession)
    state = model.session.new_state(1, 1, model.context_length)
    return model.session.compare_prefill(state, np.array(ids))[0]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("length", range(1, CONTEXTS[-1] + 1))
def test_a_prompt_of_any_length_gives_the_logits_of_its_last_token(
    model: LfmModel, toy: tuple[Path, ToyModel], length: int
) -> None:
    logits = model.prefill(model.new_state(), IDS[:length])
    assert relative(logits, toy[1].logits(IDS[:length])[-1]) < TOLERANCE


def test_tokens_fed_one_by_one_give_what_prefill_gives(model: LfmModel, toy: tuple[Path, ToyModel]) -> None:
    state = model.new_state()
    rows = np.stack([model.decode(state, token) for token in IDS])
    assert relative(rows, toy[1].logits(IDS)) < TOLERANCE
    whole = all_rows(model, IDS)
    np.testing.assert_allclose(rows, whole, atol=1e-3)


def test_chunks_on_top_of_a_filled_cache_continue_it(model: LfmModel) -> None:
    whole = all_rows(model, IDS)
    state = model.new_state()
    at = 0
    for size in (3, 1, 6, 2, 5):  # padded chunks, single tokens, more than a chunk
        logits = model.prefill(state, IDS[at : at + size])
        at += size
        np.testing.assert_allclose(logits, whole[at - 1], atol=1e-3)


def test_the_shortest_context_that_holds_the_tokens_is_used(model: LfmModel) -> None:
    state = model.new_state()
    model.prefill(state, IDS[: CONTEXTS[0]])
    assert state.capacity == CONTEXTS[0]
    model.decode(state, IDS[CONTEXTS[0]])
    assert state.capacity == CONTEXTS[1]


def test_a_full_context_is_refused_and_the_state_stays_usable(model: LfmModel) -> None:
    state = model.new_state()
    model.prefill(state, IDS[:23])
    with pytest.raises(InputError, match="25 tokens do not fit into the context of 24"):
        model.prefill(state, IDS[:2])
    assert state.length == 23
    model.decode(state, IDS[23])


def test_several_rows_of_logits_on_request(model: LfmModel) -> None:
    whole = all_rows(model, IDS[:9])
    logits, state = model.forward(IDS[:9], num_logits_to_keep=4)
    assert logits.shape == (1, 4, 16) and state.length == 9
    np.testing.assert_allclose(logits[0], whole[-4:], atol=1e-3)


def test_a_batch_or_padding_is_refused(model: LfmModel) -> None:
    with pytest.raises(InputError, match="one sequence"):
        model.forward([[1, 2], [3, 4]])
    with pytest.raises(InputError, match="without padding"):
        model.forward([[1, 2]], attention_mask=np.array([[0, 1]]))


def test_a_rewound_state_goes_on_as_from_there(model: LfmModel) -> None:
    state = model.new_state()
    model.prefill(state, IDS[:6])
    point = state.snapshot()
    model.prefill(state, [15, 14, 13, 12, 11])
    state.rewind(point)
    expected = model.prefill(model.new_state(), IDS[:10])
    np.testing.assert_array_equal(model.prefill(state, IDS[6:10]), expected)
    state.clear()
    np.testing.assert_array_equal(model.prefill(state, IDS[:10]), expected)


def test_a_conversation_feeds_only_what_is_new(model: LfmModel) -> None:
    context = model.new_context()
    first = model.generate(IDS[:5], context=context, max_new_tokens=4, do_sample=False, stop_at_end_token=False).result
    follow = [*IDS[:5], *first.token_ids, 7, 3]
    second = model.generate(follow, context=context, max_new_tokens=3, do_sample=False, stop_at_end_token=False).result
    fresh = model.generate(follow, max_new_tokens=3, do_sample=False, stop_at_end_token=False).result
    assert second.cached_tokens >= 5
    assert second.token_ids == fresh.token_ids


class BreaksAfter:
    """A backend whose sessions fail from the given run on."""

    name = "a device that breaks"

    def __init__(self, inner: CpuBackend, runs: int) -> None:
        self.inner, self.left = inner, runs

    def open(self, graph: Any, model: Any = None) -> Any:
        session, backend = self.inner.open(graph, model), self

        class Session:
            def __getattr__(self, name: str) -> Any:
                return getattr(session, name)

            def run_with_iobinding(self, binding: Any) -> None:
                backend.left -= 1
                if backend.left < 0:
                    raise RuntimeError("device lost")
                session.run_with_iobinding(binding)

        return Session()


@pytest.mark.parametrize("runs", [0, 1, 3, 7])
def test_a_device_that_fails_in_the_middle_is_replaced_by_the_cpu_without_a_trace_in_the_logits(
    toy: tuple[Path, ToyModel], runs: int
) -> None:
    artifact = Artifact.open(toy[0], "qnn")
    manifest = NpuManifest.read(artifact)
    told: list[str] = []
    cpu = CpuBackend(artifact, 1)
    session = NpuSession(manifest, BreaksAfter(cpu, runs), fallback=lambda: cpu, notice=told.append)
    healthy = NpuSession(manifest, cpu)
    states = NpuState(manifest, 24), NpuState(manifest, 24)
    for piece in ([3, 1, 4, 1, 5, 9], [2], [6], [5, 3, 5]):
        found, expected = (s.run(t, np.array([piece])) for s, t in zip((session, healthy), states, strict=True))
        np.testing.assert_array_equal(found, expected)
    assert len(told) == 1 and "device lost" in told[0] and "going on with" in told[0]


def test_without_a_fallback_a_failing_device_is_a_clear_error(toy: tuple[Path, ToyModel]) -> None:
    artifact = Artifact.open(toy[0], "qnn")
    manifest = NpuManifest.read(artifact)
    session = NpuSession(manifest, BreaksAfter(CpuBackend(artifact, 1), 0))
    with pytest.raises(NpuUnavailable, match="did not run: device lost"):
        session.run(NpuState(manifest, 24), np.array([[1, 2]]))


def _no_npu() -> None:
    raise NpuUnavailable("onnxruntime-qnn is not installed")


def test_a_missing_npu_is_told_and_the_cpu_answers(toy: tuple[Path, ToyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu_open, "device", _no_npu)
    told: list[str] = []
    loaded = LfmModel.load(toy[0], npu=NpuRunOptions(plan="npu", notice=told.append))
    assert told == ["onnxruntime-qnn is not installed; the CPU runs the model"]
    assert relative(loaded.prefill(loaded.new_state(), IDS[:7]), toy[1].logits(IDS[:7])[-1]) < TOLERANCE
    with pytest.raises(NpuUnavailable):
        LfmModel.load(toy[0], npu=NpuRunOptions(plan="npu", strict=True))


def test_a_folder_with_an_npu_export_alone_needs_no_target(toy: tuple[Path, ToyModel]) -> None:
    assert isinstance(LfmModel.load(toy[0], npu=NpuRunOptions(backend="cpu")).session, NpuSession)


def test_wrong_options_are_refused(toy: tuple[Path, ToyModel]) -> None:
    with pytest.raises(InputError, match="unknown plan 'fast'"):
        LfmModel.load(toy[0], npu=NpuRunOptions(plan="fast"))
    with pytest.raises(InputError, match=r"decodes with a model exported for the CPU.* make one with `lfm-onnx export"):
        LfmModel.load(toy[0], npu=NpuRunOptions(plan="hybrid", backend="cpu"))
    with pytest.raises(InputError, match="expected 1 to 24"):
        LfmModel.load(toy[0], npu=NpuRunOptions(backend="cpu"), context_length=25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"npu_manifest_version": 9}, "npu_manifest_version is 9, expected 1"),
        ({"parts": []}, "no parts"),
        ({"context_lengths": [7]}, "no prefill graph of context length 7"),
        ({"embedding": {**EMBEDDING, "file": "../secret"}}, "expected a path that stays in the folder"),
        ({"embedding": {**EMBEDDING, "shape": [99999, 99999]}}, "the embedding needs"),
        ({"rotary": {"theta": float("nan"), "head_dim": 8}}, "rotary.theta is nan"),
        ({"states": [{"layer": 0, "part": 5, "kind": "conv", "update": "replace"}]}, "states[0].input is missing"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused_by_name(
    toy: tuple[Path, ToyModel], tmp_path: Path, change: dict, message: str
) -> None:
    artifact = Artifact.open(toy[0], "qnn")
    data = json.loads(artifact.model_path.read_text()) | change
    changed = tmp_path / "npu_manifest.json"
    changed.write_text(json.dumps(data))
    with pytest.raises(ArtifactError) as caught:
        NpuManifest.from_json(JsonObject.read(changed, ArtifactError), artifact.folder)
    assert message in str(caught.value) or "NaN" in str(caught.value)


def test_quantization_rounds_clips_and_comes_back(toy: tuple[Path, ToyModel]) -> None:
    manifest = NpuManifest.read(Artifact.open(toy[0], "qnn"))
    value = next(v for v in manifest.parts[0].graph("decode", 8).inputs if v.role == "hidden")
    real = np.array([0.0, 1 / 4096, 0.4 / 4096, 100.0, -100.0], np.float32)
    stored = quantize(real, value)
    assert stored.tolist() == [32768, 32769, 32768, 65535, 0] and stored.dtype == np.uint16
    np.testing.assert_allclose(dequantize(stored, value), [0, 1 / 4096, 0, 32767 / 4096, -8], rtol=1e-6)
    assert manifest.chunk == CHUNK
