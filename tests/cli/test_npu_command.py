"""`lfm-onnx export --target qnn`: the plan of parts, what the options may be, and the artifact that comes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.cli.main import main
from lfm_onnx.export.npu import exporter
from lfm_onnx.runtime import LfmModel
from lfm_onnx.runtime.npu import provider
from lfm_onnx.runtime.npu.run_options import NpuRunOptions
from npu_models import FULL_SIZE, needs_emulator, write_hollow_checkpoint

SMALL = ("--context-length", "64", "--chunk", "16", "--calibration-tokens", "32")


def export(checkpoint: Path, output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", str(checkpoint), "-o", str(output), "--target", "qnn", *arguments])


def plan(checkpoint: Path, output: Path, *arguments: str) -> dict[str, Any]:
    result = export(checkpoint, output, "--dry-run", "--json", *arguments)
    assert result.exit_code == 0, result.stderr
    assert not output.exists()
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 17 GB without its weights."""
    return write_hollow_checkpoint(tmp_path_factory.mktemp("full_size"), FULL_SIZE)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_of_a_full_size_model_has_every_layer_once_in_parts_under_the_budget(
    full_size: Path, tmp_path: Path
) -> None:
    found = plan(full_size, tmp_path / "out")
    assert (found["weights"], found["chunk"], found["context_lengths"]) == ("int4", 128, [1024])
    layers = [i for part in found["parts"] for i in range(*part["layers"])]
    assert layers == list(range(24))
    assert [part["head"] for part in found["parts"]] == [False] * (len(found["parts"]) - 1) + [True]
    assert all(size <= 3e9 for part in found["parts"] for size in part["weight_bytes"].values())
    # 8.3 B parameters below the embedding at 4 bits and a scale, the head among them.
    assert 4.1e9 < sum(part["weight_bytes"]["prefill"] for part in found["parts"]) < 4.6e9
    # 1.5 B active ones.
    assert 0.7e9 < found["token_bytes"] < 0.95e9
    assert found["compile_memory_bytes"] == max(part["compile_memory_bytes"] for part in found["parts"])
    assert found["compile_seconds"] > 60


def test_a_smaller_budget_makes_more_parts_and_int8_larger_ones(full_size: Path, tmp_path: Path) -> None:
    default = plan(full_size, tmp_path / "out")
    small = plan(full_size, tmp_path / "out", "--weight-budget", "1GB")
    assert len(small["parts"]) > len(default["parts"])
    assert max(part["weight_bytes"]["decode"] for part in small["parts"]) <= 1e9
    frugal = plan(full_size, tmp_path / "out", "--memory-budget", "6GB")
    assert frugal["compile_memory_bytes"] <= 6e9 < default["compile_memory_bytes"]
    int8 = plan(full_size, tmp_path / "out", "--precision", "q8")
    assert int8["token_bytes"] > 1.8 * default["token_bytes"]


def test_the_plan_is_a_table_with_the_command_that_comes_next(full_size: Path, tmp_path: Path) -> None:
    result = export(full_size, tmp_path / "out", "--dry-run", "--soc", "sm8650,8-elite")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    parts = [line for line in lines if line.startswith("part")][1:]
    assert len(parts) >= 2 and all(" GB" in line and line.endswith(" s") for line in parts)
    assert "+ head" in parts[-1]
    assert f"lfm-onnx compile {tmp_path / 'out'} --soc sm8650,sm8750" in lines[-1]


@pytest.mark.parametrize("given", [("64,256",), ("64", "256")])
def test_context_lengths_are_given_in_a_list_or_one_by_one(
    given: tuple[str, ...], tiny_lfm: Path, tmp_path: Path
) -> None:
    arguments = [part for length in given for part in ("--context-length", length)]
    assert plan(tiny_lfm, tmp_path / "out", *arguments)["context_lengths"] == [64, 256]


