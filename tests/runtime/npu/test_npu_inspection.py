"""An NPU export's inspection: its parts, their graphs and sizes, and every file checked where that is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.npu_manifest import NpuManifest
from lfm_onnx.cli.main import main
from lfm_onnx.runtime.inspection import inspect_artifact
from lfm_onnx.runtime.npu.inspection import NpuInspection

EXPORT = Path(__file__).parents[2] / "data" / "version_0_1_0" / "npu"


def test_the_figures_are_those_of_the_files() -> None:
    inspection = inspect_artifact(EXPORT, verify="full")
    assert isinstance(inspection, NpuInspection)
    manifest = NpuManifest.read(Artifact.open(EXPORT, "qnn"))
    assert inspection.bytes_on_disk == sum((EXPORT / file).stat().st_size for file in manifest.files())
    assert [part.layers for part in inspection.parts] == [(p.first_layer, p.last_layer) for p in manifest.parts]
    for part, stored in zip(inspection.parts, manifest.parts, strict=True):
        assert part.file_bytes == (EXPORT / stored.weights_file).stat().st_size
        for graph in part.graphs:
            assert len(graph.files) == len(inspection.context_lengths) and graph.nodes == sum(graph.op_types.values())
    assert inspection.embedding_bytes == (EXPORT / manifest.embedding.file).stat().st_size - manifest.embedding.offset
    assert sorted(inspection.state_bytes) == list(inspection.context_lengths)
    assert all(size > 0 for size in inspection.state_bytes.values())


def test_the_command_shows_them_as_tables_and_as_json() -> None:
    shown = CliRunner().invoke(main, ["inspect", str(EXPORT), "--verify"])
    assert shown.exit_code == 0, shown.stderr
    assert "part0" in shown.stdout and "embedding" in shown.stdout
    data = json.loads(CliRunner().invoke(main, ["inspect", str(EXPORT), "--json"]).stdout)
    assert data == json.loads(json.dumps(inspect_artifact(EXPORT).to_dict()))


@pytest.mark.parametrize("ending", [".onnx", ".bin", ".jinja"])
def test_verify_finds_a_changed_byte_in_any_file(ending: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXPORT, tmp_path / "npu"))
    file = next(folder.rglob(f"*{ending}"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = CliRunner().invoke(main, ["inspect", str(folder), "--verify"])
    assert result.exit_code == 2 and file.name in result.stderr and "SHA-256" in result.stderr
