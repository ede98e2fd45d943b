"""One file of an artifact as the manifest lists it: size, and digests that tell it from any other."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..strict_json import JsonObject

SAMPLE_BLOCK = 4096
SAMPLE_BLOCKS = 64


@dataclass(frozen=True)
class ArtifactFile:
    """path: relative to the artifact's folder, with ``/``."""

    path: str
    bytes: int
    sha256: str
    sample_sha256: str

    @classmethod
    def describe(cls, folder: Path, name: str, sha256: str | None = None) -> ArtifactFile:
        """The file ``name`` of ``folder`` as it is now. sha256: where it is known already."""
        path = folder / name
        return cls(name, path.stat().st_size, sha256 or file_digest(path), sample_digest(path))

    @classmethod
    def from_json(cls, entry: JsonObject) -> ArtifactFile:
        """The file that an entry of the manifest's ``files`` describes; raises the error of ``entry``."""
        return cls(
            path=entry.path_inside("path"),
            bytes=entry.integer("bytes", 0),
            sha256=entry.text("sha256"),
            sample_sha256=entry.text("sample_sha256"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain data, which ``from_json`` reads."""
        return asdict(self)


def file_digest(path: Path) -> str:
    """SHA-256 of a whole file, hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sample_digest(path: Path) -> str:
    """SHA-256 of a file's size and of 64 blocks of 4 KiB spread evenly over it, first and last included.

    Tells a replaced file from the original in milliseconds whatever its size; a small file is covered whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= SAMPLE_BLOCK * SAMPLE_BLOCKS:
            digest.update(file.read())
        else:
            for index in range(SAMPLE_BLOCKS):
                file.seek(index * (size - SAMPLE_BLOCK) // (SAMPLE_BLOCKS - 1))
                digest.update(file.read(SAMPLE_BLOCK))
    return digest.hexdigest()
