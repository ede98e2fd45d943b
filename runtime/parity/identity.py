"""Who is compared with whom: an artifact belongs to its checkpoint, and what a report says of both."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from typing import TYPE_CHECKING

from ...artifact.npu_manifest import NpuManifest, is_npu_artifact
from ...checkpoint.config import CONFIG_NAME
from ...errors import ArtifactError

if TYPE_CHECKING:
    from ...artifact.artifact import Artifact
    from ...checkpoint.checkpoint import Checkpoint


def require_same_config(artifact: Artifact, checkpoint: Checkpoint) -> None:
    """ArtifactError unless the artifact was exported from a checkpoint with this config.json.

    A config.json that was only written anew (another order, fields that change nothing) is the same.
    """
    if (
        artifact.manifest.source.config_sha256
        == hashlib.sha256((checkpoint.folder / CONFIG_NAME).read_bytes()).hexdigest()
    ):
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
    source, generator = artifact.manifest.source, artifact.manifest.generator
    return {
        "artifact": str(artifact.folder),
        "variant": f"{artifact.variant}, {artifact.ops_profile} ops",
        "exported from": source.checkpoint,
        "content sha256": source.content_sha256,
        "exported by": f"{generator.name} {generator.version}",
        "reference": f"{checkpoint.source} ({backend}, float32)",
        "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}, {provider}",
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def limits_name(artifact: Artifact) -> str:
    """The name under which ``Thresholds`` has the artifact's limits: that of its precision."""
    if is_npu_artifact(artifact):
        return f"qnn-{NpuManifest.read(artifact).precision.get('weights', 'int8')}"
    return artifact.variant
