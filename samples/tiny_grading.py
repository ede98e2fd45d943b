"""Grading the sample model: greedy answers against the expected text, and which experts the routers choose."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_OF_TURN = "<|im_end|>"
END_OF_THOUGHT = "</think>"


@dataclass(frozen=True)
class Failure:
    """A task whose answer was not the expected one, with all that the model wrote."""

    task_id: str
    expected: str
    generated: str


@dataclass(frozen=True)
class Grades:
    """Exact match, overall and by category (shares from 0 to 1), and the tasks missed."""

    overall: float
    by_category: dict[str, float]
    failures: list[Failure]


def final_answer(text: str) -> str:
    """The graded part of a reply decoded with special tokens kept."""
    return text.split(END_OF_TURN, 1)[0].rpartition(END_OF_THOUGHT)[2].strip()


def load_model(folder: Path) -> tuple[Any, Any]:
    """The stored checkpoint in transformers, weights as float32, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, Lfm2MoeForCausalLM

    model = Lfm2MoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def prompt_ids(tokenizer: Any, task: dict[str, Any]) -> list[int]:
    """The task's prompt through the checkpoint's chat template, ready for the assistant's reply."""
    text = tokenizer.apply_chat_template(
        task["messages"], tools=task.get("tools"), add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def grade(model: Any, tokenizer: Any, tasks: list[dict[str, Any]], batch_size: int = 32) -> Grades:
    """Answer every task greedily, in batches padded on the left."""
    import torch

    prompts = [(task, prompt_ids(tokenizer, task)) for task in tasks]
    prompts.sort(key=lambda pair: len(pair[1]))
    hits: dict[str, list[bool]] = defaultdict(list)
    failures = []
    for at in range(0, len(prompts), batch_size):
        batch = prompts[at : at + batch_size]
        length = max(len(ids) for _, ids in batch)
        padding = [length - len(ids) for _, ids in batch]
        ids = torch.tensor([[0] * pad + ids for pad, (_, ids) in zip(padding, batch, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding])
        with torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max(task["max_new_tokens"] for task, _ in batch),
            )
        for (task, _), row in zip(batch, output, strict=True):
            text = tokenizer.decode(row[length:], skip_special_tokens=False)
            right = final_answer(text) == task["expected"]
            hits[task["category"]].append(right)
            if not right:
                failures.append(Failure(task["id"], task["expected"], text.split(END_OF_TURN, 1)[0]))
    by_category = {name: sum(rights) / len(rights) for name, rights in sorted(hits.items())}
    return Grades(1 - len(failures) / len(tasks), by_category, failures)


def expert_usage(model: Any, tokenizer: Any, tasks: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Share of the routed tokens that each expert gets, per MoE layer, over the tasks' prompts and right answers.

    Returns:
        Layer index (as text) to one share per expert; the shares of a layer sum to 1.
    """
    import torch

    config = model.config
    counts = {i: torch.zeros(config.num_experts) for i in range(config.num_dense_layers, config.num_hidden_layers)}

    def counter(index: int) -> Any:
        def count(_module: Any, _inputs: Any, output: tuple[Any, ...]) -> None:
            counts[index] += torch.bincount(output[2].reshape(-1), minlength=config.num_experts)

        return count

    layers = model.model.layers
    hooks = [layers[i].feed_forward.gate.register_forward_hook(counter(i)) for i in counts]
    with torch.no_grad():
        for task in tasks:
            answer = tokenizer(task["expected"] + END_OF_TURN, add_special_tokens=False)["input_ids"]
            model(input_ids=torch.tensor([prompt_ids(tokenizer, task) + list(answer)]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {str(i): [round(share, 4) for share in (c / c.sum()).tolist()] for i, c in counts.items()}
