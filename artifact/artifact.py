"""An exported folder: its manifest, and opening it with the checks that tell a whole artifact from a damaged one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..checkpoint.config import LfmConfig
from ..errors import ArtifactError
from ..strict_json import parse_json

MANIFEST_NAME = "lfm_manifest.json"
MANIFEST_VERSION = 1
"""Raised when an older reader would misunderstand a newer manifest."""

SAMPLE_BLOCK = 4096
SAMPLE_BLOCKS = 64

_MAX_MANIFEST_BYTES = 16 << 20

Verification = Literal["none", "quick", "full"]


@dataclass(frozen=True)
class ArtifactFile:
    """One file of an artifact: path relative to the folder (with ``/``), size and digests."""

    path: str
    bytes: int
    sha256: str
    sample_sha256: str


@dataclass(frozen=True)
class Artifact:
    """One variant (precision) of an exported folder."""

    folder: Path
    manifest: dict[str, Any]
    variant: str
    config: LfmConfig
    files: tuple[ArtifactFile, ...]

    @classmethod
    def open(cls, folder: Path | str, variant: str | None = None, *, verify: Verification = "quick") -> Artifact:
        """Read the manifest of ``folder`` and check the files that it lists.

        ``quick`` compares every size, and for the variant's model files a digest of 64 blocks spread over each;
        ``full`` compares the SHA-256 of every file; ``none`` only requires that they exist. Raises ArtifactError.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        variants = _field(manifest, "variants", dict, folder)
        if not variants:
            raise ArtifactError(f"{folder / MANIFEST_NAME} lists no variant; export the checkpoint again")
        name = variant if variant is not None else next(iter(variants))
        if name not in variants:
            raise ArtifactError(f"{folder} has no variant {name!r}; it has: {', '.join(sorted(variants))}")
        files = tuple(_file_entry(entry, folder) for entry in _field(manifest, "files", list, folder))
        artifact = cls(folder, manifest, name, LfmConfig.load(folder), files)
        artifact._check_files(verify)
        return artifact

    @property
    def entry(self) -> dict[str, Any]:
        """The manifest's entry of this variant: model, ops, opset, precision, files."""
        return _field(self.manifest, "variants", dict, self.folder)[self.variant]

    @property
    def model_path(self) -> Path:
        """The .onnx file."""
        return self.folder / _inside(_field(self.entry, "model", str, self.folder), self.folder)

    @property
    def ops_profile(self) -> str:
        """``custom`` or ``standard``."""
        return str(self.entry.get("ops", "custom"))

    @property
    def context_length(self) -> int:
        """Positions that the graph can address."""
        length = _field(self.manifest, "model", dict, self.folder).get("context_length")
        if not isinstance(length, int) or length < 1:
            raise ArtifactError(f"{self.folder / MANIFEST_NAME}: model.context_length is {length!r}, expected a count")
        return length

    @property
    def model_files(self) -> tuple[ArtifactFile, ...]:
        """The variant's .onnx file and its weights."""
        own = {str(path) for path in _field(self.entry, "files", list, self.folder)}
        return tuple(file for file in self.files if file.path in own)

    def _check_files(self, verify: Verification) -> None:
        own = {file.path for file in self.model_files}
        listed = _field(self.entry, "files", list, self.folder)
        if len(own) != len(listed) or self.model_path.relative_to(self.folder).as_posix() not in own:
            raise ArtifactError(
                f"{self.folder / MANIFEST_NAME}: variant {self.variant} names files that are not listed"
            )
        for file in self.files:
            path = self.folder / file.path
            if not path.is_file():
                raise ArtifactError(f"{path} is missing (the manifest lists it); export the checkpoint again")
            if verify == "none" or (verify == "quick" and file.path not in own):
                continue
            size = path.stat().st_size
            if size != file.bytes:
                raise ArtifactError(
                    f"{path} has {size} bytes, the manifest says {file.bytes}: it was changed or cut short after the "
                    "export; export again"
                )
            digest, expected = (
                (file_digest(path), file.sha256) if verify == "full" else (sample_digest(path), file.sample_sha256)
            )
            if digest != expected:
                raise ArtifactError(f"{path} is not the file that was exported (SHA-256 differs); export again")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact folder; ArtifactError if there is none or this version cannot read it."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give the folder that `lfm-onnx export` wrote")
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST_NAME}; give the folder that `lfm-onnx export` wrote")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{path} is larger than a manifest can be ({_MAX_MANIFEST_BYTES} bytes)")
    try:
        manifest = parse_json(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}; export the checkpoint again") from None
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{path} does not hold a JSON object")
    version = manifest.get("manifest_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtifactError(f"{path}: manifest_version is {version!r}, expected 1 to {MANIFEST_VERSION}")
    if version > MANIFEST_VERSION:
        raise ArtifactError(
            f"{path} has manifest version {version}; this lfm-onnx reads up to {MANIFEST_VERSION}: update lfm-onnx"
        )
    return manifest


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


def _file_entry(entry: Any, folder: Path) -> ArtifactFile:
    if not isinstance(entry, dict):
        raise ArtifactError(f"{folder / MANIFEST_NAME}: an entry of files is {entry!r}, expected an object")
    return ArtifactFile(
        path=_inside(_field(entry, "path", str, folder), folder),
        bytes=_field(entry, "bytes", int, folder),
        sha256=_field(entry, "sha256", str, folder),
        sample_sha256=_field(entry, "sample_sha256", str, folder),
    )


def _inside(path: str, folder: Path) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or not pure.parts:
        raise ArtifactError(f"{folder / MANIFEST_NAME} names the path {path!r}, which leaves the artifact's folder")
    return path


def _field(data: Any, name: str, kind: type, folder: Path) -> Any:
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ArtifactError(f"{folder / MANIFEST_NAME}: {name} is {value!r:.80}, expected {kind.__name__}")
    return value
