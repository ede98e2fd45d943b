"""The compiler and its emulator: compiled parts, their records, parity with the CPU, and the check of every node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.npu_compiled import RECORD
from lfm_onnx.cli.main import main
from lfm_onnx.errors import ArtifactError, InputError
from lfm_onnx.hardware.chips import chip
from lfm_onnx.mobile_bridge.check.run import run_check
from lfm_onnx.mobile_bridge.qnn import compile as compiling
from lfm_onnx.mobile_bridge.qnn.compile import CompileError, CompileOptions, compile_export
from lfm_onnx.runtime import LfmModel
from lfm_onnx.runtime.npu.provider import NpuUnavailable, device
from lfm_onnx.runtime.npu.run_options import NpuRunOptions
from npu_toy_export import write_toy_export

try:
    EMULATOR = device().emulator
    REASON = "this machine has a real NPU"
except NpuUnavailable as error:
    EMULATOR, REASON = False, str(error)
pytestmark = pytest.mark.skipif(not EMULATOR, reason=REASON)

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
SM8750 = (chip("sm8750"),)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy, compiled for the emulator and for a device."""
    folder = tmp_path_factory.mktemp("compiled") / "toy"
    write_toy_export(folder)
    compile_export(folder, CompileOptions(SM8750, ("device", "emulator")))
    return folder


def run(folder: Path, **options: Any) -> tuple[LfmModel, np.ndarray]:
    model = LfmModel.load(folder, npu=NpuRunOptions(plan="npu", strict=True, **options))
    state = model.new_state()
    rows = [model.prefill(state, IDS[:6]), *(model.decode(state, token) for token in IDS[6:])]
    return model, np.stack(rows)


def test_compiled_binaries_give_on_the_emulator_what_the_same_graphs_give_on_the_cpu(compiled: Path) -> None:
    model, found = run(compiled)
    assert "emulator" in model.session.providers[0] and "compiled at load" not in model.session.providers[0]
    _, expected = run(compiled, backend="cpu")
    assert np.abs(found - expected).max() < 0.1 * expected.std()
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def test_compiling_again_compiles_nothing(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a part was compiled again")

    monkeypatch.setattr(compiling, "WorkerProcess", never)
    lines: list[str] = []
    records = compile_export(compiled, CompileOptions(SM8750), lines.append)
    assert [line.endswith("is done") for line in lines] == [True, True]
    assert all(record.seconds > 0 and record.peak_rss_bytes > 0 and record.versions["qairt"] for record in records)


def test_a_device_build_has_one_binary_for_all_graphs_of_a_part(compiled: Path) -> None:
    folders = [compiled / "compiled" / "sm8750" / build / "part1" for build in ("device", "emulator")]
    binaries = [sorted(folder.glob("*.bin")) for folder in folders]
    assert [len(found) for found in binaries] == [1, 4]
    assert all(len(list(folder.glob("*_ctx.onnx"))) == 4 for folder in folders)


@pytest.mark.parametrize("key", ["qairt", "provider", "onnxruntime"])
def test_binaries_of_other_versions_are_refused_with_what_to_do(compiled: Path, key: str) -> None:
    path = compiled / "compiled" / "sm8750" / "emulator" / "part0" / RECORD
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"versions": record["versions"] | {key: "0.1"}}))
    try:
        with pytest.raises(ArtifactError, match=r"0\.1, here is .*lfm-onnx compile .* --soc sm8750 --build emulator"):
            run(compiled)
    finally:
        path.write_text(json.dumps(record))


def test_binaries_of_another_export_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    write_toy_export(tmp_path / "toy")
    compile_export(tmp_path / "toy", CompileOptions(SM8750, ("emulator",)))
    binary = next((tmp_path / "toy" / "compiled" / "sm8750" / "emulator" / "part1").glob("*.bin"))
    binary.write_bytes(binary.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"is not the .* bytes that were compiled"):
        run(tmp_path / "toy")
    kept = tmp_path / "toy" / "compiled"
    write_toy_export(tmp_path / "other", seed=1)
    kept.rename(tmp_path / "other" / "compiled")
    with pytest.raises(ArtifactError, match="compiled from another export"):
        run(tmp_path / "other")


