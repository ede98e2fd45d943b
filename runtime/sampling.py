"""How the next token is chosen: the logits processors of transformers, in their order, then argmax or one draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..checkpoint.generation_config import GENERATION_CONFIG_NAME
from ..checkpoint.sampling_fields import DIVISOR, SAMPLING_ONLY, is_divisor, sampling_fields
from ..errors import ArtifactError, InputError

# What transformers falls back to when neither generation_config.json nor the caller says anything.
TRANSFORMERS_TOP_K = 50


@dataclass(frozen=True)
class SamplingOptions:
    """Options of one generation; defaults are greedy decoding without any penalty.

    do_sample: False takes the most likely token, after ``repetition_penalty``; the other fields are then unused.
    temperature: logits are divided by it, > 0. top_k: 0 keeps all. top_p, min_p: in [0, 1]; 1 and 0 keep all.
    repetition_penalty: > 0, 1 means none; applies to every token of prompt and answer. seed: None draws a fresh one.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = TRANSFORMERS_TOP_K
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, is_divisor(self.temperature), f"{DIVISOR}, or 0 for greedy")
        _require("top_k", self.top_k, isinstance(self.top_k, int) and self.top_k >= 0, "an integer of 0 (all) or more")
        _require("top_p", self.top_p, 0 <= self.top_p <= 1, "a number from 0 to 1")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "a number from 0 to 1")
        _require("repetition_penalty", self.repetition_penalty, is_divisor(self.repetition_penalty), DIVISOR)
        _require("seed", self.seed, self.seed is None or self.seed >= 0, "an integer of 0 or more")

    @classmethod
    def chosen(cls, generation_config: Mapping[str, Any], **overrides: float | None) -> SamplingOptions:
        """The caller's own values, None for none, before what generation_config.json asks for; see ``updated``.

        InputError for a value that is used and cannot be: of the caller by its name, of the file by file and name.
        """
        config = sampling_fields(generation_config)
        known = {field.name for field in fields(cls)}
        defaults = {name: value for name, value in config.values.items() if name in known}
        options = cls(**defaults).updated(**overrides)
        given = {name for name, value in overrides.items() if value is not None}
        decided = {"do_sample", "max_new_tokens"} if given & {"do_sample", *SAMPLING_ONLY} else {"max_new_tokens"}
        for name, fault in config.used_faults(do_sample=options.do_sample).items():
            if name not in given | decided:
                raise InputError(f"{GENERATION_CONFIG_NAME}: {fault}; give {name}, or correct the file")
        return options

    def updated(self, **overrides: float | None) -> SamplingOptions:
        """These options with the caller's own values; None keeps the default.

        ``temperature=0`` means greedy. A temperature, top_k, top_p or min_p from the caller turns sampling on, since
        it would have no effect otherwise.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        if "do_sample" not in given:
            if given.get("temperature") == 0:
                given["do_sample"] = False
            elif given.keys() & set(SAMPLING_ONLY):
                given["do_sample"] = True
        if given.get("temperature") == 0:
            del given["temperature"]
            if given["do_sample"]:
                raise InputError("sampling with temperature 0 is not defined: give a temperature above 0")
        return replace(self, **{name: _number(name, value) for name, value in given.items()})


def _number(name: str, value: Any) -> Any:
    kinds: tuple[type, ...] = {"do_sample": (bool,), "top_k": (int,), "seed": (int,)}.get(name, (int, float))
    if not isinstance(value, kinds) or (isinstance(value, bool) and name != "do_sample"):
        raise InputError(f"{name}: expected {' or '.join(kind.__name__ for kind in kinds)}, found {value!r}")
    return value


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"{name}: expected {expected}, found {value!r}")


def penalized(logits: np.ndarray, seen: np.ndarray, repetition_penalty: float) -> np.ndarray:
    """Logits [V] float32 with those of the token ids ``seen`` pushed down; a new array."""
    out = logits.astype(np.float32, copy=True)
    if repetition_penalty != 1.0 and seen.size:
        scores = out[seen]
        penalty = np.float32(repetition_penalty)
        out[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
    return out


def candidates(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """Token ids that may be drawn and their scores, after temperature, top_k, top_p, min_p, in this order.

    logits: [V] float32, already penalized. Only survivors are carried along, so that a vocabulary of 128000 is
    neither sorted nor exponentiated when top_k is set.
    """
    scores = logits / np.float32(options.temperature)
    ids = np.arange(scores.size)
    if 0 < options.top_k < scores.size:
        threshold = np.partition(scores, -options.top_k)[-options.top_k]
        ids = np.flatnonzero(scores >= threshold)  # ties with the k-th are kept, as in transformers
        scores = scores[ids]
    if options.top_p < 1.0:
        order = np.argsort(scores, kind="stable")
        keep = np.cumsum(softmax(scores[order])) > 1 - options.top_p
        keep[-1] = True
        kept = np.sort(order[keep])
        ids, scores = ids[kept], scores[kept]
    if options.min_p > 0.0:
        probabilities = softmax(scores)
        kept = np.flatnonzero(probabilities >= np.float32(options.min_p) * probabilities.max())
        ids, scores = ids[kept], scores[kept]
    return ids, scores


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities [N] float32 of scores [N]."""
    exponentials = np.exp(scores - scores.max())
    result: np.ndarray = exponentials / exponentials.sum()
    return result


class Sampler:
    """Chooses tokens for one sequence; remembers which ids occurred and the state of the random generator."""

    def __init__(self, options: SamplingOptions, prompt_ids: list[int]) -> None:
        self.options = options
        self._seen = set(prompt_ids) if options.repetition_penalty != 1.0 else None
        self._random = np.random.default_rng(options.seed)

    def choose(self, logits: np.ndarray) -> int:
        """The next token id from logits [V] of any float dtype; it counts as seen from now on.

        ArtifactError where the highest of them is not a number: no token is likelier than another.
        """
        seen = np.fromiter(self._seen, dtype=np.int64) if self._seen is not None else np.empty(0, np.int64)
        scores = penalized(logits, seen, self.options.repetition_penalty)
        token = int(np.argmax(scores))  # the first NaN, if there is one
        if not np.isfinite(scores[token]):
            raise ArtifactError(
                f"the model's logits are not numbers (token {token} has {scores[token]}): its activations or weights "
                'overflow; export the checkpoint with `precision="q4"` or fp32, whose activations are float32'
            )
        if self.options.do_sample:
            ids, scores = candidates(scores, self.options)
            cumulative = np.cumsum(softmax(scores.astype(np.float64)))
            draw = self._random.random() * cumulative[-1]
            token = int(ids[min(int(np.searchsorted(cumulative, draw, side="right")), ids.size - 1)])
        if self._seen is not None:
            self._seen.add(token)
        return token
