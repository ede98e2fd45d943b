"""generation_config.json of a checkpoint or an artifact: how to sample, and the tokens that end a reply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..strict_json import JsonObject
from .config import LfmConfig

GENERATION_CONFIG_NAME = "generation_config.json"


def read_generation_config(folder: Path, error: type[Exception]) -> dict[str, Any]:
    """The object in the folder's file, empty where there is none; raises ``error`` for anything else."""
    path = folder / GENERATION_CONFIG_NAME
    return dict(JsonObject.read(path, error).data) if path.is_file() else {}


def end_token_ids(generation_config: Mapping[str, Any], config: LfmConfig) -> tuple[int, ...]:
    """The tokens that end a reply: as in transformers, generation_config.json goes before config.json."""
    ids = generation_config.get("eos_token_id")
    ids = ids if isinstance(ids, list) else [ids]
    if ids and all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        return tuple(ids)
    return config.eos_token_ids
