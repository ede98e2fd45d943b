"""The whole comparison of an artifact with its reference: from options to a ParityReport."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from ...artifact.artifact import Artifact
from ...artifact.npu_manifest import is_npu_artifact
from ...checkpoint.checkpoint import Checkpoint
from ...errors import ArtifactError
from ...hardware.cores import check_threads
from .chat_files import ChatFiles
from .file_checks import file_checks
from .greedy import greedy_agreement
from .identity import identity, limits_name, require_same_config
from .layers import layer_errors
from .metrics import Deviation, LogitComparison, LogitMetrics
from .npu_runner import open_npu_runners
from .onnx_model import resolve_provider
from .onnx_runner import OnnxRunner
from .options import ParityOptions
from .passages import passages_to_compare
from .reference import open_judge
from .report.contents import (
    Check,
    GreedyAgreement,
    LayerError,
    ParityReport,
    TaskAccuracy,
    Thresholds,
)
from .runner import Array, Runner
from .tasks import Task, answer_tasks, read_tasks
from .tokenizer_checks import tokenizer_checks

Progress = Callable[[str], None]


def compare(
    artifact: Artifact, checkpoint: Checkpoint, options: ParityOptions | None = None, progress: Progress | None = None
) -> ParityReport:
    """Compare an artifact, for the CPU or the NPU, with the checkpoint that it was made from.

    ``progress`` is called with one line of text as the work goes on. Raises LfmOnnxError where the comparison cannot
    be made: another checkpoint's artifact, prompts or tasks that cannot be read, a model that does not run.
    """
    return _Comparison(artifact, checkpoint, options or ParityOptions(), progress or (lambda _line: None)).run()


def open_runners(artifact: Artifact, options: ParityOptions) -> tuple[Runner, Runner | None]:
    """What runs the artifact, and what runs the same graphs beside it, to tell the device's errors from the file's."""
    if is_npu_artifact(artifact):
        return open_npu_runners(artifact, options)
    return OnnxRunner(artifact, options), None


class _Comparison:
    def __init__(self, artifact: Artifact, checkpoint: Checkpoint, options: ParityOptions, progress: Progress) -> None:
        self.artifact, self.checkpoint, self.options, self.progress = artifact, checkpoint, options, progress
        self.started = time.monotonic()
        check_threads(options.threads)
        resolve_provider(options.provider)
        require_same_config(artifact, checkpoint)
        self.thresholds = Thresholds.of_variant(
            limits_name(artifact),
            max_logit_diff=options.max_logit_diff,
            max_kld=options.max_kld,
            min_top1=options.min_top1,
            min_accuracy=options.min_accuracy,
        )
        self.tasks = _spread(read_tasks(options.tasks), options.most_tasks) if options.tasks is not None else []
        with_text = options.prompts is not None or bool(self.tasks)
        self.own = ChatFiles.read(artifact.folder, artifact.config, required=with_text)
        self.theirs = ChatFiles.read(checkpoint.folder, checkpoint.config, required=False)
        self.passages = passages_to_compare(
            options,
            self.tasks,
            None if self.own.tokenizer is None else (self.theirs.tokenizer or self.own.tokenizer),
            checkpoint.config.vocab_size,
            artifact.context_length,
            progress,
        )
        self.longest = max(self.passages, key=lambda passage: len(passage.ids))
        self.checks = self._file_checks()
        # From here on the checkpoint's: one that was changed in the artifact has been found, and must not end the run.
        self.artifact = dataclasses.replace(artifact, config=checkpoint.config)
        progress(f"loading {artifact.model_path.name}")
        self.runner, self.beside = open_runners(self.artifact, options)
        judge = open_judge(checkpoint, options.backend, options.threads, progress)
        self.backend, self.reference = judge.backend, judge.model

    def run(self) -> ParityReport:
        comparison, metrics, quality = self._logits()
        checks = [*self.checks, *quality]
        self.progress("the same tokens read in other ways")
        checks += self.runner.own_checks(self.passages, self.thresholds, metrics.logit_std)
        greedy = self._greedy(checks)
        tasks, reference_tasks = self._tasks(checks)
        layers = self._layers(checks)
        about = {**self._identity(), **self.runner.about()}
        if self.beside is not None:
            about["beside"] = self.beside.provider
        return ParityReport(
            identity=about,
            thresholds=self.thresholds,
            logits=metrics,
            passages=comparison.passages,
            samples=comparison.samples,
            greedy=greedy,
            checks=checks,
            layers=layers,
            tasks=tasks,
            reference_tasks=reference_tasks,
            seconds=time.monotonic() - self.started,
        )

    def _file_checks(self) -> list[Check]:
        """The artifact's files against the manifest and the checkpoint."""
        self.progress(f"verifying {len(self.artifact.files)} files")
        checks = file_checks(self.artifact, self.checkpoint)
        if self.own.tokenizer is not None and self.theirs.tokenizer is not None:
            checks += tokenizer_checks(self.own.tokenizer, self.theirs.tokenizer)
        elif self.own.tokenizer is not None:
            self.progress("the checkpoint has no tokenizer: nothing to compare the artifact's with")
        return checks

    def _identity(self) -> dict[str, str]:
        return identity(self.artifact, self.checkpoint, self.backend, self.runner.provider)

    def _logits(self) -> tuple[LogitComparison, LogitMetrics, list[Check]]:
        """Every passage, by the reference, the runner, and what runs beside it."""
        comparison, of_beside = LogitComparison(), LogitComparison()
        both: list[tuple[Array, Array]] = []
        for number, passage in enumerate(self.passages, 1):
            # First, because it says clearly what is wrong with ids that are no tokens of the model.
            reference = self.reference.forward(passage.ids, logits="all")[0]
            model = self.runner.logits(passage.ids)
            if model.shape != reference.shape:
                raise ArtifactError(
                    f"{self.artifact.model_path}: gives logits of shape {list(model.shape)}, the reference "
                    f"{list(reference.shape)}; this is not an export of {self.checkpoint.source}"
                )
            result = comparison.add(passage.label, passage.ids, reference, model)
            note = ""
            if self.beside is not None:
                both.append((self.beside.logits(passage.ids), model))
                own = of_beside.add(passage.label, passage.ids, reference, both[-1][0])
                note = f"; on the CPU {own.kld:.2e}, {own.top1:.1%}"
            self.progress(
                f"passage {number} of {len(self.passages)} ({passage.label}, {result.tokens} tokens): "
                f"KLD {result.kld:.2e}, top-1 {result.top1:.1%}{note}"
            )
        metrics = comparison.summary()
        if not both:
            return comparison, metrics, self._quality_checks(metrics, None)
        checks = self._quality_checks(metrics, of_beside.summary())
        return comparison, metrics, [*checks, self._device_check(both)]

    def _quality_checks(self, metrics: LogitMetrics, beside: LogitMetrics | None) -> list[Check]:
        limits = self.thresholds
        checks = [Check("logits are finite", "values that are not", metrics.non_finite, 0)]
        if limits.max_logit_diff is not None:
            note = f"largest difference {metrics.max_abs_diff:.2e}, std {metrics.logit_std:.3g}"
            value = metrics.relative_max_diff
            checks.append(Check("logits", "largest difference / std", value, limits.max_logit_diff, detail=note))
        if limits.max_kld is not None:
            error = metrics.kld_standard_error
            note = "" if error is None else f"standard error {error:.1e} over passages"
            if beside is not None:
                note = f"the same graphs on the CPU {beside.kld_mean:.2e}: quantization alone"
            checks.append(Check("distribution", "mean KLD in nats", metrics.kld_mean, limits.max_kld, detail=note))
        if limits.min_top1 is not None:
            note = "" if beside is None else f"the same graphs on the CPU {beside.top1:.1%}"
            checks.append(Check("likeliest token", "top-1 agreement", metrics.top1, limits.min_top1, ">=", note))
        return checks

    def _device_check(self, both: Sequence[tuple[Array, Array]]) -> Check:
        apart = Deviation.between(*(np.concatenate(rows) for rows in zip(*both, strict=True)))
        limit = self.thresholds.max_kld if self.thresholds.max_kld is not None else self.thresholds.consistency
        note = "the device's own arithmetic"
        return Check("device against CPU", "mean KLD in nats", apart.kld_mean, limit, detail=note)

    def _greedy(self, checks: list[Check]) -> list[GreedyAgreement]:
        options = self.options
        count = min(options.greedy_prompts, len(self.passages)) if options.greedy_tokens > 0 else 0
        results = []
        for i in range(count):
            passage = self.passages[i * len(self.passages) // count]
            result = greedy_agreement(
                self.runner, self.reference, passage.label, passage.ids, options.greedy_tokens, self.theirs.end_ids
            )
            self.progress(
                f"greedy {i + 1} of {count} ({passage.label}): {result.agreed} of {result.tokens} tokens equal"
            )
            results.append(result)
        if results and self.thresholds.greedy_equal:
            parted = [r for r in results if not r.equal]
            ties = sum(r.tie for r in results)
            note = f"first parts after {parted[0].agreed} tokens: {parted[0].label}" if parted else ""
            note = note or (f"{ties} part at a tie" if ties else f"up to {options.greedy_tokens} tokens each")
            checks.append(Check("greedy continuations", "prompts that part", len(parted), 0, detail=note))
        return results

    def _layers(self, checks: list[Check]) -> list[LayerError] | None:
        if not self.options.layers:
            return None
        self.progress("hidden states layer by layer")
        states = self.runner.layer_states(self.longest.ids)
        if self.beside is not None:
            own = self.beside.layer_states(self.longest.ids)
            states += [dataclasses.replace(state, kind=f"{state.kind}, on the CPU") for state in own]
        expected: list[Array] = []
        self.reference.forward(self.longest.ids, hidden=expected)
        errors = layer_errors(sorted(states, key=lambda state: state.index), expected)
        if self.runner.layers_are_judged:
            checks.append(self._layer_check(errors))
        return errors

    def _layer_check(self, errors: Sequence[LayerError]) -> Check:
        limit = self.thresholds.layer_error
        worst = max(errors, key=lambda e: float("inf") if e.relative != e.relative else e.relative)
        first = next((e for e in errors if not e.relative <= limit), None)
        note = f"worst: {worst.name}" if first is None else f"first departs: {first.name} ({first.kind})"
        return Check("hidden states", "largest relative error", worst.relative, limit, detail=note)

    def _tasks(self, checks: list[Check]) -> tuple[TaskAccuracy | None, TaskAccuracy | None]:
        """Each model answers by its own files: what the artifact's make of a conversation is part of its answer."""
        if not self.tasks:
            return None, None
        tasks = self._answer("tasks", self.own, self.runner.greedy)
        limits = self.thresholds
        if limits.min_accuracy is not None:
            checks.append(Check("task accuracy", "share right", tasks.accuracy, limits.min_accuracy, ">="))
        reference = self._answer("tasks by the reference", self.theirs, self.reference.greedy)
        limit = reference.accuracy - limits.accuracy_loss
        note = f"reference {reference.accuracy:.1%}, at most {100 * limits.accuracy_loss:g} points may be lost"
        checks.append(Check("tasks as the reference", "share right", tasks.accuracy, limit, ">=", note))
        return tasks, reference

    def _answer(self, name: str, files: ChatFiles, greedy: Callable[..., list[int]]) -> TaskAccuracy:
        tokenizer = files.tokenizer or self.own.tokenizer
        assert tokenizer is not None
        length = self.artifact.context_length
        return answer_tasks(
            self.tasks, tokenizer, greedy, files.end_ids, length, lambda line: self.progress(f"{name}: {line}")
        )


def _spread(tasks: list[Task], most: int | None) -> list[Task]:
    if most is None or most >= len(tasks):
        return tasks
    return [tasks[i * len(tasks) // most] for i in range(most)]
