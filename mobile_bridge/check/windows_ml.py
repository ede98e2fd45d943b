"""Check for Windows ML: a real load and comparison on the onnxruntime that Windows ML carries (1.24)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ...artifact.artifact import Artifact
from ...runtime.worker_process import WorkerError
from .other_runtime import Elsewhere, OtherRun, run_elsewhere, sequences
from .result import CheckError, CheckReport, Requirement

RUNTIME = "1.24"
"""Windows ML 2.0 ships onnxruntime 1.24.5; 1.24.4 is the nearest that package registries have."""
_HOW = (
    "make a Python with it (`python -m venv wml` and `wml/bin/pip install onnxruntime==1.24.4 numpy`) and name it by "
    '`interpreter="wml/bin/python"`'
)


def check_windows_ml(
    artifact: Artifact,
    *,
    reference: str | None = None,
    interpreter: Path | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> CheckReport:
    """Load and run ``artifact`` on onnxruntime 1.24 and compare its logits. Raises CheckError where there is none."""
    version = _own_version()
    if interpreter is None and not version.startswith(f"{RUNTIME}."):
        raise CheckError(f"Windows ML runs onnxruntime {RUNTIME}, this Python has {version or 'none'}: {_HOW}")
    what = sequences(artifact)
    notes = [
        "Windows ML downloads its providers (QNN, OpenVINO, VitisAI and others) at run time: what is checked here is "
        "that the runtime it carries loads the model and computes it right on the CPU.",
        "Custom-op libraries run on the CPU provider alone; without them the functions inside the model run.",
    ]
    check = Elsewhere("windows-ml", artifact, {})
    try:
        run = run_elsewhere(artifact, what, "cpu", interpreter)
    except WorkerError as error:
        if error.kind == "missing":
            raise CheckError(f"{interpreter or sys.executable}: {error}; {_HOW}") from error
        return check.failed(str(error), notes)
    check.environment["runtime"] = f"onnxruntime {run.result['onnxruntime']}, Python {run.result['python']}"
    return check.compared(what, run, reference, progress, requirements=[_version_requirement(run)], notes=notes)


def _version_requirement(run: OtherRun) -> Requirement:
    version = run.result["onnxruntime"]
    return Requirement(f"onnxruntime {RUNTIME}", version.startswith(f"{RUNTIME}."), f"found {version}")


def _own_version() -> str:
    try:
        import onnxruntime
    except ImportError:
        return ""
    return str(onnxruntime.__version__)
