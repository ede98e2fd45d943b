"""Who is compared with whom: an artifact belongs to its checkpoint, and what a report says of both."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

from ...checkpoint.config import CONFIG_NAME
from ...errors import ArtifactError
from ...strict_json import parse_json

if TYPE_CHECKING:
    from ...artifact.artifact import Artifact
    from ...checkpoint.checkpoint import Checkpoint


def require_same_config(artifact: Artifact, checkpoint: Checkpoint) -> None:
    """ArtifactError unless the artifact was exported from a checkpoint with this config.json.

    A config.json that was only written anew (another order, fields that change nothing) is the same.
    """
    expected = _section(artifact.manifest, "source").get("config_sha256")
    if expected == hashlib.sha256((checkpoint.folder / CONFIG_NAME).read_bytes()).hexdigest():
        return
    for item in dataclasses.fields(artifact.config):
        ours, theirs = getattr(artifact.config, item.name), getattr(checkpoint.config, item.name)
        if ours != theirs:
            raise ArtifactError(
                f"{artifact.folder} was not exported from {checkpoint.source}: its {item.name} is {ours!r:.60}, the "
                f"checkpoint's {theirs!r:.60}; give the checkpoint that it was made from"
            )


def identity(artifact: Artifact, checkpoint: Checkpoint, backend: str, provider: str) -> dict[str, str]:
    """Readable pairs that say what was compared, with what, and where."""
    source, generator = _section(artifact.manifest, "source"), _section(artifact.manifest, "generator")
    return {
        "artifact": str(artifact.folder),
        "variant": f"{artifact.variant}, {artifact.ops_profile} ops",
        "exported from": str(source.get("checkpoint", "unknown")),
        "content sha256": str(source.get("content_sha256", "unknown")),
        "exported by": f"{generator.get('name', 'unknown')} {generator.get('version', '')}".strip(),
        "reference": f"{checkpoint.source} ({backend}, float32)",
        "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}, {provider}",
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def end_token_ids(artifact: Artifact) -> frozenset[int]:
    """The tokens that end a reply: those of generation_config.json, else those of config.json."""
    path = artifact.folder / "generation_config.json"
    if path.is_file():
        try:
            data = parse_json(path.read_bytes())
        except ValueError as error:
            raise ArtifactError(f"{path}: {error}") from error
        ids = data.get("eos_token_id") if isinstance(data, dict) else None
        ids = [ids] if isinstance(ids, int) else ids
        if isinstance(ids, list) and ids and all(isinstance(i, int) for i in ids):
            return frozenset(ids)
    return frozenset(artifact.config.eos_token_ids)


def _section(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    section = manifest.get(name)
    return section if isinstance(section, dict) else {}
