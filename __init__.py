"""lfm-onnx: LFM2 and LFM2.5 checkpoints to ONNX, for phones and Copilot+ PCs.

What stands in ``__all__`` is what Python users need; each is imported when it is first used, so that
``import lfm_onnx`` alone waits for neither numpy nor ONNX Runtime.

>>> import lfm_onnx
>>> model = lfm_onnx.load("lfm")
>>> model.generate([{"role": "user", "content": "What is 3 + 4?"}], do_sample=False).result.answer
'3 + 4 = 7.'
"""

from __future__ import annotations

import importlib
import operator
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import (
        ArtifactError,
        CheckpointError,
        ConfigError,
        InputError,
        LfmOnnxError,
        OutputError,
        PromiseError,
        TokenizerError,
    )
    from .export.artifact_quantization import quantize_artifact
    from .export.exporter import export_checkpoint
    from .export.options import ExportOptions
    from .runtime.chat import Conversation
    from .runtime.model import LfmModel
    from .runtime.parity.artifact import compare_artifact

    load = LfmModel.load

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "ConfigError",
    "Conversation",
    "ExportOptions",
    "InputError",
    "LfmModel",
    "LfmOnnxError",
    "OutputError",
    "PromiseError",
    "TokenizerError",
    "__version__",
    "compare_artifact",
    "export_checkpoint",
    "load",
    "quantize_artifact",
]

_HOMES = {
    "Conversation": ".runtime.chat:Conversation",
    "ExportOptions": ".export.options:ExportOptions",
    "LfmModel": ".runtime.model:LfmModel",
    "compare_artifact": ".runtime.parity.artifact:compare_artifact",
    "export_checkpoint": ".export.exporter:export_checkpoint",
    "load": ".runtime.model:LfmModel.load",
    "quantize_artifact": ".export.artifact_quantization:quantize_artifact",
}
"""Where what is exported is declared; the error types, which are not listed, are in errors.py."""

# ONNX Runtime from 1.30 on reports to its maker unless it is told otherwise before it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES.get(name, f".errors:{name}").partition(":")
    value: object = operator.attrgetter(attribute)(importlib.import_module(module, __name__))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
