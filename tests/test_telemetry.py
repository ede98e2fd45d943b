"""ONNX Runtime reports to its maker unless it is told otherwise: here it is told, whatever the way in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from artifact_factory import ArtifactFactory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="watches the calls of libc with a library of its own"
)

# Stands before libc's functions that open sockets and look names up, and notes each call in a file.
WATCH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void note(const char *what) {
  int file = open(getenv("WATCH_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (file >= 0) { if (write(file, what, strlen(what)) < 0) _exit(99); close(file); }
}
int socket(int domain, int type, int protocol) {
  note("socket\n");
  return ((int (*)(int, int, int))dlsym(RTLD_NEXT, "socket"))(domain, type, protocol);
}
int getaddrinfo(const char *node, const char *service, const void *hints, void **result) {
  note("getaddrinfo\n");
  int (*real)(const char *, const char *, const void *, void **) = dlsym(RTLD_NEXT, "getaddrinfo");
  return real(node, service, hints, result);
}
"""


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "watch.so"), str(folder / "watch.c"), "-ldl"]
    subprocess.run(command, check=True)
    return folder / "watch.so"


def watched(watch: Path, home: Path, *command: str, **settings: str) -> tuple[list[str], list[str]]:
    """Files that the command leaves in its HOME, and the calls that it made to the network."""
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "LD_PRELOAD": str(watch), "WATCH_LOG": str(home.parent / "calls"), **settings}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    log = home.parent / "calls"
    files = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    return files, log.read_text().split() if log.exists() else []


@pytest.mark.parametrize("way", ["command", "bench", "python", "runtime alone"])
def test_nothing_is_reported(way: str, watch: Path, exported_artifact: ArtifactFactory, tmp_path: Path) -> None:
    artifact = str(exported_artifact("sample"))
    arguments = {
        "command": ("-m", "lfm_onnx", "generate", artifact, "-p", "Hi", "--max-new-tokens", "2"),
        "bench": ("-m", "lfm_onnx", "bench", artifact, *["--prompt-tokens", "4", "--new-tokens", "2", "--repeat", "1"]),
        "python": ("-c", f"import lfm_onnx; lfm_onnx.load({artifact!r}).forward([1])"),
        "runtime alone": ("-c", "import lfm_onnx.artifact.artifact, onnxruntime as o; o.SessionOptions()"),
    }[way]
    assert watched(watch, tmp_path / "home", sys.executable, *arguments) == ([], [])


def test_the_watch_sees_what_onnx_runtime_leaves_where_it_may(watch: Path, tmp_path: Path) -> None:
    """Else the test above proves nothing. Versions before 1.30 and builds without telemetry leave nothing."""
    program = "import onnxruntime; onnxruntime.SessionOptions(); import socket; socket.socket()"
    files, calls = watched(watch, tmp_path / "home", sys.executable, "-c", program)
    assert calls == ["socket"]
    if not files:
        pytest.skip("this ONNX Runtime has no telemetry")
    assert any("deviceid" in name for name in files)


def test_a_user_who_wants_it_is_left_alone(tmp_path: Path) -> None:
    program = "import lfm_onnx, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_doctor_says_so() -> None:
    command = [sys.executable, "-m", "lfm_onnx", "doctor", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for value, state in ((None, "off"), ("1", "off"), ("0", "as ONNX Runtime has it")):
        setting = {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
        done = subprocess.run(command, env=environment | setting, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["telemetry"].startswith(state)
