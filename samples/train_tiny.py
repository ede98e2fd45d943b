"""Train the sample model ``tiny_lfm``: an LFM2.5-MoE checkpoint small enough to ship, from text made here.

Run ``python samples/train_tiny.py --out samples/tiny_lfm``. Everything is drawn from the seed: world, chats, initial
weights. Training uses transformers' own ``Lfm2MoeForCausalLM``; the weights are rounded to bfloat16 and stored under
the names that hub checkpoints use, one tensor per expert and matrix.

Grading rule (see tiny_grading.py): greedy decoding in float32 from the bfloat16 weights; the new tokens are decoded
without skipping special tokens, cut at the first ``<|im_end|>``, what follows the last ``</think>`` is stripped of
white space and must equal ``expected`` exactly.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Threads that wait must sleep, not spin: on a busy machine spinning makes a step several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
import torch
import torch.nn.functional as F
from tiny_chats import held_out_tasks, tokenizer_texts, training_chats
from tiny_checkpoint import VOCAB_SIZE, model_config, sample_config, save_checkpoint
from tiny_grading import expert_usage, grade, load_model
from tiny_tokenizer import render, train_tokenizer

PEAK_LEARNING_RATES = {"tiny": 4e-3, "mid": 2e-3}
FINAL_LEARNING_RATE = 5e-5
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.02
TOKENS_PER_BATCH = 4096
BALANCE_RATE = 1e-3
PROMPT_LOSS_WEIGHT = 0.05
IGNORED = 0


@dataclass
class RouterLoad:
    """Counts which experts the routers choose, and shifts ``expert_bias`` towards an even load after each step.

    The bias moves by a fixed rate against the sign of (load - mean load), so that balance needs no auxiliary loss.
    """

    model: Any
    valid: torch.Tensor | None = None
    counts: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, layer in self.moe_layers():
            layer.feed_forward.gate.register_forward_hook(self._hook(index))

    def moe_layers(self) -> Iterator[tuple[int, Any]]:
        """The layers with experts, by index."""
        first = self.model.config.num_dense_layers
        return ((i, layer) for i, layer in enumerate(self.model.model.layers) if i >= first)

    def _hook(self, index: int) -> Any:
        def count(_module: Any, _inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
            chosen = output[2] if self.valid is None else output[2][self.valid]
            self.counts[index] = torch.bincount(chosen.reshape(-1), minlength=self.model.config.num_experts).float()

        return count

    def balance(self, rate: float) -> None:
        """Move each layer's bias by ``rate`` towards the experts that got too little."""
        for index, layer in self.moe_layers():
            counts = self.counts[index]
            layer.feed_forward.expert_bias += rate * torch.sign(counts.mean() - counts)


def loss_weights(ids: list[int], start: list[int], end: int, think: int) -> list[float]:
    """Weight of each token as a target: 1 in assistant turns that think, up to ``<|im_end|>``; little elsewhere."""
    weights = [PROMPT_LOSS_WEIGHT] * len(ids)
    for at in range(len(ids) - len(start)):
        if ids[at : at + len(start)] == start:
            first = at + len(start)
            stop = ids.index(end, first)
            weights[first : stop + 1] = [1.0 if ids[first] == think else 0.0] * (stop + 1 - first)
    return weights


