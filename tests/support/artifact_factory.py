"""Checkpoints and artifacts that all tests of a run share: each is made once, by whatever worker needs it first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from exported_model import export_quietly
from filelock import FileLock
from lfm_onnx.artifact.formats import BlockFormat
from lfm_onnx.artifact.precision import FP32, Precision
from lfm_onnx.export import OpsProfile

SAMPLE = "sample"
"""The trained model that ships with the repository, beside the variants of ``model_variants``."""


def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside the temporary folders of this run's workers; among those of the one process where there are none."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)
    return root


class ArtifactFactory:
    """What it gives is shared, so read only: a test that damages an artifact copies it first."""

    def __init__(self, root: Path, sample: Path) -> None:
        self._root, self._sample = root, sample
        self._known: dict[str, Path] = {}

    def __call__(
        self,
        variant: str,
        ops_profile: OpsProfile = OpsProfile.CUSTOM,
        precision: Precision = FP32,
        *,
        method: str | None = "rtn",
    ) -> Path:
        """The artifact's folder, written as ``export_quietly`` does; method None: the one that the command chooses."""
        name = f"{variant}-{ops_profile.value}-{precision.name}"
        if isinstance(precision.weights, BlockFormat):
            name += f"-{precision.weight_format}-{method}"
        return self._folder(
            name,
            lambda folder: export_quietly(self.checkpoint(variant), folder, ops_profile, precision, method),
        )

    def graph(self, variant: str, ops_profile: OpsProfile = OpsProfile.CUSTOM, precision: Precision = FP32) -> Path:
        """The path of the artifact's .onnx file."""
        return self(variant, ops_profile, precision) / "onnx" / precision.model_file

    def checkpoint(self, variant: str, **storage: object) -> Path:
        """The checkpoint's folder; ``storage`` as ``make_checkpoint`` takes it."""
        if variant == SAMPLE:
            return self._sample
        from model_variants import make_checkpoint  # imports torch

        label = "-".join([variant, *(f"{key}={value}" for key, value in sorted(storage.items()))])
        return self._folder(f"checkpoint-{label}", lambda folder: make_checkpoint(folder, variant, **storage))

    def _folder(self, name: str, make: Callable[[Path], object]) -> Path:
        if name not in self._known:
            folder = self._root / name
            with FileLock(self._root / f"{name}.lock"):
                if not folder.exists():
                    unfinished = self._root / f"{name}.unfinished"
                    make(unfinished)
                    unfinished.rename(folder)
            self._known[name] = folder
        return self._known[name]
