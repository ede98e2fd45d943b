"""An exported folder, opened with the checks that tell a whole artifact from a damaged one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..checkpoint.config import LfmConfig
from ..errors import ArtifactError
from .files import ArtifactFile, file_digest, sample_digest
from .manifest import MANIFEST_NAME, Manifest, Variant

Verification = Literal["none", "quick", "full"]


@dataclass(frozen=True)
class Artifact:
    """One variant (precision) of an exported folder."""

    folder: Path
    manifest: Manifest
    variant: str
    config: LfmConfig

    @classmethod
    def open(cls, folder: Path | str, variant: str | None = None, *, verify: Verification = "quick") -> Artifact:
        """Read the manifest of ``folder`` and check the files that it lists.

        ``quick`` compares the sizes of the variant's model files, and a digest of 64 blocks spread over each;
        ``full`` compares the SHA-256 of every file; ``none`` the sizes of the weights'
        files alone: what is mapped beyond a file's end cannot be read. Raises ArtifactError.
        """
        try:
            return cls._open(Path(folder), variant, verify)
        except OSError as error:
            raise ArtifactError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from None

    @classmethod
    def _open(cls, folder: Path, variant: str | None, verify: Verification) -> Artifact:
        manifest = Manifest.read(folder)
        name = variant if variant is not None else next(iter(manifest.variants))
        if name not in manifest.variants:
            raise ArtifactError(f"{folder} has no variant {name!r}; it has: {', '.join(sorted(manifest.variants))}")
        artifact = cls(folder, manifest, name, LfmConfig.load(folder))
        artifact._check_files(verify)
        return artifact

    @property
    def files(self) -> tuple[ArtifactFile, ...]:
        """Those of all variants, and what they share."""
        return self.manifest.files

    @property
    def entry(self) -> Variant:
        """The manifest's entry of this variant."""
        return self.manifest.variants[self.variant]

    @property
    def model_path(self) -> Path:
        """The .onnx file, or the manifest of an export for the NPU."""
        return self.folder / self.entry.model

    @property
    def ops_profile(self) -> str:
        """``custom`` or ``standard``; ``qdq`` of a quantized export for the NPU."""
        return self.entry.ops

    @property
    def context_length(self) -> int:
        """Positions that the graph can address."""
        return self.manifest.model.context_length

    @property
    def model_files(self) -> tuple[ArtifactFile, ...]:
        """The variant's .onnx file and its weights."""
        own = set(self.entry.files)
        return tuple(file for file in self.files if file.path in own)

    def _check_files(self, verify: Verification) -> None:
        own = {file.path for file in self.model_files}
        if len(own) != len(self.entry.files) or self.entry.model not in own:
            raise ArtifactError(
                f"{self.folder / MANIFEST_NAME}: variant {self.variant} names files that are not listed"
            )
        for file in self.files:
            path = self.folder / file.path
            if not path.is_file():
                raise ArtifactError(f"{path} is missing (the manifest lists it); export the checkpoint again")
            path.open("rb").close()  # a file that may not be read is said now, not when it is wanted
            if verify != "full" and (file.path not in own or (verify == "none" and file.path == self.entry.model)):
                continue
            size = path.stat().st_size
            if size != file.bytes:
                raise ArtifactError(
                    f"{path} has {size} bytes, the manifest says {file.bytes}: it was changed or cut short after the "
                    "export; export again"
                )
            if verify == "none":
                continue
            digest, expected = (
                (file_digest(path), file.sha256) if verify == "full" else (sample_digest(path), file.sample_sha256)
            )
            if digest != expected:
                raise ArtifactError(f"{path} is not the file that was exported (SHA-256 differs); export again")
