"""The configuration files beside a graph by which onnxruntime-genai, transformers.js and transformers load it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.precision import Precision
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.config import LfmConfig
from ..checkpoint.generation_config import GENERATION_CONFIG_NAME, end_token_ids, read_generation_config
from ..checkpoint.named_templates import DEFAULT, TEMPLATE_FOLDER, read_templates, template_path
from ..checkpoint.sampling_fields import sampling_fields, usable_generation_config
from ..checkpoint.tokenizer import MAX_TOKENIZER_BYTES, parse_tokenizer
from ..errors import TokenizerError, reason_of
from ..strict_json import JsonObject, decode_text, read_untrusted
from .ops import OpsProfile
from .portable_template import portable_template

GENAI_MAX_LENGTH = 4096
"""Tokens that genai reserves a KV cache for unless the app asks for more: a phone does not hold the full context's."""

_SEARCH_DEFAULTS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
"""What genai's search and generation_config.json both have; genai knows no min_p."""


def require_tokenizer(checkpoint: Checkpoint) -> None:
    """TokenizerError unless the checkpoint holds a tokenizer.json that the tokenizers library loads."""
    path = checkpoint.folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{checkpoint.folder} has no tokenizer.json; copy the model's tokenizer files there, or export the graph "
            "alone with `tokenizer=False`"
        )
    _read_object(path)
    try:
        vocabulary(path, path.stat().st_mtime_ns)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{path} cannot be used: {reason_of(error)}; copy it again from the model's repository"
        ) from None


@lru_cache(maxsize=1)
def vocabulary(path: Path, mtime_ns: int) -> dict[str, int]:
    """The tokens of a tokenizer.json and their ids, added ones too; raises whatever the tokenizers library does.

    mtime_ns: the file's, so that it is read again when it has changed.
    """
    data = read_untrusted(path, TokenizerError, MAX_TOKENIZER_BYTES)
    return parse_tokenizer(data).get_vocab(with_added_tokens=True)


def check_client_files(checkpoint: Checkpoint) -> None:
    """TokenizerError, before any weight is written, where a file that an artifact takes over is malformed."""
    for path in checkpoint.tokenizer_files():
        if path.suffix == ".json":
            _read_object(path)
    _generation_config(checkpoint)
    for name in folder_templates(checkpoint.folder):
        template_path(name)


def copy_client_file(path: Path, target: Path) -> None:
    """Copy a file that ``check_client_files`` has read; JSON in plain UTF-8, since no other client takes a byte order
    mark.
    """
    data = read_untrusted(path, TokenizerError, MAX_TOKENIZER_BYTES)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(decode_text(data).encode() if path.suffix == ".json" else data)


def write_client_files(
    folder: Path,
    checkpoint: Checkpoint,
    precision: Precision,
    data_files: int,
    ops_profile: OpsProfile,
    context_length: int,
) -> list[str]:
    """Write config, tokenizer and client files into ``folder``; the names written, relative to it."""
    copied = []
    generation = _generation_config(checkpoint)
    documents: dict[str, Any] = {
        "config.json": {
            **checkpoint.raw_config,
            # transformers.js reads this spelling alone; older checkpoints list the attention layers.
            "layer_types": list(checkpoint.config.layer_types),
            "transformers.js_config": {
                "dtype": precision.name,
                "use_external_data_format": {precision.model_file: data_files},
                **_cache_dtype(precision),
            },
        },
        GENERATION_CONFIG_NAME: generation,
        "genai_config.json": genai_config(checkpoint.config, precision, ops_profile, context_length, generation),
    }
    templates = folder_templates(checkpoint.folder)
    for path in checkpoint.tokenizer_files():
        if path.name in documents or path.suffix == ".jinja":
            continue
        if path.name == "tokenizer_config.json":
            documents[path.name] = _tokenizer_config(_read_object(path), templates.get(DEFAULT))
        else:
            copy_client_file(path, folder / path.name)
            copied.append(path.name)
    if (folder / "tokenizer.json").is_file() and "tokenizer_config.json" not in documents:
        documents["tokenizer_config.json"] = _tokenizer_config({}, templates.get(DEFAULT))
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return sorted({*documents, *copied, *write_templates(folder, checkpoint)})


def write_templates(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Write each chat template to the file where transformers looks for it; their names, relative to ``folder``."""
    templates = folder_templates(checkpoint.folder)
    if any(name != DEFAULT for name in templates):
        (folder / TEMPLATE_FOLDER).mkdir(exist_ok=True)
    for name, source in templates.items():
        (folder / template_path(name)).write_text(source, encoding="utf-8")
    return [template_path(name) for name in templates]


def _cache_dtype(precision: Precision) -> dict[str, Any]:
    """What transformers.js 3 must be told to make float16 caches; later ones read it from the graph."""
    return {"kv_cache_dtype": {precision.name: "float16"}} if precision.activations == np.float16 else {}


def genai_config(
    config: LfmConfig, precision: Precision, ops_profile: OpsProfile, context_length: int, generation: dict[str, Any]
) -> dict[str, Any]:
    """onnxruntime-genai's configuration; it refuses keys that it does not know."""
    eos = list(end_token_ids(generation, config))
    # A null, which other clients take for "not set", is refused by genai.
    usable = sampling_fields(generation).values
    search = {name: usable[name] for name in _SEARCH_DEFAULTS if name in usable}
    search["max_length"] = min(context_length, GENAI_MAX_LENGTH)
    # GroupQueryAttention writes into its past; Concat makes a new, longer cache.
    search["past_present_share_buffer"] = ops_profile is OpsProfile.CUSTOM and bool(config.attention_layers)
    return {
        "model": {
            "type": "lfm2",
            "bos_token_id": config.bos_token_id if config.bos_token_id is not None else 0,
            "eos_token_id": eos[0] if len(eos) == 1 else eos,
            "pad_token_id": config.pad_token_id if config.pad_token_id is not None else 0,
            "context_length": context_length,
            "vocab_size": config.vocab_size,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": f"onnx/{precision.model_file}",
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_key_value_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "layer_types": list(config.layer_types),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                    "past_conv_names": "past_conv.%d",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                    "present_conv_names": "present_conv.%d",
                },
            },
        },
        "search": search,
    }


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    if (checkpoint.folder / GENERATION_CONFIG_NAME).is_file():
        return usable_generation_config(read_generation_config(checkpoint.folder, TokenizerError))[0]
    config = checkpoint.config
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
    }


def folder_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a checkpoint or artifact by name."""
    settings = folder / "tokenizer_config.json"
    return read_templates(folder, _read_object(settings) if settings.is_file() else {})


def _tokenizer_config(settings: dict[str, Any], template: str | None) -> dict[str, Any]:
    settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    if template is not None:
        settings["chat_template"] = portable_template(template)
    elif isinstance(settings.get("chat_template"), list):
        del settings["chat_template"]  # named templates without a default: genai refuses a list
    return settings


def _read_object(path: Path) -> dict[str, Any]:
    return dict(JsonObject.read(path, TokenizerError, most_bytes=MAX_TOKENIZER_BYTES).data)
