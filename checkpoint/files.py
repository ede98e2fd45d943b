"""Which safetensors files of a folder make up a checkpoint: one file, or the shards that its index names."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..strict_json import JsonObject, require_regular_file, shown
from .config import CONFIG_NAME
from .safetensors_file import MAX_HEADER_BYTES, SafetensorsFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"


def require_checkpoint_folder(folder: Path) -> None:
    """CheckpointError that says what is there instead, unless the folder has a config.json."""
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder; give a checkpoint folder or a hub id of the form org/name")
    if not folder.is_dir():
        kind = "a GGUF file" if folder.suffix == ".gguf" else "a file"
        hint = "" if folder.suffix != ".gguf" else "; GGUF cannot be exported, take the safetensors checkpoint"
        raise CheckpointError(f"{folder}: {kind}; give the checkpoint folder that holds {CONFIG_NAME}{hint}")
    if (folder / CONFIG_NAME).exists():
        return
    if _holds(folder, "*.gguf"):
        raise CheckpointError(f"{folder}: looks like a GGUF model, without {CONFIG_NAME}; take the safetensors one")
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder}: a LoRA adapter, without {CONFIG_NAME}; merge it into its base model first")
    raise CheckpointError(f"{folder}: has no {CONFIG_NAME}; give the folder of a Hugging Face checkpoint")


def open_weight_files(folder: Path) -> list[SafetensorsFile]:
    """The checkpoint's files, opened and checked; CheckpointError if there are none or one that is named is missing.

    A single model.safetensors goes before an index, as in transformers.
    """
    if (folder / SINGLE_FILE).exists():
        return [SafetensorsFile(folder / SINGLE_FILE)]
    index = folder / INDEX_FILE
    if index.exists():
        return _open_shards(folder, _read_index(index))
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{folder}: a LoRA adapter ({ADAPTER_CONFIG}) without the weights of its base model; merge it into them "
            "(merge_and_unload) and export the result"
        )
    if _holds(folder, "*.safetensors"):
        raise CheckpointError(f"{folder}: safetensors files, but neither {SINGLE_FILE} nor {INDEX_FILE}")
    if _holds(folder, "*.bin") or _holds(folder, "*.pt") or _holds(folder, "*.pth"):
        raise CheckpointError(f"{folder}: only PyTorch .bin weights; save the model as safetensors (save_pretrained)")
    if _holds(folder, "*.gguf"):
        raise CheckpointError(f"{folder}: only GGUF weights; take the safetensors checkpoint")
    raise CheckpointError(f"{folder}: no weights; expected {SINGLE_FILE} or shards with {INDEX_FILE}")


def unread_files(folder: Path, read: list[Path]) -> list[str]:
    """One line on each thing in the folder that another loader would read into the model."""
    notes = []
    adapter = next((name for name in (ADAPTER_CONFIG, ADAPTER_FILE) if (folder / name).exists()), None)
    if adapter is not None:
        notes.append(
            f"{adapter}: the adapter in this folder is not applied; where the model is meant to have it, merge it "
            "(merge_and_unload) and export the result"
        )
    names = {path.name for path in read} | {ADAPTER_FILE}
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in names)
    if others:
        few = ", ".join(map(shown, others[:3])) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        notes.append(f"not read, since {read[0].name} {'and others hold' if read[1:] else 'holds'} the model: {few}")
    return notes


def _open_shards(folder: Path, weight_map: dict[str, str]) -> list[SafetensorsFile]:
    index = folder / INDEX_FILE
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).exists():
            raise CheckpointError(f"{index}: names the shard {shown(shard)}, which is not in the folder")
        shards[shard] = SafetensorsFile(folder / shard)
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard].tensors:
            raise CheckpointError(f"{index}: places tensor {shown(tensor)} in {shard}, which does not hold it")
    return list(shards.values())


def _read_index(path: Path) -> dict[str, str]:
    index = JsonObject.read(path, CheckpointError, most_bytes=MAX_HEADER_BYTES)
    weight_map = dict(index.object("weight_map").data)
    if not weight_map:
        raise index.refuse("weight_map", "the shard of each tensor by its name")
    for tensor, shard in weight_map.items():
        if not _is_file_name(shard):
            raise CheckpointError(
                f"{path}: places tensor {shown(tensor)} in {shown(shard)}, which is not a .safetensors file "
                "of this folder"
            )
    return weight_map


def require_own_file(path: Path, folder: Path) -> None:
    """CheckpointError for what is no regular file, and for a link out of ``folder`` unless into a hub's cache.

    What it leads to would be copied into an artifact, and that be published.
    """
    require_regular_file(path, CheckpointError)
    real = path.resolve()
    *_, repository, kind, _ = ("", "", *real.parts)
    in_cache = kind == "blobs" and repository.startswith("models--")
    if not in_cache and not real.is_relative_to(folder.resolve()):
        raise CheckpointError(f"{path}: a link that leads out of the checkpoint, to {real}; put the file itself there")


def _is_file_name(shard: object) -> bool:
    """Whether an index's value is a plain name: a path could lead out of the folder."""
    return (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and shard.isprintable()
        and len(shard) <= 255
        and not any(c in shard for c in "/\\:\0")
    )


def _holds(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None
