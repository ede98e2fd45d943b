"""A user's mistake ends as one line on stderr that names the file or field, exit code 2, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from click.testing import CliRunner
from lfm_onnx.cli.main import main
from lfm_onnx.export import output_folder
from safetensors.numpy import load_file, save_file

Change = Callable[[Path], object]


def refusal(arguments: list[str | Path], watched: Path) -> str:
    """The line that the command ends with; ``watched`` must hold the same files, byte for byte, afterwards."""
    before = snapshot(watched)
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and line.isprintable() and len(line) < 600
    assert snapshot(watched) == before
    return line


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Contents of every file below the folder, None for what is no file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


# --- checkpoints ------------------------------------------------------------------------------------------------------

WEIGHTS = "model.safetensors"


def edit_json(name: str, edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        edit(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def config(**fields: Any) -> Change:
    return edit_json("config.json", lambda content: content.update(fields))


def no_field(name: str) -> Change:
    return edit_json("config.json", lambda content: content.pop(name))


def rewrite(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def truncate(name: str) -> Change:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def tensors(edit: Callable[[dict[str, np.ndarray]], object]) -> Change:
    def change(folder: Path) -> None:
        content = dict(load_file(folder / WEIGHTS))
        edit(content)
        save_file(content, folder / WEIGHTS)

    return change


def header(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Rewrite the header of the weights; the data behind it stays."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + size])
        edit(content)
        text = json.dumps(content).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return change


def header_size(size: int) -> Change:
    def change(folder: Path) -> None:
        with (folder / WEIGHTS).open("r+b") as file:
            file.write(struct.pack("<Q", size))

    return change


def sharded(weight_map: Callable[[dict[str, str]], object]) -> Change:
    """Turn the file into a shard of an index, whose weight_map is then edited."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        names = load_file(folder / "model-00001-of-00001.safetensors")
        places = dict.fromkeys(names, "model-00001-of-00001.safetensors")
        weight_map(places)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    return change


NORM = "model.embedding_norm.weight"

