"""An export that is killed, interrupted or out of space leaves no half artifact, and the next run goes on from it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.cli.main import main
from lfm_onnx.errors import OutputError
from lfm_onnx.export import ExportOptions, export_checkpoint, exporter, output_folder, plan, resolve_export

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals and file systems")

# Runs the command line in a fork of itself per line of stdin: no test waits for Python and its imports more than once.
# Weights go to several small files. "hold" is [files, pieces]: after so many files and so many pieces of the next
# (or once it is written but not yet in the journal) the export says so and waits until "gate" is opened.
EXPORTS = """
import json, os, signal, sys
from lfm_onnx.cli.main import main
from lfm_onnx.cli import export  # a fork imports nothing
from lfm_onnx.export import data_files, exporter, plan

plan_data_files, write_data_file = data_files.plan_data_files, data_files.write_data_file
plan.plan_data_files = lambda *files: plan_data_files(*files, max_bytes=request["file_bytes"])
answers = os.dup(1)
left = [-1, 0]

def hold_where_nothing_is_left():
    if left == [0, 0]:
        left[0] = -1
        os.write(answers, b"held\\n")
        open(request["gate"]).close()

def write_and_hold(path, file, on_bytes):
    def count_piece(size):
        on_bytes(size)
        left[1] -= left[0] == 0
        hold_where_nothing_is_left()

    hold_where_nothing_is_left()
    digest = write_data_file(path, file, count_piece)
    if left[0] == 0:
        left[1] = 0
        hold_where_nothing_is_left()
    else:
        left[0] -= 1
    return digest

