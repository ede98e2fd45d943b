"""A worker process answers in JSON; whatever ends it, its parent gets one error that says how."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from lfm_onnx.errors import InputError, OutputError
from lfm_onnx.runtime.worker_process import WorkerError, WorkerProcess

DOUBLING = """
import os, sys
from lfm_onnx.errors import InputError
from lfm_onnx.runtime.worker_process import serve

def double(request):
    os.write(1, b"a library says hello\\n"); print("and again")
    if request["value"] < 0:
        raise InputError("expected 0 or more")
    return {"doubled": 2 * request["value"]}

serve(double)
"""


def worker(program: str, log_file: Path | None = None) -> WorkerProcess:
    return WorkerProcess([sys.executable, "-c", program], "the worker", log_file=log_file)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_requests_are_answered_one_after_another_whatever_libraries_print() -> None:
    with worker(DOUBLING) as process:
        assert [process.ask({"value": value})["doubled"] for value in (1, 20)] == [2, 40]
        with pytest.raises(WorkerError, match=r"^expected 0 or more$"):
            process.ask({"value": -1})
        assert process.ask({"value": 3}) == {"doubled": 6}
        assert "a library says hello" in process.log()


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("import sys; sys.exit('cannot go on')", "ended", "the worker ended with exit code 1: cannot go on"),
        ("raise ValueError('that too')", "ended", "the worker ended with exit code 1: ValueError: that too"),
        ("pass", "ended", "the worker ended with exit code 0: it said nothing"),
        ("print('loading …')", "garbled", r"the worker wrote something that is no reply: 'loading \u2026'"),
        ("print('[1, 2]')", "garbled", "the worker wrote something that is no reply: '[1, 2]'"),
        ("print('[' * 100000)", "garbled", None),
        ("print('{\"result\": 3}')", "garbled", None),
        ("print('{\"result\"', end='')", "ended", "the worker ended with exit code 0: it said nothing"),
        ("import sys; sys.stdout.buffer.write(bytes([255, 10]))", "garbled", None),
    ],
)
def test_every_other_ending_is_one_line(
    program: str, kind: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    with pytest.raises(WorkerError) as raised, worker(program) as process:
        process.ask({})
    assert raised.value.kind == kind
    assert message is None or str(raised.value) == message
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_killed_worker_hints_at_memory_and_a_crashed_one_names_the_signal() -> None:
    with pytest.raises(WorkerError, match="signal 9, mostly a sign that memory ran out") as killed:
        worker("import os; os.kill(os.getpid(), 9)").ask({})
    assert killed.value.kind == "killed"
    with pytest.raises(WorkerError, match="was ended by signal 6"):
        worker("import os; os.abort()").ask({})


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_an_interrupt_ends_the_worker_at_once(tmp_path: Path) -> None:
    """The parent is interrupted while it waits for the reply, the worker is not."""
    interrupting = (
        "import os, signal, sys, time; print(os.getpid(), file=sys.stderr, flush=True)\n"
        f"os.kill({os.getpid()}, signal.SIGINT); time.sleep(600)"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), worker(interrupting, tmp_path / "log") as process:
            process.ask({})
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_alive(int((tmp_path / "log").read_text()))


def test_an_error_in_the_block_ends_the_worker_at_once() -> None:
    with pytest.raises(InputError), worker("import time; time.sleep(600)"):
        raise InputError("something else")


def test_a_program_or_a_log_that_is_not_possible_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="cannot be started") as raised:
        WorkerProcess([str(tmp_path / "nothing")], "the worker")
    assert raised.value.kind == "missing"
    with pytest.raises(OutputError, match="cannot be written"):
        worker("pass", tmp_path)


def test_a_log_file_keeps_what_was_said(tmp_path: Path) -> None:
    with worker(DOUBLING, tmp_path / "log") as process:
        process.ask({"value": 1})
    assert "a library says hello" in (tmp_path / "log").read_text()
