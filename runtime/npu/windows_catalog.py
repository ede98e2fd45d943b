"""Windows ML's catalog of execution providers: what Windows itself downloads and certifies for this PC."""

from __future__ import annotations

import functools
import sys
from typing import Any


@functools.cache
def register_catalog() -> tuple[str, ...]:
    """Register every provider of the catalog with onnxruntime, once; one line for each, or why there is none.

    Needs Windows and the Python projection of the Windows App SDK
    (``wasdk-Microsoft.Windows.AI.MachineLearning``). Never raises.
    """
    if sys.platform != "win32":
        return ("Windows ML's catalog: not on this system",)
    try:
        import onnxruntime
        import winui3.microsoft.windows.ai.machinelearning as windows_ml

        notes = []
        for provider in windows_ml.ExecutionProviderCatalog.get_default().find_all_providers():
            notes.append(_register(onnxruntime, provider))
        return tuple(notes) or ("Windows ML's catalog: no providers for this PC",)
    except Exception as error:  # the projection is not installed, or the catalog does not answer
        return (f"Windows ML's catalog: {type(error).__name__}: {error}",)


def _register(onnxruntime: Any, provider: Any) -> str:
    try:
        provider.ensure_ready_async().get()  # downloads it at the first time
        if not provider.library_path:
            return f"Windows ML's catalog: {provider.name} has no library"
        onnxruntime.register_execution_provider_library(provider.name, provider.library_path)
        return f"Windows ML's catalog: {provider.name}"
    except Exception as error:  # as above
        return f"Windows ML's catalog: {provider.name}: {type(error).__name__}: {error}"
