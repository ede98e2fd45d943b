"""What makes tokens of a conversation and ends a reply, of the artifact or of its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...checkpoint.config import LfmConfig
from ...checkpoint.generation_config import end_token_ids, read_generation_config
from ...checkpoint.tokenizer import ChatTokenizer
from ...errors import ArtifactError


@dataclass(frozen=True)
class ChatFiles:
    """Tokenizer with its chat template, None where the folder has none, and the tokens that end a reply."""

    tokenizer: ChatTokenizer | None
    end_ids: frozenset[int]

    @classmethod
    def read(cls, folder: Path, config: LfmConfig, *, required: bool) -> ChatFiles:
        """Those of ``folder``. Raises TokenizerError, also for no tokenizer where one is required, or ArtifactError."""
        has_tokenizer = required or (folder / "tokenizer.json").is_file()
        tokenizer = ChatTokenizer.load(folder) if has_tokenizer else None
        return cls(tokenizer, frozenset(end_token_ids(read_generation_config(folder, ArtifactError), config)))