def batches(tokenizer: Any, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of chats of similar length, padded on the right.

    Yields:
        ids [batch, length] int64 and target weights [batch, length] float32, both zero at padding.
    """
    rng = random.Random(f"batches {seed}")
    chats = training_chats(seed)
    start = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False).ids
    end, think = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<think>")
    while True:
        pool = [render(m, tools, keep_past_thinking=keep) for m, tools, keep in itertools.islice(chats, 2048)]
        encoded = sorted((e.ids for e in tokenizer.encode_batch(pool, add_special_tokens=False)), key=len)
        groups: list[list[list[int]]] = [[]]
        for ids in encoded:
            if (len(groups[-1]) + 1) * len(ids) > TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(ids)
        rng.shuffle(groups)
        for group in groups:
            length = max(map(len, group))
            ids_batch = torch.zeros(len(group), length, dtype=torch.long)
            weights = torch.zeros(len(group), length)
            for row, ids in enumerate(group):
                ids_batch[row, : len(ids)] = torch.tensor(ids)
                weights[row, : len(ids)] = torch.tensor(loss_weights(ids, start, end, think))
            yield ids_batch, weights


def learning_rate(peak: float, step: int, done: float) -> float:
    """Linear warm-up by ``step``, and a cosine down to the final rate by the share of training ``done``."""
    cosine = (1 + math.cos(math.pi * done)) / 2
    rate = FINAL_LEARNING_RATE + (peak - FINAL_LEARNING_RATE) * cosine
    return rate * min(1.0, (step + 1) / WARMUP_STEPS)


def train(model: Any, tokenizer: Any, peak: float, steps: int, seed: int, time_limit: float) -> tuple[int, float]:
    """Train in place.

    Returns:
        Steps done (fewer than asked for where ``time_limit`` seconds were over) and the mean loss of the last 50.
    """
    load = RouterLoad(model)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    begin, recent, tokens = time.monotonic(), [0.0], 0
    model.train()
    for step, (ids, weights) in enumerate(itertools.islice(batches(tokenizer, seed), steps)):
        # On a machine too slow for all steps the rate falls with the time, so that training still ends at a low one.
        # Within the limit the steps alone decide.
        elapsed = (time.monotonic() - begin) / time_limit
        rate = learning_rate(peak, step, min(1.0, max(step / steps, elapsed)))
        if elapsed > 1:
            click.echo(f"time limit reached at step {step} of {steps}")
            return step, sum(recent) / len(recent)
        for group in optimizer.param_groups:
            group["lr"] = rate
        load.valid = (ids != IGNORED).reshape(-1)
        # No attention mask: padding stands on the right, and neither attention nor convolution looks ahead.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        target_weights = weights[:, 1:].reshape(-1)
        losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none")
        loss = (losses * target_weights).sum() / target_weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        load.balance(BALANCE_RATE * rate / peak)
        recent = [*recent[-49:], loss.item()]
        tokens += int(load.valid.sum())
        if step % 50 == 49:
            seconds = time.monotonic() - begin
            click.echo(
                f"step {step + 1:5d}  loss {sum(recent) / len(recent):.4f}  {tokens / seconds:.0f} tokens/s  "
                f"{seconds:.0f} s"
            )
    return steps, sum(recent) / len(recent)


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(__file__).parent / "tiny_lfm")
@click.option(
    "--size",
    type=click.Choice(["tiny", "mid"]),
    default="tiny",
    show_default=True,
    help="tiny: the sample that is shipped. mid: 21 M parameters, to compare quantizers with; give --out too.",
)
@click.option("--steps", default=1600, show_default=True, help="Optimizer steps.")
@click.option("--seed", default=0, show_default=True)
@click.option("--time-limit-minutes", default=30.0, show_default=True, help="Stop training after this long.")
@click.option("--threads", default=2, show_default=True)
def main(out: Path, size: str, steps: int, seed: int, time_limit_minutes: float, threads: int) -> None:
    """Train, grade on the held-out tasks and write the checkpoint to OUT."""
    import tokenizers
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    begin, cpu_begin = time.monotonic(), time.process_time()
    tokenizer = train_tokenizer(tokenizer_texts(seed), VOCAB_SIZE)
    model = transformers.Lfm2MoeForCausalLM(model_config(sample_config(size)))
    model.set_experts_implementation("grouped_mm")  # the quickest of transformers' own on CPU at this size
    click.echo(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    done, loss = train(model, tokenizer, PEAK_LEARNING_RATES[size], steps, seed, time_limit_minutes * 60)
    seconds, cpu_seconds = time.monotonic() - begin, time.process_time() - cpu_begin

    work = out.with_name(out.name + ".new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    save_checkpoint(model, tokenizer, sample_config(size), work)
    tasks = held_out_tasks()
    (work / "tasks.jsonl").write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in tasks))
    stored, fast_tokenizer = load_model(work)
    result = grade(stored, fast_tokenizer, tasks)
    report = {
        "seed": seed,
        "steps": done,
        "loss": round(loss, 5),
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "threads": threads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "exact_match": result.overall,
        "exact_match_by_category": result.by_category,
        "tasks": len(tasks),
        "expert_usage": expert_usage(stored, fast_tokenizer, tasks),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (work / "training_report.json").write_text(json.dumps(report, indent=2) + "\n")
    for failure in result.failures:
        click.echo(f"{failure.task_id}: expected {failure.expected!r}, got {failure.generated!r}")
    click.echo(json.dumps(report, indent=2))
    put_in_place(work, out)


def put_in_place(work: Path, out: Path) -> None:
    """Move each finished file over its predecessor, so that a reader sees an old or a new one, never a half one."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(work.iterdir()):
        os.replace(path, out / path.name)
    work.rmdir()


if __name__ == "__main__":
    main()
