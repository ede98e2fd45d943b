"""Whatever stands in the place of a file, a pipe, a device, a folder, gigabytes: one line, at once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from lfm_onnx.artifact import artifact as artifact_module
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.checkpoint.checkpoint import TOKENIZER_FILES, Checkpoint
from lfm_onnx.cli.main import main
from lfm_onnx.errors import ArtifactError, CheckpointError
from lfm_onnx.export import ExportOptions, export_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses pipes and links")

INDEX = "model.safetensors.index.json"
SECRET = '{"token": "of somebody"}'


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def gigabytes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def one_line(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def checkpoint(tiny_lfm: Path, tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    target.mkdir()
    for file in tiny_lfm.iterdir():
        if file.is_file():
            (target / file.name).symlink_to(file) if file.suffix == ".safetensors" else shutil.copy(file, target)
    return target


@pytest.mark.parametrize("put", [pipe, folder, device, gigabytes, dangling])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", INDEX, *TOKENIZER_FILES])
def test_a_checkpoint_holds_files(name: str, put: Callable[[Path], None], checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    if name == INDEX:
        (checkpoint / "model.safetensors").unlink()
    put(checkpoint / name)
    line = one_line("export", str(checkpoint), "-o", str(tmp_path / "out"))
    assert len(line) < 400
    if put is not dangling:
        assert str(checkpoint) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("put", [pipe, folder, device, gigabytes, dangling])
@pytest.mark.parametrize("option", ["--prompts", "--tasks", "--recipe", "--calibration", "--tools"])
def test_files_that_options_name_are_files(
    option: str, put: Callable[[Path], None], tiny_lfm: Path, tmp_path: Path
) -> None:
    given = tmp_path / ("given.txt" if option == "--calibration" else "given.jsonl")
    put(given)
    if option in ("--recipe", "--calibration"):
        command = [
            "export",
            str(tiny_lfm),
            "-o",
            str(tmp_path / "out"),
            *(["--precision", "q4"] * (option != "--recipe")),
        ]
    else:
        export_checkpoint(Checkpoint.open(tiny_lfm), tmp_path / "a", ExportOptions(context_length=64))
        command = ["generate", str(tmp_path / "a"), "-p", "hi"] if option == "--tools" else [
            "parity", str(tmp_path / "a"), "--reference", str(tiny_lfm)
        ]  # fmt: skip
    assert str(given) in one_line(*command, option, str(given))


@pytest.mark.parametrize("option", ["--recipe", "--calibration"])
def test_names_that_no_file_can_have_are_one_line(option: str, tiny_lfm: Path, tmp_path: Path) -> None:
    command = ["export", str(tiny_lfm), "-o", str(tmp_path / "out"), *(["--precision", "q4"] * (option != "--recipe"))]
    assert "x" * 300 in one_line(*command, option, "x" * 300)


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_link_that_leads_out_of_the_checkpoint_is_not_copied(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text(SECRET)
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(tmp_path / "secret.json")
    line = one_line("export", str(checkpoint), "-o", str(tmp_path / "out"), "--no-tokenizer")
    assert str(checkpoint / name) in line and "leads out of the checkpoint" in line
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "secret.json"]


def test_links_of_a_hubs_cache_and_inside_the_folder_are_followed(tiny_lfm: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--LiquidAI--sample"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(path for path in tiny_lfm.iterdir() if path.is_file()):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    export_checkpoint(Checkpoint.open(snapshot), tmp_path / "out", ExportOptions(context_length=64))
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))

    # A folder that --local-dir filled once had links to the cache; the folder itself may be one, too.
    local = tmp_path / "local"
    local.mkdir()
    for path in snapshot.iterdir():
        (local / path.name).symlink_to(path)
    (tmp_path / "same").symlink_to(local)
    export_checkpoint(Checkpoint.open(tmp_path / "same"), tmp_path / "again", ExportOptions(context_length=64))
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "out" / "tokenizer.json").read_bytes()


def test_files_of_an_artifact_that_belong_to_another_user_are_one_line(
    tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_checkpoint(Checkpoint.open(tiny_lfm), tmp_path / "a", ExportOptions(context_length=64))

    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(artifact_module, "sample_digest", refused)
    with pytest.raises(ArtifactError, match=r"a/onnx/model\.onnx.*: cannot be read: Permission denied$"):
        Artifact.open(tmp_path / "a")


def test_a_link_to_itself_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError):
        Checkpoint.open(tmp_path / "loop")