exporter.write_data_file = write_and_hold
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background is started without
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        os.write(answers, b"%d\\n" % os.getpid())
        left[:] = request["hold"] or left
        for number, path in enumerate((os.devnull, os.devnull, request["errors"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        if request["unchecked"]:
            exporter.check_space = lambda target, needed: None
        main(request["arguments"], prog_name="lfm-onnx")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(answers, b"%d\\n" % code)
"""


class Running:
    """An export at work in a process of its own."""

    def __init__(self, exports: subprocess.Popen[bytes], errors: Path, gate: Path) -> None:
        assert exports.stdout is not None
        self._answers, self._errors, self._gate = exports.stdout, errors, gate
        self._pid = int(self._answers.readline())
        self._code: int | None = None

    def held(self) -> Running:
        """This export, once it waits where it was asked to."""
        assert self._answer() == b"held\n", self._errors.read_text(encoding="utf-8")
        return self

    def go_on(self) -> None:
        self._gate.open("wb").close()

    def send(self, what: int) -> None:
        os.kill(self._pid, what)

    def ended(self, seconds: float) -> bool:
        """Whether it comes to its end within so many seconds."""
        return self._code is not None or bool(select.select([self._answers], [], [], seconds)[0])

    def finish(self) -> tuple[int, str]:
        """Exit code (the signal's number, negative, where one ended it) and what it wrote to stderr."""
        if self._code is None:
            while (answer := self._answer()) == b"held\n":  # where nobody waited for it
                pass
            self._code = int(answer)
        return self._code, self._errors.read_text(encoding="utf-8")

    def kill(self) -> tuple[int, str]:
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        return self.finish()

    def _answer(self) -> bytes:
        assert select.select([self._answers], [], [], 60)[0], "the export says nothing"
        return self._answers.readline()


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """start(checkpoint, output, *options, hold, unchecked, file_bytes) -> Running; two may run at once."""
    folder = tmp_path_factory.mktemp("stderr")
    command = [sys.executable, "-c", EXPORTS]
    servers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) for _ in range(2)]
    count = itertools.count()

    def start_one(
        checkpoint: Path,
        output: Path,
        *options: str,
        hold: tuple[int, int] | None = None,
        unchecked: bool = False,
        file_bytes: int = 700_000,
    ) -> Running:
        number = next(count)
        server, errors, gate = servers[number % 2], folder / f"{number}.txt", folder / f"{number}.gate"
        assert server.stdin is not None
        errors.touch()
        os.mkfifo(gate)
        request = {
            "arguments": ["export", str(checkpoint), "-o", str(output), *options],
            "errors": str(errors),
            "gate": str(gate),
            "hold": hold,
            "unchecked": unchecked,
            "file_bytes": file_bytes,
        }
        server.stdin.write(json.dumps(request).encode() + b"\n")
        return Running(server, errors, gate)

    yield start_one
    for server in servers:
        server.kill()
        server.communicate()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished_files(partial: Path) -> list[str]:
    """What the journal of an unfinished export says is complete."""
    journal = partial / "journal.jsonl"
    return [line.split('"')[3] for line in journal.read_text().splitlines()[1:]] if journal.is_file() else []


@pytest.fixture(scope="module")
def untouched(start: Start, tiny_lfm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The artifact of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("untouched") / "out"
    assert start(tiny_lfm, folder).finish() == (0, "")
    assert sum("onnx_data" in str(path) for path in folder.rglob("*")) > 5
    return contents(folder)


@pytest.mark.parametrize("moment", range(6))
def test_after_a_kill_nothing_is_there_and_the_next_run_goes_on(
    start: Start, moment: int, tiny_lfm: Path, tmp_path: Path, untouched: dict[str, bytes]
) -> None:
    """Killed while the file after the moment-th one is written; then run again and not disturbed."""
    output, partial = tmp_path / "out", tmp_path / ".out.partial"
    assert start(tiny_lfm, output, hold=(moment, moment % 4)).held().kill()[0] == -signal.SIGKILL

    assert not output.exists()
    done = {name: (partial / name).stat() for name in finished_files(partial)}
    assert len(done) == moment

    assert start(tiny_lfm, output).finish() == (0, "")
    assert contents(output) == untouched
    assert os.listdir(tmp_path) == ["out"]
    for name, status in done.items():
        kept = (output / name).stat()
        assert (kept.st_ino, kept.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)


def test_killed_again_and_again_it_still_ends_with_the_same_bytes(
    start: Start, tiny_lfm: Path, tmp_path: Path, untouched: dict[str, bytes]
) -> None:
    """Each run gets a little further than the one before, whatever it is killed in the middle of."""
    output = tmp_path / "out"
    for attempt in range(12):
        process = start(tiny_lfm, output, hold=(1, attempt % 4)) if attempt % 2 else start(tiny_lfm, output)
        process.ended(seconds=0.02 * attempt)
        process.kill()
        if output.exists():
            break
        assert set(os.listdir(tmp_path)) <= {".out.partial", ".out.lock"}
    assert start(tiny_lfm, output, "--force").finish()[0] == 0
    assert contents(output) == untouched
    assert os.listdir(tmp_path) == ["out"]


def test_a_finished_file_is_written_anew_when_the_checkpoint_has_changed(
    start: Start, tiny_lfm: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_lfm, tmp_path / "checkpoint"))
    output, partial = tmp_path / "out", tmp_path / ".out.partial"
    start(checkpoint, output, hold=(2, 1)).held().kill()
    before = (partial / "onnx" / "model.onnx_data").stat()

    os.utime(checkpoint / "model.safetensors", ns=(0, 0))
    assert start(checkpoint, output).finish() == (0, "")
    assert (output / "onnx" / "model.onnx_data").stat().st_mtime_ns != before.st_mtime_ns
    Artifact.open(output, verify="full")


def test_a_finished_file_that_was_cut_short_is_written_anew(
    start: Start, tiny_lfm: Path, tmp_path: Path, untouched: dict[str, bytes]
) -> None:
    output, partial = tmp_path / "out", tmp_path / ".out.partial"
    start(tiny_lfm, output, hold=(2, 1)).held().kill()
    os.truncate(partial / "onnx" / "model.onnx_data", 100)
    with (partial / "journal.jsonl").open("a") as journal:
        journal.write('{"name": "onnx/model.onnx_da')  # the line that was being written
    (partial / "onnx" / "left_over").write_text("x")

    assert start(tiny_lfm, output).finish() == (0, "")
    assert contents(output) == untouched


def test_a_kill_between_the_two_renames_loses_no_artifact(
    tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--force moves the old artifact aside first; a run killed right then has it put back by the next."""
    output = tmp_path / "out"
    export_checkpoint(Checkpoint.open(tiny_lfm), output)
    old = contents(output)
    rename = os.rename

    def killed_at_the_second(source: Path, target: Path) -> None:
        if Path(source).name == ".out.partial":
            raise KeyboardInterrupt
        rename(source, target)

    replace = ExportOptions(context_length=64, replace=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(Checkpoint.open(tiny_lfm), output, replace)
    assert not output.exists()

    with pytest.raises(OutputError, match="already holds an artifact"):
        export_checkpoint(Checkpoint.open(tiny_lfm), output)
    assert contents(output) == old
    export_checkpoint(Checkpoint.open(tiny_lfm), output, replace)
    assert Artifact.open(output, verify="full").context_length == 64
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_ends_with_one_line_and_keeps_what_is_done(
    start: Start, signal_name: str, tiny_lfm: Path, tmp_path: Path, untouched: dict[str, bytes]
) -> None:
    output, partial = tmp_path / "out", tmp_path / ".out.partial"
    process = start(tiny_lfm, output, hold=(2, 1)).held()
    process.send(getattr(signal, signal_name))
    code, errors = process.finish()
    assert code == 130
    assert errors.splitlines() == ["Interrupted."]
    assert os.listdir(tmp_path) == [".out.partial"]
    assert len(finished_files(partial)) >= 2

    assert start(tiny_lfm, output).finish() == (0, "")
    assert contents(output) == untouched


def test_two_exports_to_one_folder_do_not_meet(
    start: Start, tiny_lfm: Path, tmp_path: Path, untouched: dict[str, bytes]
) -> None:
    output = tmp_path / "out"
    first = start(tiny_lfm, output, hold=(1, 0)).held()
    code, errors = start(tiny_lfm, output).finish()
    assert code == 2
    assert errors.splitlines() == [
        f"Error: another export to {output} is running; wait for it or choose another folder"
    ]
    first.go_on()
    assert first.finish() == (0, "")
    assert contents(output) == untouched
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_quantized_export_killed_at_many_moments_ends_with_the_same_bytes(
    start: Start, method: str, tiny_lfm: Path, tmp_path: Path
) -> None:
    """Files so small that the codes of a weight and its scales lie in different ones: each run makes some again."""
    options = ("--precision", "q4", "--method", method, *(("--calibration-tokens", "64") if method == "gptq" else ()))
    assert start(tiny_lfm, tmp_path / "untouched", *options, file_bytes=30_000).finish() == (0, "")
    expected = contents(tmp_path / "untouched")
    files = sum("onnx_data" in name for name in expected)
    assert files > 20

    output, kills = tmp_path / "out", (files - 1) // 7
    assert kills > 3
    for kill in range(kills):
        start(tiny_lfm, output, *options, hold=(7, kill % 5), file_bytes=30_000).held().kill()
        assert not output.exists()
    assert start(tiny_lfm, output, *options, "--force", file_bytes=30_000).finish() == (0, "")
    assert contents(output) == expected


# --- space and rights -------------------------------------------------------------------------------------------------


def test_space_is_checked_before_with_the_numbers(
    tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 20_000_000, 20_000_000))
    result = CliRunner().invoke(main, ["export", str(tiny_lfm), "-o", str(tmp_path / "deep" / "out")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: not enough space for {tmp_path / 'deep' / 'out'}: 23.1 MB are needed, 20 MB are free; "
        "free some or choose another disk\n"
    )
    assert os.listdir(tmp_path) == []


def test_space_counts_what_an_interrupted_run_has_written_already(
    start: Start, tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny_lfm, tmp_path / "out", hold=(3, 0)).held().kill()
    finished = sum(
        (tmp_path / ".out.partial" / name).stat().st_size for name in finished_files(tmp_path / ".out.partial")
    )
    asked: list[int] = []
    monkeypatch.setattr(exporter, "check_space", lambda target, needed: asked.append(needed))
    from functools import partial

    from lfm_onnx.export.data_files import plan_data_files

    monkeypatch.setattr(plan, "plan_data_files", partial(plan_data_files, max_bytes=700_000))
    resolved = resolve_export(str(tiny_lfm), ExportOptions())
    export_checkpoint(resolved.checkpoint, tmp_path / "out", plan=resolved)
    assert asked == [resolved.data_bytes - finished + exporter.SMALL_FILES_BYTES]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own with ``size`` bytes."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_with_one_line_and_nothing_left(start: Start, tiny_lfm: Path, tmp_path: Path) -> None:
    """The check before is told of more space than there is, as when another process fills the disk meanwhile."""
    with small_disk(tmp_path / "disk", "3m") as disk:
        code, errors = start(tiny_lfm, disk / "out", unchecked=True).finish()
        assert code == 2
        assert errors == f"Error: writing {disk / 'out'} failed: No space left on device; nothing was kept\n"
        assert os.listdir(disk) == []


def test_a_disk_that_is_too_small_is_refused_before(start: Start, tiny_lfm: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "12m") as disk:
        code, errors = start(tiny_lfm, disk / "out").finish()
        assert code == 2
        assert errors.startswith(f"Error: not enough space for {disk / 'out'}: 23.1 MB are needed, 12.58 MB are free")
        assert os.listdir(disk) == []


def test_a_mounted_folder_is_refused_before(start: Start, tiny_lfm: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        code, errors = start(tiny_lfm, disk).finish()
        assert code == 2
        assert errors.splitlines() == [
            f"Error: {disk} is a mount point, which cannot be replaced by a rename; choose a folder in it"
        ]
        assert start(tiny_lfm, disk / "out").finish() == (0, "")
        Artifact.open(disk / "out", verify="full")


def test_a_folder_without_write_permission_is_refused(
    tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    if os.geteuid() == 0:  # root may write everywhere: ask the way that the export asks
        writable = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and writable(path, mode))
    for output in (locked / "out", locked / "deep" / "out"):
        result = CliRunner().invoke(main, ["export", str(tiny_lfm), "-o", str(output)])
        assert result.exit_code == 2
        assert result.stderr == f"Error: {locked} is not writable; choose another output folder\n"
    assert os.listdir(locked) == []


def test_a_read_only_file_system_is_refused(start: Start, tiny_lfm: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        code, errors = start(tiny_lfm, disk / "out").finish()
        assert code == 2
        assert errors.splitlines() == [f"Error: {disk} is not writable; choose another output folder"]
