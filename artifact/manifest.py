"""lfm_manifest.json: where an artifact comes from, what is in it and what it needs. Export writes it, all read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ArtifactError
from ..strict_json import JsonObject
from .files import ArtifactFile

MANIFEST_NAME = "lfm_manifest.json"
MANIFEST_VERSION = 1
"""Raised when an older reader would misunderstand a newer manifest."""

_ADVICE = "export the checkpoint again"


@dataclass(frozen=True)
class Generator:
    """The program that wrote the artifact."""

    name: str = "lfm-onnx"
    version: str = __version__


@dataclass(frozen=True)
class SourceFile:
    """A weight file of the checkpoint."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The checkpoint: its hub id or folder's name, and digests of its weight files together and of its config.json.

    notes: one line on each thing of it that is not used, or not as it says.
    """

    checkpoint: str
    content_sha256: str
    config_sha256: str
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, checkpoint: str, config_sha256: str, files: Sequence[SourceFile], notes: Sequence[str]) -> Source:
        """The source with those weight files; their common digest is that of their SHA-256s in the order given."""
        content = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
        return cls(checkpoint, content, config_sha256, tuple(files), tuple(notes))

    @classmethod
    def from_json(cls, entry: JsonObject) -> Source:
        """The source that the manifest's ``source`` describes; raises the error of ``entry``."""
        return cls(
            checkpoint=entry.text("checkpoint"),
            content_sha256=entry.text("content_sha256"),
            config_sha256=entry.text("config_sha256"),
            files=tuple(
                SourceFile(file.text("path"), file.integer("bytes", 0), file.text("sha256"))
                for file in entry.objects("files")
            ),
            notes=tuple(entry.texts("notes")) if "notes" in entry else (),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file; without ``notes`` where there are none."""
        return {
            "checkpoint": self.checkpoint,
            "content_sha256": self.content_sha256,
            "config_sha256": self.config_sha256,
            "files": [asdict(file) for file in self.files],
            **({"notes": list(self.notes)} if self.notes else {}),
        }


@dataclass(frozen=True)
class ModelFacts:
    """parameters: elements of the checkpoint's tensors. context_length: positions that the graphs can address."""

    model_type: str
    parameters: int
    layer_types: tuple[str, ...]
    context_length: int

    @classmethod
    def from_json(cls, entry: JsonObject) -> ModelFacts:
        """The facts that the manifest's ``model`` states; raises the error of ``entry``."""
        return cls(
            model_type=entry.text("model_type"),
            parameters=entry.integer("parameters", 1),
            layer_types=tuple(entry.texts("layer_types")),
            context_length=entry.integer("context_length", 1),
        )


@dataclass(frozen=True)
class Variant:
    """One precision of the model.

    model: the .onnx file, or the NPU's manifest. ops: the ops profile, ``qdq`` for a quantized NPU export. precision:
    by tensor class its storage, with number and bytes of tensors. files: the model's own of the artifact's files.
    quantization: ``recipe`` and what the method says of ``tensors``, None where no blocks are stored.
    """

    model: str
    ops: str
    opset: int
    precision: Mapping[str, Any]
    files: tuple[str, ...]
    weight_bytes: int | None = None
    quantization: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, entry: JsonObject) -> Variant:
        """The variant that a member of the manifest's ``variants`` describes; raises the error of ``entry``."""
        return cls(
            model=entry.path_inside("model"),
            ops=entry.text("ops"),
            opset=entry.integer("opset", 1),
            precision=entry.object("precision").data,
            files=tuple(entry.texts("files")),
            weight_bytes=entry.integer("weight_bytes", 0) if "weight_bytes" in entry else None,
            quantization=entry.object("quantization").data if "quantization" in entry else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file; without ``weight_bytes`` and ``quantization`` where they are None."""
        weight_bytes = {} if self.weight_bytes is None else {"weight_bytes": self.weight_bytes}
        quantization = {} if self.quantization is None else {"quantization": dict(self.quantization)}
        return {
            "model": self.model,
            "ops": self.ops,
            "opset": self.opset,
            "precision": dict(self.precision),
            **weight_bytes,
            "files": list(self.files),
            **quantization,
        }


@dataclass(frozen=True)
class Manifest:
    """target: ``qnn`` in an export for the NPU. memory_bytes_by_context: by tokens of context, the bytes of each state
    of one conversation. tools: versions of the libraries that wrote the files.
    """

    source: Source
    model: ModelFacts
    variants: Mapping[str, Variant]
    files: tuple[ArtifactFile, ...]
    tools: Mapping[str, str]
    memory_bytes_by_context: Mapping[str, Mapping[str, int]] | None = None
    target: str | None = None
    generator: Generator = field(default_factory=Generator)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the file."""
        memory = self.memory_bytes_by_context
        return {
            "manifest_version": MANIFEST_VERSION,
            "generator": asdict(self.generator),
            **({} if self.target is None else {"target": self.target}),
            "source": self.source.to_dict(),
            "model": {**asdict(self.model), "layer_types": list(self.model.layer_types)},
            "variants": {name: variant.to_dict() for name, variant in self.variants.items()},
            **({} if memory is None else {"memory_bytes_by_context": memory}),
            "tools": dict(self.tools),
            "files": [file.to_dict() for file in self.files],
        }

    def write(self, folder: Path) -> None:
        """Write lfm_manifest.json into ``folder``."""
        (folder / MANIFEST_NAME).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of an artifact's folder; ArtifactError if there is none or this version cannot read it."""
        return cls.from_json(_read_json(folder))

    @classmethod
    def from_json(cls, data: JsonObject) -> Manifest:
        """The manifest that a parsed file holds; raises the error of ``data``."""
        version = data.integer("manifest_version", 1)
        if version > MANIFEST_VERSION:
            raise ArtifactError(
                f"{data.where} has manifest version {version}; this lfm-onnx reads up to {MANIFEST_VERSION}: update "
                "lfm-onnx"
            )
        generator = data.object("generator")
        variants = data.object("variants").all_objects()
        memory = None
        if "memory_bytes_by_context" in data:
            entries = data.object("memory_bytes_by_context").all_objects()
            memory = {length: entry.all_integers(0) for length, entry in entries.items()}
        if not variants:
            raise data.wrong("lists no variant")
        return cls(
            source=Source.from_json(data.object("source")),
            model=ModelFacts.from_json(data.object("model")),
            variants={name: Variant.from_json(entry) for name, entry in variants.items()},
            files=tuple(ArtifactFile.from_json(entry) for entry in data.objects("files")),
            tools=data.object("tools").all_texts(),
            memory_bytes_by_context=memory,
            target=data.text("target") if "target" in data else None,
            generator=Generator(generator.text("name"), generator.text("version")),
        )


def listed_files(folder: Path) -> list[str]:
    """Paths that the manifest of ``folder`` lists, whatever its version; ArtifactError where none can be read."""
    return [entry.text("path") for entry in _read_json(folder).objects("files")]


def _read_json(folder: Path) -> JsonObject:
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give the folder that `lfm-onnx export` wrote")
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST_NAME}; give the folder that `lfm-onnx export` wrote")
    return JsonObject.read(path, ArtifactError, advice=_ADVICE)
