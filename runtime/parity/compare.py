"""The whole comparison of an artifact with its reference: from options to a ParityReport."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint.tokenizer import ChatTokenizer
from ...errors import ArtifactError, InputError
from . import checks
from .identity import end_token_ids, identity, require_same_config
from .layers import compare_layers
from .metrics import Deviation, LogitComparison, LogitMetrics
from .onnx_runner import OnnxRunner, resolve_provider
from .prompts import chunks_to_compare
from .report.contents import (
    Check,
    GreedyAgreement,
    LayerError,
    ParityReport,
    TaskAccuracy,
    Thresholds,
)
from .tasks import Task, answer_tasks, read_tasks

if TYPE_CHECKING:
    from ...artifact.artifact import Artifact
    from ...checkpoint.checkpoint import Checkpoint

Progress = Callable[[str], None]
BACKENDS = ("numpy", "transformers")
_DECODE_STEPS = 3
_CONSISTENCY_TOKENS = 64


@dataclass(frozen=True)
class ParityOptions:
    """What to compare, and how strictly (limits that are None are those of the artifact's precision).

    tokens: of all chunks together; chunk_tokens: of one chunk. greedy_prompts and greedy_tokens: continuations to
    compare, 0 for none. token_ids: chunks to compare on instead of any prompts.
    """

    backend: str = "numpy"
    prompts: Path | None = None
    token_ids: Sequence[Sequence[int]] | None = None
    tokens: int = 2048
    chunk_tokens: int = 256
    greedy_prompts: int = 8
    greedy_tokens: int = 32
    tasks: Path | None = None
    reference_tasks: bool = False
    layers: bool = False
    provider: str | None = None
    threads: int | None = None
    native: bool | None = None
    max_logit_diff: float | None = None
    max_kld: float | None = None
    min_top1: float | None = None
    min_accuracy: float | None = None


def compare(
    artifact: Artifact, checkpoint: Checkpoint, options: ParityOptions | None = None, progress: Progress | None = None
) -> ParityReport:
    """Compare an artifact with the checkpoint that it was made from.

    ``progress`` is called with one line of text as the work goes on. Raises LfmOnnxError where the comparison cannot
    be made: another checkpoint's artifact, prompts or tasks that cannot be read, a model that does not run.
    """
    return _Comparison(artifact, checkpoint, options or ParityOptions(), progress or (lambda _line: None)).run()


class _Comparison:
    def __init__(self, artifact: Artifact, checkpoint: Checkpoint, options: ParityOptions, progress: Progress) -> None:
        self.artifact, self.checkpoint, self.options, self.progress = artifact, checkpoint, options, progress
        self.started = time.monotonic()
        resolve_provider(options.provider)
        require_same_config(artifact, checkpoint)
        self.thresholds = Thresholds.of_variant(
            artifact.variant,
            max_logit_diff=options.max_logit_diff,
            max_kld=options.max_kld,
            min_top1=options.min_top1,
            min_accuracy=options.min_accuracy,
        )
        self.eos = end_token_ids(artifact)
        self.tasks = read_tasks(options.tasks) if options.tasks is not None else []
        self.tokenizer = self._tokenizer()
        self.chunks = chunks_to_compare(
            options, self.tasks, self.tokenizer, artifact.config.vocab_size, artifact.context_length, progress
        )
        progress(f"loading {artifact.model_path.name}")
        self.runner = OnnxRunner(artifact, provider=options.provider, threads=options.threads, native=options.native)
        progress(f"loading the {options.backend} reference")
        self.reference = open_reference(checkpoint, options.backend, options.threads)

    def run(self) -> ParityReport:
        artifact = self.artifact
        comparison = self._logits()
        metrics = comparison.summary()
        found = [*self._quality_checks(metrics), *self._consistency_checks(metrics)]
        greedy = self._greedy(found)
        tasks, reference_tasks = self._tasks(found)
        provider = self.runner.provider
        # The next step opens a session of its own: two at once would double the memory that a large model takes.
        del self.runner
        layers = self._layers(found)
        return ParityReport(
            identity=identity(artifact, self.checkpoint, self.options.backend, provider),
            thresholds=self.thresholds,
            logits=metrics,
            chunks=comparison.chunks,
            samples=comparison.samples,
            greedy=greedy,
            checks=found,
            layers=layers,
            tasks=tasks,
            reference_tasks=reference_tasks,
            seconds=time.monotonic() - self.started,
        )

    def _tokenizer(self) -> ChatTokenizer | None:
        needed = self.options.prompts is not None or self.tasks
        if needed or (self.artifact.folder / "tokenizer.json").is_file():
            return ChatTokenizer.load(self.artifact.folder)
        return None

    def _logits(self) -> LogitComparison:
        comparison = LogitComparison()
        for number, chunk in enumerate(self.chunks, 1):
            # First, because it says clearly what is wrong with ids that are no tokens of the model.
            reference = self.reference.forward(chunk.ids, logits="all")[0]
            model = self.runner.logits(chunk.ids)
            if model.shape != reference.shape:
                raise ArtifactError(
                    f"{self.artifact.model_path}: gives logits of shape {list(model.shape)}, the reference "
                    f"{list(reference.shape)}; this is not an export of {self.checkpoint.source}"
                )
            result = comparison.add(chunk.label, chunk.ids, reference, model)
            self.progress(
                f"chunk {number} of {len(self.chunks)} ({chunk.label}, {result.tokens} tokens): "
                f"KLD {result.kld:.2e}, top-1 {result.top1:.1%}"
            )
        return comparison

    def _quality_checks(self, metrics: LogitMetrics) -> list[Check]:
        limits = self.thresholds
        found = [Check("logits are finite", "values that are not", metrics.non_finite, 0)]
        if limits.max_logit_diff is not None:
            found.append(
                Check(
                    "logits",
                    "largest difference / std",
                    metrics.relative_max_diff,
                    limits.max_logit_diff,
                    detail=f"largest difference {metrics.max_abs_diff:.2e}, std {metrics.logit_std:.3g}",
                )
            )
        if limits.max_kld is not None:
            error = metrics.kld_standard_error
            found.append(
                Check(
                    "distribution",
                    "mean KLD in nats",
                    metrics.kld_mean,
                    limits.max_kld,
                    detail="" if error is None else f"standard error {error:.1e} over chunks",
                )
            )
        if limits.min_top1 is not None:
            found.append(Check("likeliest token", "top-1 agreement", metrics.top1, limits.min_top1, ">="))
        return found

    def _consistency_checks(self, metrics: LogitMetrics) -> list[Check]:
        self.progress("prefill against decode, padded batches against single rows")
        longest = max(self.chunks, key=lambda chunk: len(chunk.ids)).ids[:_CONSISTENCY_TOKENS]
        found = []
        if len(longest) > 1:
            note = f"{len(longest)} tokens"
            decoded = checks.decode_against_prefill(self.runner, longest)
            found.append(self._consistency("prefill and decode", decoded, metrics, f"{note} one by one"))
            pieces = checks.pieces_against_prefill(self.runner, longest)
            found.append(self._consistency("prefill in pieces", pieces, metrics, f"{note} in pieces of 1 to 16"))
        steps = min(_DECODE_STEPS, len(longest) - 1)
        rows = checks.unequal_rows([chunk.ids for chunk in self.chunks], steps)
        pad_id = self.artifact.config.pad_token_id or 0
        for side in ("left", "right"):
            prefill, decode = checks.padded_batch(self.runner, rows, side, steps, pad_id)
            note = f"rows of {', '.join(str(len(row) - steps) for row in rows)} tokens"
            found.append(self._consistency(f"padded on the {side}", prefill, metrics, note))
            if steps:
                name = f"decode after padding on the {side}"
                found.append(self._consistency(name, decode, metrics, f"{note}, {steps} steps"))
        return found

    def _consistency(self, name: str, deviation: Deviation, metrics: LogitMetrics, detail: str) -> Check:
        limit = self.thresholds.consistency
        if not self.thresholds.exact:
            return Check(name, "mean KLD in nats", deviation.kld_mean, limit, detail=detail)
        value = deviation.max_abs_diff / metrics.logit_std if deviation.max_abs_diff != 0 else 0.0
        return Check(name, "largest difference / std", value, limit, detail=detail)

    def _greedy(self, found: list[Check]) -> list[GreedyAgreement]:
        options = self.options
        count = min(options.greedy_prompts, len(self.chunks)) if options.greedy_tokens > 0 else 0
        results = []
        for i in range(count):
            chunk = self.chunks[i * len(self.chunks) // count]
            result = checks.greedy_agreement(
                self.runner, self.reference, chunk.label, chunk.ids, options.greedy_tokens, self.eos
            )
            self.progress(f"greedy {i + 1} of {count} ({chunk.label}): {result.agreed} of {result.tokens} tokens equal")
            results.append(result)
        if results and self.thresholds.greedy_equal:
            parted = [r for r in results if not r.equal]
            ties = sum(r.tie for r in results)
            note = f"first parts after {parted[0].agreed} tokens: {parted[0].label}" if parted else ""
            note = note or (f"{ties} part at a tie" if ties else f"up to {options.greedy_tokens} tokens each")
            found.append(Check("greedy continuations", "prompts that part", len(parted), 0, detail=note))
        return results

    def _layers(self, found: list[Check]) -> list[LayerError] | None:
        if not self.options.layers:
            return None
        self.progress("hidden states layer by layer")
        ids = max(self.chunks, key=lambda chunk: len(chunk.ids)).ids
        where = {name: getattr(self.options, name) for name in ("provider", "threads", "native")}
        errors = compare_layers(self.artifact, self.reference, ids, **where)
        limit = self.thresholds.layer_error
        worst = max(errors, key=lambda e: float("inf") if e.relative != e.relative else e.relative)
        first = next((e for e in errors if not e.relative <= limit), None)
        note = f"worst: {worst.name}" if first is None else f"first departs: {first.name} ({first.kind})"
        found.append(Check("hidden states", "largest relative error", worst.relative, limit, detail=note))
        return errors

    def _tasks(self, found: list[Check]) -> tuple[TaskAccuracy | None, TaskAccuracy | None]:
        if not self.tasks:
            return None, None
        tasks = self._answer(self.tasks, "tasks", self.runner.greedy)
        limits = self.thresholds
        if limits.min_accuracy is not None:
            found.append(Check("task accuracy", "share right", tasks.accuracy, limits.min_accuracy, ">="))
        if not self.options.reference_tasks:
            return tasks, None
        reference = self._answer(self.tasks, "tasks by the reference", self.reference.greedy)
        limit = reference.accuracy - limits.accuracy_loss
        note = f"reference {reference.accuracy:.1%}"
        found.append(Check("tasks as the reference", "share right", tasks.accuracy, limit, ">=", note))
        return tasks, reference

    def _answer(self, tasks: Sequence[Task], name: str, greedy: Callable[..., list[int]]) -> TaskAccuracy:
        assert self.tokenizer is not None
        length = self.artifact.context_length
        return answer_tasks(
            tasks, self.tokenizer, greedy, self.eos, length, lambda line: self.progress(f"{name}: {line}")
        )


def open_reference(checkpoint: Checkpoint, backend: str, threads: int | None) -> Any:
    """The reference model in float32: "numpy" (any size) or "transformers" (needs torch)."""
    if backend == "numpy":
        from ...reference.model import Reference

        return Reference(checkpoint)
    if backend != "transformers":
        raise InputError(f"unknown reference backend {backend!r}; there are {' and '.join(BACKENDS)}")
    if not checkpoint.config.attention_layers:
        raise InputError("transformers cannot decode a model without attention layers: use --backend numpy")
    from ...reference.torch_model import TorchReference

    reference = TorchReference(checkpoint)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return reference