def test_a_refused_part_names_its_log_and_leaves_nothing_behind_while_others_stay(tmp_path: Path) -> None:
    write_toy_export(tmp_path / "toy", refused_node=True)
    with pytest.raises(CompileError, match=r"did not take part1 for sm8750.*its log is .*sm8750-device-part1\.log"):
        compile_export(tmp_path / "toy", CompileOptions(SM8750))
    folder = tmp_path / "toy" / "compiled" / "sm8750" / "device"
    assert [item.name for item in folder.iterdir()] == ["part0"]


def test_too_little_memory_is_told_before_anything_is_compiled(compiled: Path) -> None:
    with pytest.raises(InputError, match="smaller `weight_budget`"):
        compile_export(compiled, CompileOptions((chip("sm8650"),), memory_bytes=1000))
    assert not (compiled / "compiled" / "sm8650").exists()


def test_an_export_that_the_npu_takes_whole_passes_the_check(compiled: Path) -> None:
    report = run_check(compiled, "qnn", soc="x-elite")
    assert report.passed and len(report.graphs) == 4
    for graph in report.graphs:
        assert graph.nodes_on_target == graph.nodes > 8
        assert graph.weight_bytes_on_target == graph.weight_bytes
        assert graph.float_matmuls == () and graph.integer_matmuls


def test_a_refused_node_is_named_with_the_compilers_reason(tmp_path: Path) -> None:
    write_toy_export(tmp_path / "toy", refused_node=True)
    result = CliRunner().invoke(main, ["check", str(tmp_path / "toy"), "--target", "qnn", "--json"])
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    refused = [node for graph in data["graphs"] for node in graph["refused"]]
    assert {node["op_type"] for node in refused} == {"Hardmax"}
    assert "`Hardmax` are not supported by QNN" in refused[0]["reason"]
    assert data["graphs"][2]["node_share"] == pytest.approx(15 / 16)


def test_a_float_matrix_product_is_told_from_an_integer_one(tmp_path: Path) -> None:
    from lfm_onnx.hardware.chips import DEFAULT_CHIP
    from lfm_onnx.mobile_bridge.check.qnn import check_qnn_graph
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], "g", ends[:1], ends[1:], [weight]
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "float.onnx")
    options = chip(DEFAULT_CHIP).provider_options
    found = check_qnn_graph(tmp_path / "float.onnx", "float.onnx", options)
    assert found.complete and found.integer_matmuls == ()
    assert found.float_matmuls is not None and found.float_matmuls[0].startswith("mm (float")


def test_the_sample_runs_on_the_emulator_with_next_to_no_loss(tiny_lfm: Path, tmp_path: Path) -> None:
    npu = pytest.importorskip("lfm_onnx.export.npu", reason="the NPU export is not in this build")
    from lfm_onnx.checkpoint.checkpoint import Checkpoint
    from lfm_onnx.runtime.parity.compare import compare
    from lfm_onnx.runtime.parity.options import ParityOptions

    checkpoint = Checkpoint.open(tiny_lfm)
    npu.export_npu(checkpoint, tmp_path / "npu", npu.NpuOptions(chunk=32, context_lengths=(128,)))
    options = ParityOptions(
        backend="numpy",
        tasks=tiny_lfm / "tasks.jsonl",
        most_tasks=1,
        tokens=60,
        passage_tokens=60,
        greedy_prompts=1,
        greedy_tokens=3,
        layers=True,
    )
    report = compare(Artifact.open(tmp_path / "npu", "qnn"), checkpoint, options)
    assert report.passed, report.verdict
    names = [check.name for check in report.checks]
    assert {"device against CPU", "short and whole prompts", "prefill and decode"} <= set(names)
    assert report.layers is not None and any("on the CPU" in layer.kind for layer in report.layers)


def test_the_plan_is_printed_as_json_with_what_is_done(compiled: Path) -> None:
    result = CliRunner().invoke(main, ["compile", str(compiled), "--soc", "sm8750,sm8650", "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    parts = json.loads(result.stdout)["parts"]
    assert [(part["part"], part["soc"], part["done"]) for part in parts] == [
        ("part0", "sm8750", True), ("part1", "sm8750", True), ("part0", "sm8650", False), ("part1", "sm8650", False),
    ]  # fmt: skip
