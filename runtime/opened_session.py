"""An artifact with the session that runs it; and opening the one of an export for the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..artifact.artifact import Artifact
from ..errors import InputError
from .session import DecoderSession
from .session_protocol import Session


@dataclass(frozen=True)
class OpenedSession:
    """The artifact that answers, what runs it, and how many tokens its states hold at the most."""

    artifact: Artifact
    session: Session
    context_length: int


def open_decoder(
    artifact: Artifact,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    context_length: int | None = None,
    native: bool | None = None,
) -> OpenedSession:
    """Load the graph of an export for the CPU; parameters as those of ``LfmModel.load``. Raises LfmOnnxError."""
    limit = limited_context_length(context_length, artifact.context_length)
    session = DecoderSession.of_artifact(artifact, providers=providers, threads=threads, native=native)
    return OpenedSession(artifact, session, limit)


def limited_context_length(asked: int | None, limit: int) -> int:
    """``asked``, or ``limit`` where nothing was; InputError for what the artifact's graphs do not hold."""
    if asked is not None and not 1 <= asked <= limit:
        raise InputError(f"context length: expected 1 to {limit}, as the artifact allows, found {asked}")
    return asked or limit
