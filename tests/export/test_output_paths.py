"""Links, strangers' folders and files beside the output are neither followed nor removed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.cli.main import main
from lfm_onnx.errors import OutputError
from lfm_onnx.export import ExportOptions, export_checkpoint
from lfm_onnx.export.journal import JOURNAL, start_journal
from lfm_onnx.export.output_folder import check_target, output_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses symbolic links")

SHORT = ExportOptions(context_length=64)
REPLACE = ExportOptions(context_length=64, replace=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    (folder / "sub").mkdir(parents=True)
    (folder / "thesis.txt").write_text("thesis")
    (folder / "sub" / "key").write_text("key")
    return folder


def link(place: Path, precious: Path) -> None:
    place.symlink_to(precious)


def copy(place: Path, precious: Path) -> None:
    shutil.copytree(precious, place)


def file(place: Path, precious: Path) -> None:
    place.write_text("mine")


def dangling(place: Path, precious: Path) -> None:
    place.symlink_to("nowhere")


def pipe(place: Path, precious: Path) -> None:
    os.mkfifo(place)


@pytest.mark.parametrize("put", [link, copy, file, dangling, pipe])
def test_a_stranger_with_the_name_of_the_unfinished_folder_is_refused_by_name(
    put: Callable[[Path, Path], None], precious: Path, tiny_lfm: Path, tmp_path: Path
) -> None:
    place = tmp_path / "shared" / ".out.partial"
    place.parent.mkdir()
    put(place, precious)
    before = contents(precious), place.lstat().st_ino

    result = CliRunner().invoke(main, ["export", str(tiny_lfm), "-o", str(tmp_path / "shared" / "out")])
    assert result.exit_code == 2
    assert str(place) in result.stderr and len(result.stderr.splitlines()) == 1
    assert (contents(precious), place.lstat().st_ino) == before
    assert os.listdir(place.parent) == [".out.partial"]


def test_a_stranger_there_is_found_before_the_work(precious: Path, tiny_lfm: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.partial").symlink_to(precious)
    with pytest.raises(OutputError, match=r"\.out\.partial is a link"):
        check_target(tmp_path / "out", replace=False)


@pytest.mark.parametrize("length", [246, 250, 300])
def test_a_name_too_long_for_its_companions_is_one_line(length: int, tiny_lfm: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(tiny_lfm), "-o", str(tmp_path / ("o" * length))])
    assert result.exit_code == 2
    assert "too long" in result.stderr and len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_links_inside_the_unfinished_folder_are_not_written_through(
    precious: Path, tiny_lfm: Path, tmp_path: Path
) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    start_journal(partial, [{"fingerprint": "of another run"}])
    (partial / "onnx").symlink_to(precious)
    (partial / "config.json").symlink_to(precious / "thesis.txt")
    before = contents(precious)
    export_checkpoint(Checkpoint.open(tiny_lfm), tmp_path / "out", SHORT)
    assert contents(precious) == before
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    Artifact.open(tmp_path / "out", verify="full")


@pytest.mark.parametrize("put", [link, copy, file, dangling, pipe])
def test_a_stranger_with_the_name_of_the_replaced_folder_is_left_and_blocks_nothing(
    put: Callable[[Path, Path], None], precious: Path, tiny_lfm: Path, tmp_path: Path
) -> None:
    output, place = tmp_path / "shared" / "out", tmp_path / "shared" / ".out.replaced"
    export_checkpoint(Checkpoint.open(tiny_lfm), output)
    put(place, precious)
    before = contents(precious), place.lstat().st_ino
    export_checkpoint(Checkpoint.open(tiny_lfm), output, REPLACE)
    assert Artifact.open(output, verify="full").context_length == 64
    assert (contents(precious), place.lstat().st_ino) == before
    assert sorted(os.listdir(output.parent)) == [".out.replaced", "out"]


def test_a_replaced_artifact_whose_removal_was_interrupted_is_removed_by_the_next_run(
    tiny_lfm: Path, tmp_path: Path
) -> None:
    """It has lost its manifest first: it is never put back as an artifact."""
    aside = tmp_path / ".out.replaced-2"
    (aside / "onnx").mkdir(parents=True)
    start_journal(aside, [{"fingerprint": "of that run"}])
    export_checkpoint(Checkpoint.open(tiny_lfm), tmp_path / "out", SHORT)
    assert os.listdir(tmp_path) == ["out"]


def test_a_journal_left_in_an_artifact_does_not_block_its_replacing(tiny_lfm: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    export_checkpoint(Checkpoint.open(tiny_lfm), output, SHORT)
    start_journal(output, [{"fingerprint": "of a run killed behind the last rename"}])
    export_checkpoint(Checkpoint.open(tiny_lfm), output, REPLACE)
    assert not (output / JOURNAL).exists()
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("put", [link, file, dangling])
def test_a_lock_is_no_way_to_another_file(
    put: Callable[[Path, Path], None], precious: Path, tiny_lfm: Path, tmp_path: Path
) -> None:
    lock = tmp_path / ".out.lock"
    put(lock, precious / "thesis.txt")
    before = contents(precious)
    result = CliRunner().invoke(main, ["export", str(tiny_lfm), "-o", str(tmp_path / "out")])
    assert result.exit_code == (2 if lock.is_symlink() else 0), result.stderr
    assert contents(precious) == before
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("spelling", ["../out", ".", "../x/../out", "{}"])
def test_an_artifact_is_not_replaced_from_inside_its_folder(
    spelling: str, tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    export_checkpoint(Checkpoint.open(tiny_lfm), output, SHORT)
    before = contents(output)
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(output)
    result = CliRunner().invoke(main, ["export", str(tiny_lfm), "-o", spelling.format(output), "--force"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {output} is where you are") and len(result.stderr.splitlines()) == 1
    assert contents(output) == before
    assert sorted(os.listdir(tmp_path)) == ["out", "x"]


def test_a_path_with_dots_and_links_is_the_folder_that_it_leads_to(tiny_lfm: Path, tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    assert output_folder(tmp_path / "link" / ".." / "out") == tmp_path.resolve() / "real" / "out"
    assert output_folder(tmp_path / "link" / "..") == tmp_path.resolve() / "real"
    export_checkpoint(Checkpoint.open(tiny_lfm), tmp_path / "link" / "out", SHORT)
    assert os.listdir(tmp_path / "real" / "deep") == ["out"]


def test_what_is_read_is_not_replaced(tiny_lfm: Path, tmp_path: Path) -> None:
    """An artifact quantized onto itself would lose the weights that it came from; so would a checkpoint."""
    artifact = tmp_path / "artifact"
    export_checkpoint(Checkpoint.open(tiny_lfm), artifact, SHORT)
    (tmp_path / "same").symlink_to(tmp_path)
    for output in (artifact, tmp_path / "same" / "artifact"):
        result = CliRunner().invoke(
            main, ["quantize", str(artifact), "-o", str(output), "--precision", "q4", "--method", "rtn", "--force"]
        )
        assert result.exit_code == 2
        assert "is the folder that is read" in result.stderr
    Artifact.open(artifact, verify="full")
    checkpoint = shutil.copytree(tiny_lfm, tmp_path / "checkpoint")
    before = contents(checkpoint)
    with pytest.raises(OutputError, match="is the folder that is read"):
        export_checkpoint(Checkpoint.open(checkpoint), checkpoint, REPLACE)
    assert contents(checkpoint) == before


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("/", "is a mount point"),
        ("/.", "is a mount point"),
        ("a/" * 1500, "1500 folders deep"),
        pytest.param("/proc/out", "cannot be written", marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="")),
    ],
)
def test_a_place_that_no_artifact_can_have_is_said_in_one_line(
    output: str, reason: str, tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["export", str(tiny_lfm), "-o", output, "--force"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert reason in line or "not writable" in line  # to a user other than root
    assert os.listdir(tmp_path) == []
