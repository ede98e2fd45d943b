"""What lies beside the graph against what the checkpoint gives: digests, config, generation config, genai's config.

Each finding is a check by the file's name, whose value is the count of differences; a file that the export did not
write is not asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ...artifact.artifact import Artifact
from ...artifact.files import file_digest
from ...artifact.manifest import MANIFEST_NAME
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.generation_config import GENERATION_CONFIG_NAME, end_token_ids, read_generation_config
from ...checkpoint.sampling_fields import sampling_fields, usable_generation_config
from ...errors import ArtifactError
from ...strict_json import JsonObject, read_untrusted, shown
from .report.contents import Check

GENAI_CONFIG_NAME = "genai_config.json"
_SHOWN = 3
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
_GENAI_DIMENSIONS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
_GENAI_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def file_checks(artifact: Artifact, checkpoint: Checkpoint) -> list[Check]:
    """Whether the files beside the graph are the checkpoint's.

    ArtifactError for a generation config of the artifact or the checkpoint that cannot be read.
    """
    listed = {file.path for file in artifact.files}
    checks = [manifest_check(artifact), difference_check("config.json", _config(artifact, checkpoint))]
    own = read_generation_config(artifact.folder, ArtifactError)
    # An export leaves out what cannot be used.
    theirs, _ = usable_generation_config(read_generation_config(checkpoint.folder, ArtifactError))
    ends = sorted(set(end_token_ids(theirs, checkpoint.config)))
    differences = _values({"eos_token_id": sorted(set(end_token_ids(own, artifact.config)))}, {"eos_token_id": ends})
    differences += _values({key: own.get(key) for key in _SAMPLING}, {key: theirs.get(key) for key in _SAMPLING})
    checks.append(difference_check(GENERATION_CONFIG_NAME, differences))
    if GENAI_CONFIG_NAME in listed:
        checks.append(difference_check(GENAI_CONFIG_NAME, _genai(artifact, checkpoint, theirs, ends)))
    return checks


def manifest_check(artifact: Artifact) -> Check:
    """The SHA-256 of every file that the manifest lists."""
    try:
        changed = [file.path for file in artifact.files if file_digest(artifact.folder / file.path) != file.sha256]
    except OSError as error:
        raise ArtifactError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    return Check(MANIFEST_NAME, "files changed since the export", len(changed), 0, detail=_some(changed))


def difference_check(name: str, differences: Sequence[str]) -> Check:
    """A check that only an artifact without ``differences`` passes."""
    return Check(name, "differences from the checkpoint", len(differences), 0, detail=_some(differences))


def _config(artifact: Artifact, checkpoint: Checkpoint) -> list[str]:
    return _values(dataclasses.asdict(artifact.config), dataclasses.asdict(checkpoint.config))


def _genai(
    artifact: Artifact, checkpoint: Checkpoint, generation: Mapping[str, Any], end_ids: Sequence[int]
) -> list[str]:
    """Its dimensions, special tokens, sampling and graph."""
    try:
        data = JsonObject.parse(
            read_untrusted(artifact.folder / GENAI_CONFIG_NAME, ArtifactError), GENAI_CONFIG_NAME, ArtifactError
        )
        model, search = data.object("model"), data.object("search")
        decoder = model.object("decoder")
        listed = isinstance(model.data.get("eos_token_id"), list)
        ends = model.integers("eos_token_id") if listed else [model.integer("eos_token_id")]
    except ArtifactError as error:
        return [f"cannot be read: {error}"]
    found = {
        "eos_token_id": sorted(set(ends)),
        **{key: model.data.get(key) for key in ("bos_token_id", "pad_token_id", "vocab_size", "context_length")},
        **{key: decoder.data.get(key) for key in ("head_size", *_GENAI_DIMENSIONS)},
        **{key: search.data.get(key) for key in _GENAI_SAMPLING},
    }
    graph = decoder.data.get("filename")
    config, sampling = checkpoint.config, sampling_fields(generation).values
    expected = {
        "eos_token_id": list(end_ids),
        "bos_token_id": config.bos_token_id or 0,
        "pad_token_id": config.pad_token_id or 0,
        "vocab_size": config.vocab_size,
        "context_length": artifact.context_length,
        "head_size": config.head_dim,
        **{key: getattr(config, key) for key in _GENAI_DIMENSIONS},
        # What greedy decoding does not use may be left out.
        **{key: sampling.get(key) for key in _GENAI_SAMPLING if key in search or sampling.get("do_sample") is True},
    }
    differences = _values(found, expected)
    if not isinstance(graph, str) or graph not in {file.path for file in artifact.files}:
        differences.append(f"filename is {shown(graph)}, which the manifest does not list")
    return differences


def _values(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """One text for each key of ``expected`` whose value is another one."""
    return [
        f"{key} is {shown(found.get(key))}, the checkpoint's {shown(value)}"
        for key, value in expected.items()
        if _plain(found.get(key)) != _plain(value)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _some(texts: Sequence[str]) -> str:
    more = f"; {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