# What is done to a good checkpoint, and what the line must name.
BAD_CHECKPOINTS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "truncated weights": (truncate(WEIGHTS), (WEIGHTS,)),
    "empty weights": (rewrite(WEIGHTS, b""), (WEIGHTS,)),
    "weights that are text": (rewrite(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n" * 3), (WEIGHTS,)),
    "header of 2^60 bytes": (header_size(2**60), (WEIGHTS, "header")),
    "header of 2^64-1 bytes": (header_size(2**64 - 1), (WEIGHTS, "header")),
    "header cut in the middle": (header_size(100), (WEIGHTS, "header")),
    "offsets outside the file": (
        header(lambda content: content[NORM].update(data_offsets=[10**9, 10**9 + 256])),
        (WEIGHTS, NORM),
    ),
    "overlapping offsets": (
        header(lambda content: content[NORM].update(data_offsets=[0, content[NORM]["shape"][0] * 2])),
        (WEIGHTS, "model."),
    ),
    "size that does not fit the shape": (header(lambda content: content[NORM].update(shape=[3])), (WEIGHTS, NORM)),
    "integer weights": (header(lambda content: content[NORM].update(dtype="I16")), (WEIGHTS, NORM, "I16")),
    "missing tensor": (tensors(lambda content: content.pop(NORM)), ("missing", NORM)),
    "extra tensor": (
        tensors(lambda content: content.update({"model.vision.weight": np.zeros(3, np.float32)})),
        ("unexpected", "model.vision.weight"),
    ),
    "mis-shaped tensor": (
        tensors(lambda content: content.update({NORM: np.zeros(65, np.float32)})),
        (NORM, "[65]"),
    ),
    "no weights": (remove(WEIGHTS), ("no weights",)),
    "index that names a missing shard": (
        sharded(lambda places: places.update({NORM: "model-00002-of-00002.safetensors"})),
        ("model.safetensors.index.json", "model-00002-of-00002.safetensors"),
    ),
    "index that leaves the folder": (
        sharded(lambda places: places.update({NORM: "../secret.safetensors"})),
        ("model.safetensors.index.json", "../secret.safetensors"),
    ),
    "no config": (remove("config.json"), ("config.json",)),
    "config that is no JSON": (rewrite("config.json", b"{"), ("config.json",)),
    "config that is a list": (rewrite("config.json", b"[]"), ("config.json",)),
    **{
        f"no {name}": (no_field(name), ("config.json", name))
        for name in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")
    },
    "another model": (config(model_type="llama"), ("config.json", "model_type", "llama")),
    "vision model": (config(model_type="lfm2_vl"), ("config.json", "model_type", "lfm2_vl")),
    "layer_types too short": (config(layer_types=["conv"]), ("config.json", "layer_types")),
    "unknown layer type": (config(layer_types=["conv", "mamba", "conv", "conv"]), ("config.json", "mamba")),
    "top-k above experts": (config(num_experts_per_tok=9), ("config.json", "num_experts_per_tok", "9")),
    "heads that do not divide hidden": (config(num_attention_heads=6), ("config.json", "num_attention_heads", "6")),
    "kv heads that do not divide heads": (config(num_key_value_heads=3), ("config.json", "num_key_value_heads", "3")),
    "dense layers above layers": (config(num_dense_layers=5), ("config.json", "num_dense_layers", "5")),
    "hidden size of zero": (config(hidden_size=0), ("config.json", "hidden_size")),
    "hidden size in words": (config(hidden_size="wide"), ("config.json", "hidden_size", "wide")),
    "a size other than the weights'": (config(vocab_size=97), ("model.embed_tokens.weight", "97")),
    "quantized checkpoint": (config(quantization_config={"bits": 4}), ("config.json", "quantization_config")),
    "scaled rope": (
        config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}),
        ("config.json", "rope_type", "yarn"),
    ),
    "other activation": (config(hidden_act="gelu"), ("config.json", "hidden_act", "gelu")),
}


@pytest.fixture
def checkpoint(variant_checkpoint: Callable[..., Path], tiny_lfm: Path, tmp_path: Path) -> Path:
    """A good checkpoint with a tokenizer, of its own for the test to spoil."""
    folder = Path(shutil.copytree(variant_checkpoint("moe_fp32"), tmp_path / "checkpoint"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(tiny_lfm / name, folder / name)
    return folder


def test_the_checkpoint_that_is_spoilt_below_is_good(checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(checkpoint), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0
    (note,) = result.stderr.splitlines()
    assert note.startswith("note: tokenizer.json has 1184 tokens beyond the model's vocabulary of 96")


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    spoil, named = BAD_CHECKPOINTS[name]
    spoil(checkpoint)
    line = refusal(["export", checkpoint, "-o", tmp_path / "deep" / "out"], tmp_path)
    assert all(word in line for word in named), line


@pytest.mark.parametrize("name", ["truncated weights", "no config", "top-k above experts"])
def test_a_bad_reference_is_refused(name: str, checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    spoil, named = BAD_CHECKPOINTS[name]
    spoil(checkpoint)
    report = tmp_path / "report.html"
    line = refusal(["parity", artifact, "--reference", checkpoint, "--report", report], tmp_path)
    assert all(word in line for word in named), line


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (remove("tokenizer.json"), ("tokenizer.json", "--no-tokenizer")),
        (rewrite("tokenizer.json", b"{"), ("tokenizer.json", "not JSON")),
        (rewrite("tokenizer.json", b"[]"), ("tokenizer.json",)),
        (rewrite("tokenizer_config.json", b"\xff"), ("tokenizer_config.json",)),
        (rewrite("generation_config.json", b'{"temperature": NaN}'), ("generation_config.json", "NaN")),
        (rewrite("chat_template.jinja", b"{{ '\xff' }}"), ("chat_template.jinja",)),
    ],
    ids=["missing", "broken", "a list", "not UTF-8", "generation", "template"],
)
def test_bad_tokenizer_files_are_refused_before_any_weight_is_written(
    spoil: Change, named: tuple[str, ...], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(checkpoint)
    monkeypatch.setattr("lfm_onnx.export.exporter.write_data_file", lambda *arguments: pytest.fail("wrote weights"))
    line = refusal(["export", checkpoint, "-o", tmp_path / "out"], tmp_path)
    assert all(word in line for word in named), line


def test_a_source_that_is_no_checkpoint_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty").mkdir()
    for source, named in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "model.gguf", "GGUF"),
        (tmp_path / "empty", "config.json"),
    ):
        line = refusal(["export", source, "-o", tmp_path / "out"], tmp_path)
        assert str(source) in line and named in line


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for output, named in (
        (tmp_path / "full", "not empty"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "file" / "out", "is not a folder"),
        (tmp_path / "dangling", "is not a folder"),
        (tmp_path / ("long" * 100), "File name too long"),
    ):
        line = refusal(["export", checkpoint, "-o", output], tmp_path)
        assert str(output if named != "is not a folder" else output.parent) in line and named in line
        assert refusal(["export", checkpoint, "-o", output, "--force"], tmp_path) == line


def test_a_folder_without_write_permission_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_folder.os, "access", lambda path, mode: False)
    line = refusal(["export", checkpoint, "-o", tmp_path / "out"], tmp_path)
    assert f"{tmp_path} is not writable" in line


