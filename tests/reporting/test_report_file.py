"""A report is tried before the work, and replaces an older one as a whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lfm_onnx.errors import OutputError
from lfm_onnx.reporting import file as report_file
from lfm_onnx.reporting.file import require_report_file, write_report_file

OLDER = "an older, whole report"


def write(path: Path, text: str = "new") -> None:
    write_report_file(path, lambda: text, lambda: text)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_report_replaces_an_older_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    report = tmp_path / "r.md"
    for text in ("one", "two"):
        write(report, text)
        assert report.read_text() == text
    assert os.listdir(tmp_path) == ["r.md"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_cannot_be_written_leaves_the_older_report_whole(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "r.md"
    report.write_text(OLDER)
    monkeypatch.setattr(report_file.os, call, full_disk)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        write(report)
    assert report.read_text() == OLDER
    assert os.listdir(tmp_path) == ["r.md"]


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "missing" / "r.md")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.skipif(sys.platform == "win32", reason="uses links and pipes")
@pytest.mark.parametrize("put", [a_folder, a_pipe, a_device, a_link_to_nowhere, a_loop])
def test_what_is_no_place_for_a_report_is_refused_before_the_work(put: Callable[[Path], None], tmp_path: Path) -> None:
    report = tmp_path / "r.md"
    put(report)
    with pytest.raises(OutputError, match=r"`report`: .*r\.md"):
        require_report_file(report)
    assert os.listdir(tmp_path) == ["r.md"]


def test_a_folder_that_takes_no_file_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        require_report_file(tmp_path / "r.md")


@pytest.mark.parametrize("name", ["x" * 300 + ".md", "y" * 300 + "/r.md"])
def test_a_name_that_no_file_can_have_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"`report`: .*: (cannot be written|expected a file)"):
        require_report_file(tmp_path / name)


@pytest.mark.skipif(sys.platform == "win32", reason="uses links and modes")
def test_a_link_to_a_report_stays_one_and_modes_stay(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "r.md").write_text(OLDER)
    (tmp_path / "kept" / "r.md").chmod(0o640)
    (tmp_path / "r.md").symlink_to(tmp_path / "kept" / "r.md")
    write(tmp_path / "r.md")
    assert (tmp_path / "r.md").is_symlink()
    assert (tmp_path / "kept" / "r.md").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "kept" / "r.md").stat().st_mode) == 0o640
