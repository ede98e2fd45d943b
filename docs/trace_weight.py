"""The way of one expert's weight, traced: the package's files that handle it from its first read to its first run.

    python docs/trace_weight.py [--json]

The export is that of samples/tiny_lfm at q4 by its default method, calibrated on a text that it is given; then the
artifact is loaded with the native library and runs one token. A file is on the way if one of its functions

- is given the weight, by its name in the checkpoint or in the graph or as a record of that ``name``; or, while such a
  function runs, an array, which then holds the weight's numbers, what is made of them, or what it is multiplied by;
- builds the session that holds the weight, or runs it for the first time: from there on it is the kernel's;
- or waits for one of these to return: callers count as well, other than this script.

Not counted are the command line, opening the checkpoint and the artifact (checks of every file, before and behind the
weight's own way), and reports that ask a record for its size.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

PACKAGE = Path(__file__).resolve().parent.parent
BLOCK = "model.layers.2.feed_forward."
SOURCE = f"{BLOCK}experts.0.w1.weight"
"""The weight that is traced."""

STACK = "experts.gate_up"
"""All experts' gate and up rows, which it becomes a part of: its name within the block."""

KERNELS = "runtime/native_library.py"
"""What gives the session the weight's kernel."""

_TEXT = "The treaty was signed in the spring. What does a heron eat? Fish, frogs and now and then a vole.\n" * 40


class WeightTrace:
    """Collects files while it is the profile function of all threads. ``names``: those of the weight."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self.files: dict[str, str] = {}
        """File, relative to the package → what put it on the way first."""
        self._known_files: dict[str, str | None] = {}
        self._thread = threading.local()

    def __enter__(self) -> WeightTrace:
        threading.setprofile(self)
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """One event of a thread: files are noted at calls that take the weight, an array of it, or the session."""
        handling = self._thread.__dict__.setdefault("handling", [])
        if event == "return" and handling and handling[-1] is frame:
            handling.pop()
        if event != "call":
            return
        code = frame.f_code
        file = self._file(code.co_filename)
        if file is None:
            if code.co_name in ("__init__", "run") and code.co_filename.endswith("onnxruntime_inference_collection.py"):
                self._add_stack(frame, f"InferenceSession.{code.co_name}")
            return
        given = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
        if file == KERNELS:
            self._add_stack(frame, f"{code.co_name} for the session")
        elif any(map(self._is_weight, given if code.co_varnames[:1] != ("self",) else given[1:])):
            handling.append(frame)
            self._add_stack(frame, f"{code.co_name} is given the weight")
        elif handling and any(isinstance(value, np.ndarray) for value in given):
            self.files.setdefault(file, f"{code.co_name} is given an array by {handling[-1].f_code.co_name}")

    def _is_weight(self, value: Any) -> bool:
        name = value if isinstance(value, str) else getattr(value, "name", None)
        return isinstance(name, str) and name in self._names

    def _add_stack(self, frame: FrameType | None, reason: str) -> None:
        while frame is not None:
            file = self._file(frame.f_code.co_filename)
            if file is not None:
                self.files.setdefault(file, reason)
            frame = frame.f_back

    def _file(self, name: str) -> str | None:
        """The package's file of that name, relative to the package; None for any other and for this one."""
        if name not in self._known_files:
            path = Path(name).resolve()
            own = path.is_relative_to(PACKAGE) and path.is_file() and path.parent != Path(__file__).resolve().parent
            own = own and "site-packages" not in path.parts  # of an environment that stands in the checkout
            self._known_files[name] = path.relative_to(PACKAGE).as_posix() if own else None
        return self._known_files[name]


def trace_weight(sample: Path = PACKAGE / "samples" / "tiny_lfm") -> dict[str, str]:
    """The files on the way, and why each is."""
    from lfm_onnx.artifact.precision import Q4
    from lfm_onnx.checkpoint.checkpoint import Checkpoint
    from lfm_onnx.export import ExportOptions, export_checkpoint
    from lfm_onnx.runtime.model import LfmModel

    trace = WeightTrace((SOURCE, BLOCK + STACK, STACK))
    with tempfile.TemporaryDirectory() as folder:
        text, artifact = Path(folder) / "text.txt", Path(folder) / "artifact"
        text.write_text(_TEXT, encoding="utf-8")
        checkpoint = Checkpoint.open(sample)
        with trace:
            export_checkpoint(checkpoint, artifact, ExportOptions(Q4, calibration=text, calibration_tokens=256))
            LfmModel.load(artifact, native=True).forward([1])
    return trace.files


if __name__ == "__main__":
    found = dict(sorted(trace_weight().items()))
    if "--json" in sys.argv[1:]:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:36} {why}" for name, why in found.items()))
        print(f"{len(found)} files")
