"""A checkpoint named by its hub id: only the files that an export needs are downloaded, each failure is one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    # To say that it is not applied.
    "adapter_config.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def looks_like_hub_id(source: str) -> bool:
    """Whether the text has the form org/name (it may also be the path of a folder that does not exist)."""
    return _HUB_ID.fullmatch(source) is not None and ".." not in source and "--" not in source


def download_checkpoint(
    hub_id: str, *, revision: str | None = None, progress: Callable[[str], None] | None = None
) -> Path:
    """Folder with the checkpoint's config, weights and tokenizer, from the local cache or the hub.

    Never fetches or runs code. CheckpointError for whatever goes wrong: no network, no such model, no access.
    """
    from huggingface_hub import snapshot_download

    if progress is not None:
        progress(f"{hub_id}: looking for the checkpoint on the hub")
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # The client raises its own, its HTTP library's and the system's errors.
        raise CheckpointError(
            f"{hub_id}: no such local folder, and as a hub id it could not be downloaded: {_advice(error, revision)}"
        ) from None


def _advice(error: Exception, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "access to it is restricted; accept its terms on the model's page and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; check the branch, tag or commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such public model; check the name, or log in with `hf auth login` if it is private"
    if isinstance(error, errors.HFValidationError):
        return "it is not a valid hub id; write org/name or the path of a folder"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline mode is on and it is not in the local cache; unset HF_HUB_OFFLINE or give a local folder"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"the hub answered with status {error.response.status_code}; try again later or give a local folder"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "the hub cannot be reached and it is not in the local cache; check the network or give a local folder"
    reason = " ".join(str(error).split())[:200] or "no reason given"
    return f"{type(error).__name__} ({reason}); check the network and the free disk space, or give a local folder"