def test_a_disk_without_space_is_refused_with_the_numbers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 0))
    line = refusal(["export", checkpoint, "-o", tmp_path / "deep" / "out"], tmp_path)
    assert re.search(r"[0-9.]+ MB are needed, 0 B are free", line)


def test_a_context_beyond_the_models_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    line = refusal(["export", checkpoint, "-o", tmp_path / "out", "--context-length", "513"], tmp_path)
    assert "513" in line and "512" in line and "max_position_embeddings" in line


# --- artifacts --------------------------------------------------------------------------------------------------------

MANIFEST = "lfm_manifest.json"


@pytest.fixture(scope="module")
def good_artifact(exported_artifact: ArtifactFactory) -> Path:
    return exported_artifact(SAMPLE)


@pytest.fixture
def artifact(good_artifact: Path, tmp_path: Path) -> Path:
    """A good artifact of the test's own."""
    return Path(shutil.copytree(good_artifact, tmp_path / "artifact"))


@pytest.fixture(params=["generate", "chat", "inspect", "parity"])
def command(request: pytest.FixtureRequest, tiny_lfm: Path) -> Callable[[Path], list[str | Path]]:
    """command(folder) -> arguments of each command that reads an artifact."""
    options = {"generate": ["-p", "hello"], "parity": ["--reference", tiny_lfm]}.get(request.param, [])
    return lambda folder: [request.param, folder, *options]


def flip(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(bytes(byte ^ 1 for byte in (folder / name).read_bytes()))


BAD_ARTIFACTS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "not a folder": (shutil.rmtree, ("is not a folder",)),
    "no manifest": (remove(MANIFEST), (MANIFEST,)),
    "newer manifest": (edit_json(MANIFEST, lambda content: content.update(manifest_version=2)), (MANIFEST, "update")),
    "manifest that is no JSON": (rewrite(MANIFEST, b"{]"), (MANIFEST, "not JSON")),
    "manifest without files": (edit_json(MANIFEST, lambda content: content.pop("files")), (MANIFEST, "files")),
    "manifest that leaves the folder": (
        edit_json(MANIFEST, lambda content: content["files"][0].update(path="../../etc/passwd")),
        (MANIFEST, "../../etc/passwd"),
    ),
    "graph replaced after export": (flip("onnx/model.onnx"), ("model.onnx", "SHA-256")),
    "weights replaced after export": (flip("onnx/model.onnx_data"), ("model.onnx_data", "SHA-256")),
    "weights cut short": (truncate("onnx/model.onnx_data"), ("model.onnx_data", "bytes")),
    "weights missing": (remove("onnx/model.onnx_data"), ("model.onnx_data", "missing")),
    "config missing": (remove("config.json"), ("config.json",)),
    "config of another model": (config(model_type="llama"), ("config.json", "model_type", "llama")),
}


