"""What an export tells its user besides the result: what of the checkpoint is not used, or not as it says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..artifact.precision import Precision
from ..checkpoint.chat_template import ChatTemplate
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.generation_config import GENERATION_CONFIG_NAME, read_generation_config
from ..checkpoint.named_templates import DEFAULT, TEMPLATE_FOLDER, template_path
from ..checkpoint.sampling_fields import usable_generation_config
from ..errors import TokenizerError
from ..quantize.activation_range import FLOAT16_LARGEST, activation_range
from ..strict_json import shown
from .client_configs import folder_templates, vocabulary


def checkpoint_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """One line on each such thing, and none twice: an artifact knows those of its checkpoint."""
    notes = (
        *checkpoint.notes,
        *_generation_notes(checkpoint),
        *_template_notes(checkpoint),
        *_vocabulary_notes(checkpoint),
    )
    return tuple(dict.fromkeys(notes))


def range_notes(
    checkpoint: Checkpoint, precision: Precision, sequences: Sequence[npt.NDArray[np.int64]]
) -> tuple[str, ...]:
    """Whether the activations of a short text, the first of ``sequences``, are beyond those of ``precision``.

    Reads all weights once where the activations are float16.
    """
    if precision.activations != np.float16:
        return ()
    found = activation_range(checkpoint, sequences)
    if found.fits_float16:
        return ()
    return (
        f"activations reach {found.largest:.3g} ({found.where}), beyond float16's {FLOAT16_LARGEST:.0f}: "
        f'{precision.name} will overflow to NaN; export with `precision="q4"`, whose activations are float32',
    )


def _generation_notes(checkpoint: Checkpoint) -> list[str]:
    _, notes = usable_generation_config(read_generation_config(checkpoint.folder, TokenizerError))
    return [f"{GENERATION_CONFIG_NAME}: {note}" for note in notes]


def _template_notes(checkpoint: Checkpoint) -> list[str]:
    templates = folder_templates(checkpoint.folder)
    notes = []
    for name, source in templates.items():
        try:
            ChatTemplate(source)
        except TokenizerError as error:
            notes.append(f"{template_path(name)}: {error}; lfm-onnx takes raw text alone in its place")
    others = sorted(set(templates) - {DEFAULT})
    if not others:
        return notes
    return [
        *notes,
        f"the chat templates {', '.join(others)} are in {TEMPLATE_FOLDER}/, for transformers and lfm-onnx; "
        "onnxruntime-genai and transformers.js know the default one alone",
    ]


def _vocabulary_notes(checkpoint: Checkpoint) -> list[str]:
    path, size = checkpoint.folder / "tokenizer.json", checkpoint.config.vocab_size
    try:
        tokens = vocabulary(path, path.stat().st_mtime_ns)
    except Exception:  # no tokenizer, or one that ``require_tokenizer`` refuses where it is needed
        return []
    beyond = [(token, id) for token, id in tokens.items() if id >= size]
    if not beyond:
        return []
    token, id = min(beyond, key=lambda item: item[1])
    return [
        f"tokenizer.json has {len(beyond)} tokens beyond the model's vocabulary of {size}, the first {shown(token)} "
        f"({id}): a prompt with one of them is refused"
    ]
