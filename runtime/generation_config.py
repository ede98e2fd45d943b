"""generation_config.json of an artifact: how to sample, and the tokens that end a reply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.config import LfmConfig
from ..errors import ArtifactError
from ..strict_json import JsonObject

GENERATION_CONFIG_NAME = "generation_config.json"


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The object in the folder's file, empty where there is none. ArtifactError for anything else."""
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return {}
    return dict(JsonObject.read(path, ArtifactError).data)


def end_token_ids(generation_config: Mapping[str, Any], config: LfmConfig) -> frozenset[int]:
    """The tokens that end a reply: the generation config's, else those of config.json."""
    ids = generation_config.get("eos_token_id")
    ids = [ids] if isinstance(ids, int) else ids
    if isinstance(ids, list) and ids and all(isinstance(item, int) for item in ids):
        return frozenset(ids)
    return frozenset(config.eos_token_ids)
