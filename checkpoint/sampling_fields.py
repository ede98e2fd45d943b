"""The fields of generation_config.json that decide how to sample: which can be used, and what is wrong with others.

A value is taken where transformers takes it, and judged only where it is used: a temperature of 0 does not matter to
greedy decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..strict_json import shown

SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p")
"""Used where tokens are drawn, and not in greedy decoding."""

_LARGEST = 1e300


def is_divisor(value: float) -> bool:
    """Whether float32 holds logits divided by ``value``, and times it."""
    return 1e-30 <= value <= 1e30


DIVISOR = "a number above 0 (from 1e-30 to 1e30)"

# Field: what is expected, whether a number is that.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "do_sample": ("true or false", lambda value: value in (0, 1)),
    "temperature": (DIVISOR, is_divisor),
    "top_k": ("an integer of 0 (all) or more", lambda value: isinstance(value, int) and value >= 0),
    "top_p": ("a number from 0 to 1", lambda value: value >= 0),  # above 1 keeps all, as 1 does
    "min_p": ("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": (DIVISOR, is_divisor),
    "max_new_tokens": ("an integer of 1 or more", lambda value: value == value // 1 >= 1),
}

# Fields with which transformers would choose other tokens, and the values besides null and 0 that change nothing.
_WITHOUT_COUNTERPART: dict[str, tuple[object, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "typical_p": (1,), "guidance_scale": (1,), "penalty_alpha": (),
    "epsilon_cutoff": (), "eta_cutoff": (), "top_h": (), "no_repeat_ngram_size": (), "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (), "bad_words_ids": (), "suppress_tokens": (), "begin_suppress_tokens": (),
    "sequence_bias": (), "forced_bos_token_id": (), "forced_eos_token_id": (), "min_length": (), "min_new_tokens": (),
    "exponential_decay_length_penalty": (), "stop_strings": (), "max_time": (), "watermarking_config": (),
}  # fmt: skip


@dataclass(frozen=True)
class SamplingFields:
    """``values`` that can be used, by name, as numbers and booleans; of the others in ``faults`` what is expected."""

    values: Mapping[str, Any]
    faults: Mapping[str, str]

    def used_faults(self, *, do_sample: bool) -> dict[str, str]:
        """The faults that matter where tokens are drawn (or the most likely one is taken)."""
        return {name: text for name, text in self.faults.items() if do_sample or name not in SAMPLING_ONLY}


def sampling_fields(generation_config: Mapping[str, Any]) -> SamplingFields:
    """The fields of a parsed generation_config.json; null is as absent."""
    values, faults = {}, {}
    for name, (expected, holds) in _FIELDS.items():
        value = generation_config.get(name)
        if value is None:
            continue
        if isinstance(value, (int, float)) and (abs(value) <= _LARGEST or name == "top_k") and holds(value):
            values[name] = _plain(name, value)
        else:
            faults[name] = f"{name} is {shown(value)}, expected {expected}"
    return SamplingFields(values, faults)


def usable_generation_config(generation_config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The config without what cannot be used as it says itself, and one line on each thing that is not used."""
    fields = sampling_fields(generation_config)
    faults = fields.used_faults(do_sample=fields.values.get("do_sample", False))
    notes = [f"{fault}: left out" for fault in faults.values()]
    ids = generation_config.get("eos_token_id")
    if ids is not None and not all(type(token) is int for token in (ids if isinstance(ids, list) else [ids])):
        faults["eos_token_id"] = ""
        notes.append(f"eos_token_id is {shown(ids)}, expected token ids: left out, config.json's end a reply")
    others = [
        f"{name} ({shown(value)})"
        for name, neutral in _WITHOUT_COUNTERPART.items()
        if (value := generation_config.get(name)) and value not in neutral
    ]
    if others:
        notes.append(f"lfm-onnx has no counterpart of {', '.join(others)} and generates without")
    return {name: value for name, value in generation_config.items() if name not in faults}, notes


def _plain(name: str, value: Any) -> Any:
    """In the type that is used: a boolean counts as the number that it is."""
    if name == "do_sample":
        return bool(value)
    if name in ("top_k", "max_new_tokens"):
        return int(value)
    number = value if not isinstance(value, bool) else int(value)
    return min(number, 1.0) if name == "top_p" else number
