"""Checks for OpenVINO, NNAPI, XNNPACK and Windows ML, and the pieces that all checks share."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import onnx
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from click.testing import CliRunner
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.cli.main import main
from lfm_onnx.errors import InputError
from lfm_onnx.export import OpsProfile
from lfm_onnx.mobile_bridge.check import openvino
from lfm_onnx.mobile_bridge.check.fixed_shapes import fixed_shape_model
from lfm_onnx.mobile_bridge.check.graph_weights import load_graph, weight_bytes_by_node
from lfm_onnx.mobile_bridge.check.qnn_graph_dump import read_graph_dump
from lfm_onnx.mobile_bridge.check.result import CheckError
from lfm_onnx.mobile_bridge.check.run import run_check
from lfm_onnx.runtime.worker_process import WorkerError
from npu_toy_export import HIDDEN, VOCAB, write_toy_export


@pytest.fixture(scope="module")
def artifact(exported_artifact: ArtifactFactory) -> Path:
    return exported_artifact(SAMPLE, OpsProfile.STANDARD)


def test_nnapi_is_called_deprecated_and_often_slower_whatever_it_takes(artifact: Path) -> None:
    result = CliRunner().invoke(main, ["check", str(artifact), "--target", "nnapi", "--json"])
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert "deprecated" in data["notes"][0] and "often slower than the CPU" in data["notes"][0]
    graph = data["graphs"][0]
    assert 0 < graph["nodes_on_target"] < graph["nodes"] and graph["partitions"] > 1
    assert any("TopK" in node["op_type"] for node in graph["refused"])


def test_xnnpack_takes_constant_float_matrix_products_alone(artifact: Path) -> None:
    report = run_check(artifact, "xnnpack")
    graph = report.graphs[0]
    assert graph.weight_bytes and graph.weight_bytes_on_target
    assert 0.2 < graph.weight_bytes_on_target / graph.weight_bytes <= 1
    assert "XNNPACK has no such operator" in {node.reason.partition(" (")[0] for node in graph.refused}


def test_a_fixed_variant_has_no_open_dimension_and_nothing_left_to_fold(artifact: Path) -> None:
    model = fixed_shape_model(Artifact.open(artifact))
    values = (*model.graph.input, *model.graph.output)
    assert all(d.HasField("dim_value") for v in values for d in v.type.tensor_type.shape.dim)
    assert not model.functions and all(node.op_type != "Constant" for node in model.graph.node)


def test_windows_ml_without_its_runtime_says_how_to_get_it(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.31.1")
    with pytest.raises(CheckError, match=r"this Python has 1\.31\.1: make a Python with it .*onnxruntime==1\.24\.4"):
        run_check(artifact, "windows-ml")


def test_another_runtime_is_run_and_compared_but_does_not_count_as_windows_ml(artifact: Path, tiny_lfm: Path) -> None:
    import onnxruntime

    report = run_check(artifact, "windows-ml", interpreter=Path(sys.executable), reference=str(tiny_lfm))
    states = {item.name: item.passed for item in report.requirements}
    assert states == {
        "onnxruntime 1.24": onnxruntime.__version__.startswith("1.24."),
        "the model loads and runs": True,
        "logits are finite": True,
        "logits agree": True,
    }
    assert 0 < report.figures["relative_max_diff"] < 1e-3 and report.figures["top1"] == 1.0


def test_openvino_that_is_not_there_cannot_be_checked_and_says_what_to_install(artifact: Path) -> None:
    if importlib.util.find_spec("onnxruntime_ep_openvino"):
        pytest.skip("onnxruntime-ep-openvino is installed")
    result = CliRunner().invoke(main, ["check", str(artifact), "--target", "openvino"])
    assert result.exit_code == 2
    assert "onnxruntime-ep-openvino" in result.stderr and "--python" in result.stderr


def test_openvino_computes_the_model_where_it_is_there(artifact: Path) -> None:
    if not importlib.util.find_spec("onnxruntime_ep_openvino"):
        pytest.skip("onnxruntime-ep-openvino is not installed")
    try:
        report = run_check(artifact, "openvino")
    except CheckError as error:
        pytest.skip(str(error))
    assert report.requirements[0].name == "the model loads and runs"


@pytest.mark.parametrize(
    "message, cause",
    [
        ("Error: the graph is not acyclic.", "cuts the graph into parts that wait for one another"),
        ("something new", "something new"),
    ],
)
def test_a_model_that_openvino_cannot_place_is_a_missed_requirement_with_its_cause(
    message: str, cause: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise WorkerError(message, "load")

    monkeypatch.setattr(openvino, "run_elsewhere", refuse)
    result = CliRunner().invoke(main, ["check", str(artifact), "--target", "openvino", "--json"])
    assert result.exit_code == 1
    (missed,) = json.loads(result.stdout)["requirements"]
    assert not missed["passed"] and cause in missed["detail"] and message in missed["detail"]


def test_an_npu_export_has_no_other_target(tmp_path: Path) -> None:
    write_toy_export(tmp_path / "toy")
    with pytest.raises(InputError, match="needs one for the CPU"):
        run_check(tmp_path / "toy", "nnapi")


def test_weights_are_counted_at_the_node_that_computes_with_them(tmp_path: Path) -> None:
    write_toy_export(tmp_path / "toy")
    model = load_graph(tmp_path / "toy" / "npu" / "part1" / "decode-8.onnx")
    found = weight_bytes_by_node(model)
    assert found["head.MatMul"] == HIDDEN * VOCAB + VOCAB * 4 + VOCAB  # codes, scales, zero points
    total = sum(onnx.numpy_helper.to_array(item).nbytes for item in model.graph.initializer)
    assert sum(found.values()) <= total


def test_the_compilers_dump_says_which_products_are_integers(tmp_path: Path) -> None:
    tensors = {"x": 0x0416, "w": 0x0308, "y": 0x0416, "f": 0x0216}
    nodes = {
        "good": {"type": "FullyConnected", "input_names": ["x", "w"], "output_names": ["y"]},
        "bad": {"type": "MatMul", "input_names": ["f", "f"], "output_names": ["f"]},
        "sum": {"type": "ElementWiseAdd", "input_names": ["x", "y"], "output_names": ["y"]},
    }
    dump = {"graph": {"nodes": nodes, "tensors": {name: {"data_type": code} for name, code in tensors.items()}}}
    (tmp_path / "dump.json").write_text(json.dumps(dump))
    found = read_graph_dump(tmp_path / "dump.json")
    assert [(item.name, item.integer) for item in found] == [("good", True), ("bad", False)]
    assert found[0].types == ("ufixed16", "sfixed8", "ufixed16") and found[1].types[0] == "float16"


def test_a_python_that_is_not_there_cannot_be_checked(artifact: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["check", str(artifact), "--target", "windows-ml", "--python", str(tmp_path / "python")]
    )
    assert result.exit_code == 2
    assert "cannot be started: No such file" in result.stderr
