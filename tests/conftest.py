"""Fixtures that every test file may use: the sample model, variant checkpoints, and the artifacts of both."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_factory import ArtifactFactory, shared_root
from hypothesis import settings

# In CI the examples are the same in every run; elsewhere each run looks for new ones. No example has a time limit: a
# machine that does other work would fail tests that are right.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session")
def exported_artifact(tmp_path_factory: pytest.TempPathFactory, tiny_lfm: Path) -> ArtifactFactory:
    """exported_artifact(variant or "sample", ops_profile, precision) -> artifact folder; shared, so read only."""
    return ArtifactFactory(shared_root(tmp_path_factory), tiny_lfm)


@pytest.fixture(scope="session")
def variant_checkpoint(exported_artifact: ArtifactFactory) -> Callable[..., Path]:
    """variant_checkpoint(name, **storage) -> folder of the variant's checkpoint; shared, so read only."""
    return exported_artifact.checkpoint


@pytest.fixture(scope="session")
def tiny_lfm() -> Path:
    """Folder of the trained sample model."""
    folder = Path(__file__).parent.parent / "samples" / "tiny_lfm"
    assert (folder / "config.json").is_file(), f"the sample model is missing from {folder}"
    return folder
