"""Fixtures that every test file may use: variant checkpoints made once per session, and the sample model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# In CI the examples are the same in every run; elsewhere each run looks for new ones. No example has a time limit: a
# machine that does other work would fail tests that are right.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# pytest's importlib mode does not put this folder on the path.
sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture(scope="session")
def variant_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """variant_checkpoint(name, **storage) -> folder of the variant's checkpoint; shared, so read only."""
    made: dict[tuple[object, ...], Path] = {}

    def checkpoint(name: str, **storage: object) -> Path:
        from model_variants import make_checkpoint

        key = (name, *sorted(storage.items()))
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(name), name, **storage)
        return made[key]

    return checkpoint


@pytest.fixture(scope="session")
def tiny_lfm() -> Path:
    """Folder of the trained sample model."""
    folder = Path(__file__).parent.parent / "samples" / "tiny_lfm"
    assert (folder / "config.json").is_file(), f"the sample model is missing from {folder}"
    return folder
