"""Parameters in the library's messages as the command line spells them: `max_kld` is --max-kld there."""

from __future__ import annotations

import re

_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=(?:\"([^\"`]*)\"|(True|False)|([0-9.e+-]+)))?`")
_RENAMED = {
    "ops_profile": "--ops",
    "context_lengths": "--context-length",
    "provider": "--provider",
    "plan": "--target",
    "backend": "--reference-backend",
    "interpreter": "--python",
    "replace": "--force",
    "most_tasks": "--max-tasks",
    "max_tokens": "--tokens",
}
_VALUES = {("plan", "npu"): "qnn"}
_SWITCHED_OFF = {"tokenizer": "--no-tokenizer", "native": "--no-native"}
PARAMETERS = frozenset(
    {
        *_RENAMED,
        *_SWITCHED_OFF,
        *("precision", "method", "block_size", "scale_dtype", "zero_points", "threads", "variant", "report", "target"),
        *("calibration", "calibration_tokens", "budget", "max_kld", "recipe", "context_length", "revision"),
        *("chunk", "weight_budget", "memory_budget", "share_experts", "headroom", "soc", "cpu_artifact"),
        *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "system", "tools"),
        *("reference", "prompts", "tasks", "greedy_tokens", "most_tasks"),
        *("prompt_tokens", "new_tokens", "repeat"),
    }
)
"""What a message may name in backticks, with a value or without: `precision="q4"`, `tokenizer=False`."""


def with_flags(message: str) -> str:
    """``message`` with every parameter of ``PARAMETERS`` as the option that gives it."""
    return _PARAMETER.sub(_flag, message)


def _flag(match: re.Match[str]) -> str:
    name, text, switch, number = match.groups()
    if name not in PARAMETERS:
        return match[0]
    if switch == "False":
        return _SWITCHED_OFF.get(name, match[0])
    flag = _RENAMED.get(name, "--" + name.replace("_", "-"))
    value = _VALUES.get((name, text), text) if text is not None else number
    return flag if value is None else f"{flag} {value}"
