"""The native library says what it is, refuses what it cannot serve, and is clean under the sanitizers."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lfm_onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from lfm_onnx.cli.doctor import doctor
from lfm_onnx.runtime.native_library import native_status, ops_library_path
from native_models import (
    ISAS,
    environment,
    needs_library,
)

NATIVE = Path(lfm_onnx.__file__).parent / "runtime" / "native"


@needs_library
def test_an_unknown_instruction_set_is_refused_with_the_choices() -> None:
    with environment("LFM_OPS_ISA", "sse9"):
        with pytest.raises(Exception, match=r"LFM_OPS_ISA is 'sse9'.*choose from .*scalar"):
            ort.SessionOptions().register_custom_ops_library(str(ops_library_path()))
        assert native_status().isa is None
        assert "choose from" in native_status().note


@needs_library
def test_a_runtime_older_than_the_api_gets_an_error_not_a_crash() -> None:
    library = ctypes.CDLL(str(ops_library_path()))
    message = []
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, text: message.append((code, text)) or 1
    )
    functions = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(functions) if version < 17 else None
    )
    version = ctypes.create_string_buffer(b"1.16.3")
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(version))
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version, ctypes.c_void_p))
    library.RegisterCustomOps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert library.RegisterCustomOps(None, ctypes.addressof(base)) == 1
    assert message == [(1, b"lfm_ops: expected ONNX Runtime 1.17 or newer, found 1.16.3")]


@needs_library
def test_the_library_says_which_kernels_it_has() -> None:
    status = native_status()
    assert status.note == "" and status.version == lfm_onnx.__version__
    assert status.isa == status.available[0] and status.available[-1] == "scalar"
    for isa in ISAS:
        with environment("LFM_OPS_ISA", isa):
            assert native_status().isa == isa


def test_the_environment_switches_the_library_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM_ONNX_NATIVE", "0")
    assert ops_library_path() is None
    assert native_status().path is None and "LFM_ONNX_NATIVE=0" in native_status().note


def test_doctor_tells_what_is_in_use() -> None:
    result = CliRunner().invoke(doctor, ["--json"])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["packages"]["onnxruntime"] == ort.__version__
    assert found["native"]["isa"] == native_status().isa
    assert "CPUExecutionProvider" in found["providers"] and found["threads"] >= 1
    text = CliRunner().invoke(doctor).output
    assert ort.__version__ in text and (native_status().isa or "not built") in text


# --- sanitizers -------------------------------------------------------------------------------------------------------

needs_cmake = pytest.mark.skipif(
    not shutil.which("cmake") or not shutil.which(os.environ.get("CXX", "c++")), reason="no cmake or no C++ compiler"
)


@needs_cmake
@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers' options are those of Linux compilers")
@pytest.mark.parametrize("options", ["-DLFM_SANITIZE=address,undefined", "-DLFM_SANITIZE=thread -DLFM_PORTABLE=ON"])
def test_the_kernels_are_clean_under_sanitizers(options: str, tmp_path: Path) -> None:
    # What threads share is the same for every instruction set: there the portable kernels are enough.
    configure = ["cmake", "-S", str(NATIVE), "-B", str(tmp_path), "-DLFM_BUILD_TESTS=ON", "-DLFM_WARNINGS_AS_ERRORS=ON"]
    for command in (
        [*configure, *options.split()],
        ["cmake", "--build", str(tmp_path), "--parallel", "2", "--target", "native_test"],
        [str(tmp_path / "native_test")],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "all statements hold" in done.stdout