def test_shared_experts_halve_the_weights_and_leave_what_a_token_reads(full_size: Path, tmp_path: Path) -> None:
    apart, shared = plan(full_size, tmp_path / "out"), plan(full_size, tmp_path / "out", "--share-experts")
    assert (apart["share_experts"], shared["share_experts"]) == (False, True)
    assert shared["token_bytes"] == apart["token_bytes"]
    assert shared["binary_bytes"] < 0.55 * apart["binary_bytes"]
    assert shared["compile_seconds"] > 2 * apart["compile_seconds"]
    assert [part["weight_bytes"]["decode"] for part in shared["parts"]] == [
        part["weight_bytes"]["prefill"] for part in shared["parts"]
    ]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--precision", "fp16"], "--precision q4 .* or q8 .*, not fp16"),
        (["--ops", "custom"], "--ops is for --target cpu"),
        (["--recipe", "r.json"], "--recipe is for --target cpu"),
        (["--method", "search"], "--target qnn has --method gptq or rtn, not search"),
        (["--block-size", "32"], "--block-size is for --target cpu"),
        (["--zero-points"], "--zero-points is for --target cpu"),
        (["--budget", "1GB"], "--budget is for --target cpu.*--weight-budget bounds the parts"),
        (["--max-kld", "0.1"], "--max-kld is for --target cpu"),
        (["--no-tokenizer"], "needs a tokenizer: leave out --no-tokenizer"),
        (["--soc", "sm1"], "unknown chip 'sm1': expected one of .*sm8750"),
        (["--soc", ""], "no chip named"),
        (["--context-length", "64,64"], "give each once"),
        (["--context-length", "5000"], "context length 5000: .* 1 to 2048 positions"),
        (["--chunk", "5000"], "chunk of 5000 tokens: expected 2 to 2048"),
        (["--weight-budget", "1KB"], "raise the budget"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_nothing_is_written(
    arguments: list[str], message: str, tiny_lfm: Path, tmp_path: Path
) -> None:
    result = export(tiny_lfm, tmp_path / "out", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--soc", "sm8750"], "--soc is for --target qnn"),
        (["--chunk", "64"], "--chunk is for --target qnn"),
        (["--weight-budget", "1GB"], "--weight-budget is for --target qnn"),
        (["--memory-budget", "1GB"], "--memory-budget is for --target qnn"),
        (["--share-experts"], "--share-experts is for --target qnn"),
        (["--headroom", "2"], "--headroom is for --target qnn"),
        (["--context-length", "64,128"], "several context lengths are for --target qnn"),
    ],
)
def test_options_of_the_npu_without_the_target_are_refused(
    arguments: list[str], message: str, tiny_lfm: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(main, ["export", str(tiny_lfm), "-o", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("length", ["0", "-1", "64,", "long"])
def test_a_context_length_that_is_no_length_is_refused(length: str, tiny_lfm: Path, tmp_path: Path) -> None:
    result = export(tiny_lfm, tmp_path / "out", "--context-length", length)
    assert result.exit_code == 2 and "expected numbers of positions from 1 on" in result.stderr


def test_a_missing_compiler_is_told_before_the_export(
    tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise provider.NpuUnavailable("onnxruntime-qnn is not installed")

    monkeypatch.setattr(provider, "device", missing)
    result = export(tiny_lfm, tmp_path / "out", *SMALL, "--soc", "sm8750")
    assert result.exit_code == 2 and "onnxruntime-qnn is not installed" in result.stderr
    assert not (tmp_path / "out").exists()


# --- the artifact -----------------------------------------------------------------------------------------------------


def test_the_sample_is_exported_and_answers_through_the_runtime(tiny_lfm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = export(tiny_lfm, folder, *SMALL, "--precision", "q8", "--weight-budget", "600KB", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    manifest = json.loads(Path(found["model"]).read_text())
    assert Artifact.open(folder).model_path == Path(found["model"])
    assert [part["layers"] for part in manifest["parts"]] == [part["layers"] for part in found["parts"]]
    assert len(manifest["parts"]) > 1 and manifest["chunk"] == 16 and manifest["context_lengths"] == [64]
    assert manifest["precision"]["weights"] == "int8"
    assert found["calibration"] == "own and shipped text"
    assert found["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert found["compile_command"] == f"lfm-onnx compile {folder} --soc sm8750"
    model = LfmModel.load(folder, npu=NpuRunOptions(plan="npu", backend="cpu"), threads=1)
    assert model.prefill(model.new_state(), [1, 20, 30]).shape == (1280,)

    assert export(tiny_lfm, folder, *SMALL).exit_code == 2  # stands there already
    forced = export(tiny_lfm, folder, *SMALL, "--force")
    assert forced.exit_code == 0 and "next: lfm-onnx compile" in forced.stdout
    assert json.loads(Path(found["model"]).read_text())["precision"]["weights"] == "int4"


def test_calibration_is_on_the_text_that_is_given(
    tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def look(_: Any, sequences: Any, *__: Any) -> None:
        given.extend(sequences)
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "calibrate", look)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"A cat in a town has {n} apples and two dogs." for n in range(40)))
    result = export(tiny_lfm, tmp_path / "out", *SMALL, "--calibration", str(text))
    assert result.exit_code == 130
    assert 0 < sum(map(len, given)) <= 32
    assert not (tmp_path / "out").exists()


@needs_emulator
def test_with_a_chip_the_export_is_compiled_at_once(tiny_lfm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = export(tiny_lfm, folder, *SMALL, "--precision", "q8", "--soc", "sm8750,sm8650", "--json")
    assert result.exit_code == 0, result.stderr
    compiled = json.loads(result.stdout)["compiled"]
    assert [record["soc"] for record in compiled] == ["sm8750", "sm8650"]
    for name in ("sm8750", "sm8650"):
        assert len(list((folder / "compiled" / name / "device" / "part0").glob("*.bin"))) == 1


@needs_emulator
def test_shared_experts_are_compiled_once_and_answer_as_on_the_cpu(tiny_lfm: Path, tmp_path: Path) -> None:
    sizes = []
    for name, arguments in (("apart", ()), ("shared", ("--share-experts", "--headroom", "2"))):
        folder = tmp_path / name
        result = export(tiny_lfm, folder, *SMALL, "--precision", "q8", "--soc", "sm8750", *arguments)
        assert result.exit_code == 0, result.stderr
        sizes += [path.stat().st_size for path in (folder / "compiled").rglob("*.bin")]
    assert len(sizes) == 2 and sizes[1] < 0.75 * sizes[0]
    manifest = json.loads(Artifact.open(folder).model_path.read_text())
    assert manifest["headroom"] == 2 and manifest["precision"]["moe_prefill"] == "gathered"
    on_cpu, on_npu = (
        LfmModel.load(folder, npu=NpuRunOptions(plan="npu", strict=True, backend=backend), threads=1)
        for backend in ("cpu", "qnn")
    )
    ids = list(range(20, 44))  # a chunk and a padded one
    wanted, found = (model.prefill(model.new_state(), ids) for model in (on_cpu, on_npu))
    assert np.argmax(wanted) == np.argmax(found) and np.abs(wanted - found).max() < 0.1 * wanted.std()
