"""What every client is asked, and what it must answer: transformers' rendering and the numpy reference's tokens."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from lfm_onnx.artifact.precision import FP16, FP32, PRECISIONS
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.export import ExportOptions, OpsProfile, export_checkpoint
from lfm_onnx.reference.model import Reference
from transformers import AutoTokenizer

CLIENTS = Path(__file__).parents[1] / "clients"
NODE_PACKAGES = ("@huggingface/transformers", "onnxruntime-node", "onnxruntime-web")
MAX_NEW_TOKENS = 32
# Quantized precisions answer otherwise than the reference.
PROFILES = [f"{ops_profile.value}-{precision.name}" for precision in (FP32, FP16) for ops_profile in OpsProfile]
FP32_PROFILES = [profile for profile in PROFILES if profile.endswith("fp32")]

# One task of each; between them they hold a system turn, tools, a tool's result and an earlier answer.
_CATEGORIES = ("person", "town", "tool_call", "tool_answer", "follow_up")
_PAST_REASONING = [
    {"role": "user", "content": "How old is Mira?"},
    {"role": "assistant", "content": "<think>Mira, age: 43.</think>Mira is 43 years old."},
    {"role": "user", "content": "And who is the mayor of Sandel?"},
]


@dataclass(frozen=True)
class Conversation:
    """Messages with tools, their prompt as text and ids, and the reference's greedy ``answer``, end token included."""

    label: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    text: str
    ids: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Cases:
    """The questions to one checkpoint; all answers are at most MAX_NEW_TOKENS long."""

    checkpoint: Checkpoint
    eos: int
    pad: int
    conversations: list[Conversation]
    prompts: list[list[int]]
    """Ids of the conversations, of one token alone, and of a text of some 150 tokens without a template."""
    answers: list[list[int]]
    follow_up: list[int]
    """What follows the first prompt's answer: a second question."""
    second_answer: list[int]
    decoded: list[str]
    """transformers' text of the answers, special tokens left out."""


@functools.cache
def cases_of(folder: Path) -> Cases:
    """The cases of the sample model at ``folder``; computed once per process."""
    checkpoint = Checkpoint.open(folder)
    reference, tokenizer = Reference(checkpoint), AutoTokenizer.from_pretrained(folder)
    (eos,) = checkpoint.config.eos_token_ids

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(ids: list[int]) -> list[int]:
        return reference.greedy(ids, MAX_NEW_TOKENS, (eos,))

    def conversation(label: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Conversation:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        return Conversation(label, messages, tools, text, encode(text), answer(encode(text)))

    tasks = [json.loads(line) for line in (folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    first = {task["category"]: task for task in reversed(tasks)}
    conversations = [conversation(name, first[name]["messages"], first[name].get("tools")) for name in _CATEGORIES]
    conversations.append(conversation("past_reasoning", _PAST_REASONING, None))
    assert conversations[0].answer[-1] == eos, "the sample model should finish its first answer"
    long = encode(" ".join(task["expected"] for task in tasks[:40]))[:150]
    prompts = [talk.ids for talk in conversations] + [[checkpoint.config.bos_token_id or 0], long]
    answers = [talk.answer for talk in conversations] + [answer(ids) for ids in prompts[len(conversations) :]]
    follow_up = encode("\n<|im_start|>user\nHow much is 3 + 4?<|im_end|>\n<|im_start|>assistant\n")
    return Cases(
        checkpoint,
        eos,
        checkpoint.config.pad_token_id or 0,
        conversations,
        prompts,
        answers,
        follow_up,
        answer(prompts[0] + answers[0] + follow_up),
        [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers],
    )


def export(checkpoint: Checkpoint, output: Path, profile: str, **options: Any) -> Path:
    """The artifact of ``profile`` ("custom-fp32", "standard-fp16" …) at ``output``, as the command line makes it."""
    ops_profile, precision = profile.split("-")
    export_checkpoint(checkpoint, output, ExportOptions(PRECISIONS[precision], OpsProfile(ops_profile), **options))
    return output


def profile_artifact(exported_artifact: ArtifactFactory, profile: str) -> Path:
    """The sample model's artifact of ``profile``, quantized as the command line does it; shared, so read only."""
    ops_profile, precision = profile.split("-")
    return exported_artifact(SAMPLE, OpsProfile(ops_profile), PRECISIONS[precision], method=None)


def answers_of_transformers_js(
    artifacts: Mapping[str, Path], cases: Cases, runtime: str, conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """What one run of transformers.js over ``runtime``, node or wasm, gives: its versions, answers by artifact.

    Skips the test without Node or the packages.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node, which is not on the PATH")
    if not all((CLIENTS / "node_modules" / name / "package.json").is_file() for name in NODE_PACKAGES):
        pytest.skip("transformers.js is not installed in tests/clients; `make test` installs it where npm is present")
    job = {
        "artifacts": {profile: str(folder) for profile, folder in artifacts.items()},
        "conversations": [{"messages": talk.messages, "tools": talk.tools} for talk in conversations],
        "prompts": cases.prompts,
        "follow_up": cases.follow_up,
        "max_new_tokens": MAX_NEW_TOKENS,
        "pad_token_id": cases.pad,
    }
    script = [node, str(CLIENTS / "run_artifacts.mjs"), runtime]
    done = subprocess.run(script, input=json.dumps(job), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