@pytest.mark.parametrize("name", BAD_ARTIFACTS)
def test_a_bad_artifact_is_refused(
    name: str, command: Callable[[Path], list[str | Path]], artifact: Path, tmp_path: Path
) -> None:
    spoil, named = BAD_ARTIFACTS[name]
    spoil(artifact)
    line = refusal(command(artifact), tmp_path)
    assert all(word in line for word in named), line


@pytest.mark.parametrize(
    "spoil",
    [remove("tokenizer.json"), rewrite("tokenizer.json", b"{"), rewrite("tokenizer.json", b"{}")],
    ids=["missing", "broken", "empty"],
)
def test_an_artifact_with_a_bad_tokenizer_answers_nothing(spoil: Change, artifact: Path, tmp_path: Path) -> None:
    spoil(artifact)
    assert "tokenizer.json" in refusal(["generate", artifact, "-p", "hi"], tmp_path)


def test_parity_with_another_model_is_refused(artifact: Path, checkpoint: Path, tmp_path: Path) -> None:
    line = refusal(["parity", artifact, "--reference", checkpoint], tmp_path)
    assert str(checkpoint) in line or str(artifact) in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["generate", "-p", "hi", "--variant", "int4"], "int4"),
        (["generate", "-p", "hi", "--tools", "none.json"], "none.json"),
        (["generate", "-p", "hi", "--max-new-tokens", "0"], "max_new_tokens"),
        (["generate", "-p", "hi", "--temperature", "-1"], "temperature"),
        (["generate", "-p", "hi", "--top-p", "2"], "top_p"),
        (["generate", "-p", "hi", "--context-length", "100000"], "100000"),
        (["generate", "-p", "x " * 3000], "2048"),
        (["inspect", "--variant", "int4"], "int4"),
        (["parity", "--variant", "int4"], "int4"),
        (["parity", "--prompts", "none.txt"], "none.txt"),
        (["parity", "--tasks", "none.jsonl"], "none.jsonl"),
        (["parity", "--report", "report.pdf"], "report.pdf"),
        (["parity", "--report", "nowhere/report.html"], "nowhere"),
        (["parity", "--provider", "abacus"], "abacus"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_an_option_that_cannot_be_met_is_refused(
    options: list[str], named: str, good_artifact: Path, tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *rest = options
    reference = ["--reference", tiny_lfm] if name == "parity" else []
    assert named in refusal([name, good_artifact, *reference, *rest], tmp_path)


# --- a real process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["checkpoint", "output", "artifact", "offline"])
def test_a_shell_sees_one_line_and_exit_code_2(case: str, checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    """Nothing of the runtime's own logging and no traceback beside it."""
    truncate(WEIGHTS)(checkpoint)
    flip("onnx/model.onnx_data")(artifact)
    arguments: list[str | Path] = {
        "checkpoint": ["export", checkpoint, "-o", tmp_path / "out"],
        "output": ["export", checkpoint, "-o", checkpoint],
        "artifact": ["generate", artifact, "-p", "hi"],
        "offline": ["export", "some-org/no-such-model", "-o", tmp_path / "out"],
    }[case]
    before = snapshot(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "lfm_onnx", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    *progress, line = done.stderr.splitlines()
    assert line.startswith("Error: ") and "Traceback" not in done.stderr
    assert len(progress) <= (case == "offline")
    assert snapshot(tmp_path) == before
