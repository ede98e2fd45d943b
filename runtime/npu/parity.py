"""Parity of an NPU export: the device against the checkpoint, and the same graphs on the CPU beside it.

What the CPU loses against the checkpoint is the price of quantization; what the device loses against the CPU is the
device's own arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...artifact.artifact import Artifact
from ...artifact.npu_manifest import NpuManifest
from ...checkpoint.tokenizer import ChatTokenizer
from ..parity import checks
from ..parity.compare import ParityOptions, open_reference
from ..parity.identity import end_token_ids, identity, require_same_config
from ..parity.layers import layer_error
from ..parity.metrics import Deviation, LogitComparison, LogitMetrics
from ..parity.prompts import chunks_to_compare
from ..parity.report.contents import (
    Check,
    GreedyAgreement,
    LayerError,
    ParityReport,
    TaskAccuracy,
    Thresholds,
)
from ..parity.tasks import Task, answer_tasks, read_tasks
from .backends import CpuBackend, open_backend
from .runner import NpuRunner

if TYPE_CHECKING:
    from ...checkpoint.checkpoint import Checkpoint

_DECODED = 8
"""Tokens at the end of a chunk that are read one by one as well."""
_SHORT = (1, 2, 5)


@dataclass(frozen=True)
class NpuParityOptions:
    """backend: "qnn" (NPU or emulator) or "cpu" alone. soc: chip whose binaries to load or to compile for.
    most_tasks: of the tasks, spread over the file; None for all (the emulator takes seconds for a token)."""

    backend: str = "qnn"
    soc: str | None = None
    most_tasks: int | None = None


def compare_npu(
    artifact: Artifact,
    checkpoint: Checkpoint,
    options: ParityOptions,
    npu: NpuParityOptions,
    progress: Callable[[str], None] = lambda _line: None,
) -> ParityReport:
    """Compare the NPU export ``artifact`` with its checkpoint. Raises LfmOnnxError where that cannot be done."""
    return _NpuComparison(artifact, checkpoint, options, npu, progress).run()


class _NpuComparison:
    def __init__(
        self,
        artifact: Artifact,
        checkpoint: Checkpoint,
        options: ParityOptions,
        npu: NpuParityOptions,
        progress: Callable[[str], None],
    ) -> None:
        self.artifact, self.checkpoint, self.options, self.npu = artifact, checkpoint, options, npu
        self.progress = progress
        self.started = time.monotonic()
        require_same_config(artifact, checkpoint)
        self.manifest = NpuManifest.read(artifact)
        self.thresholds = Thresholds.of_variant(
            f"qnn-{self.manifest.precision.get('weights', 'int8')}",
            max_logit_diff=options.max_logit_diff,
            max_kld=options.max_kld,
            min_top1=options.min_top1,
            min_accuracy=options.min_accuracy,
        )
        self.eos = end_token_ids(artifact)
        self.tasks = _spread(read_tasks(options.tasks), npu.most_tasks) if options.tasks is not None else []
        has_tokenizer = (artifact.folder / "tokenizer.json").is_file()
        needed = options.prompts is not None or self.tasks
        self.tokenizer = ChatTokenizer.load(artifact.folder) if needed or has_tokenizer else None
        longest = self.manifest.context_lengths[-1]
        self.chunks = chunks_to_compare(
            options, self.tasks, self.tokenizer, artifact.config.vocab_size, longest, progress
        )
        progress(f"loading {len(self.manifest.parts)} parts")
        backend = open_backend(npu.backend, artifact, self.manifest, soc=npu.soc, threads=options.threads)
        self.device = NpuRunner(self.manifest, backend)
        self.cpu = None if npu.backend == "cpu" else NpuRunner(self.manifest, CpuBackend(artifact, options.threads))
        self.reference = open_reference(checkpoint, options.backend, options.threads)
        self.against_cpu: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self) -> ParityReport:
        on_device, on_cpu = LogitComparison(), LogitComparison()
        longest = max(self.chunks, key=lambda chunk: len(chunk.ids))
        layers = range(self.artifact.config.num_hidden_layers) if self.options.layers else ()
        errors: list[LayerError] | None = None
        for number, chunk in enumerate(self.chunks, 1):
            wanted = layers if chunk is longest else ()
            hidden: list[np.ndarray] | None = [] if wanted else None
            expected = self.reference.forward(chunk.ids, hidden=hidden, logits="all")[0]
            found, streams = self.device.compare(chunk.ids, wanted)
            result = on_device.add(chunk.label, chunk.ids, expected, found)
            beside = ""
            if self.cpu is not None:
                same, cpu_streams = self.cpu.compare(chunk.ids, wanted)
                own = on_cpu.add(chunk.label, chunk.ids, expected, same)
                self.against_cpu.append((same, found))
                beside = f"; on the CPU {own.kld:.2e}, {own.top1:.1%}"
            if wanted:
                assert hidden is not None
                errors = self._layers(hidden, streams, cpu_streams if self.cpu is not None else {})
            self.progress(
                f"chunk {number} of {len(self.chunks)} ({chunk.label}, {result.tokens} tokens): "
                f"KLD {result.kld:.2e}, top-1 {result.top1:.1%}{beside}"
            )
        metrics = on_device.summary()
        found_checks = self._checks(metrics, on_cpu.summary() if self.cpu is not None else None)
        found_checks += self._consistency(longest.ids)
        greedy = self._greedy()
        tasks, reference_tasks = self._tasks(found_checks)
        return ParityReport(
            identity=self._identity(),
            thresholds=self.thresholds,
            logits=metrics,
            chunks=on_device.chunks,
            samples=on_device.samples,
            greedy=greedy,
            checks=found_checks,
            layers=errors,
            tasks=tasks,
            reference_tasks=reference_tasks,
            seconds=time.monotonic() - self.started,
        )

    def _checks(self, metrics: LogitMetrics, cpu: LogitMetrics | None) -> list[Check]:
        limits = self.thresholds
        found = [Check("logits are finite", "values that are not", metrics.non_finite, 0)]
        if limits.max_kld is not None:
            note = "" if cpu is None else f"the same graphs on the CPU {cpu.kld_mean:.2e}: quantization alone"
            found.append(Check("distribution", "mean KLD in nats", metrics.kld_mean, limits.max_kld, detail=note))
        if limits.min_top1 is not None:
            note = "" if cpu is None else f"the same graphs on the CPU {cpu.top1:.1%}"
            found.append(Check("likeliest token", "top-1 agreement", metrics.top1, limits.min_top1, ">=", note))
        if self.against_cpu:
            apart = Deviation.between(*(np.concatenate(rows) for rows in zip(*self.against_cpu, strict=True)))
            note = "the device's own arithmetic"
            limit = limits.max_kld if limits.max_kld is not None else limits.consistency
            found.append(Check("device against CPU", "mean KLD in nats", apart.kld_mean, limit, detail=note))
        return found

    def _consistency(self, ids: Sequence[int]) -> list[Check]:
        """Prompts of few tokens, around the chunk's length and read on by decode, against the rows of one prefill."""
        self.progress("short prompts, and decode against prefill")
        whole = self.device.logits(ids)
        chunk = self.manifest.chunk
        lengths = sorted({n for n in (*_SHORT, chunk - 1, chunk, chunk + 1) if 0 < n <= len(ids)})
        rows = np.concatenate([self.device.decode_logits(ids[:n], []) for n in lengths])
        short = Deviation.between(whole[[n - 1 for n in lengths]], rows)
        note = f"prompts of {', '.join(map(str, lengths))} tokens"
        limit = self.thresholds.consistency
        found = [Check("short and whole prompts", "mean KLD in nats", short.kld_mean, limit, detail=note)]
        split = len(ids) - min(_DECODED, len(ids) - 1)
        if split < len(ids):
            decoded = Deviation.between(whole[split - 1 :], self.device.decode_logits(ids[:split], ids[split:]))
            note = f"{len(ids) - split} tokens one by one"
            found.append(Check("prefill and decode", "mean KLD in nats", decoded.kld_mean, limit, detail=note))
        return found

    def _layers(
        self, expected: list[np.ndarray], found: dict[int, np.ndarray], cpu: dict[int, np.ndarray]
    ) -> list[LayerError]:
        errors = []
        config = self.artifact.config
        for layer, rows in sorted(found.items()):
            kind = "conv" if config.layer_types[layer] == "conv" else "attention"
            kind += ", experts" if config.is_moe_layer(layer) else ", feed-forward"
            part = next(p.name for p in self.manifest.parts if p.first_layer <= layer < p.last_layer)
            # The reference lists the embeddings first.
            errors.append(layer_error(str(layer), f"{kind} ({part})", expected[layer + 1], rows))
            if layer in cpu:
                beside = f"{kind} ({part}), on the CPU"
                errors.append(layer_error(str(layer), beside, expected[layer + 1], cpu[layer]))
        return errors

    def _greedy(self) -> list[GreedyAgreement]:
        options = self.options
        count = min(options.greedy_prompts, len(self.chunks)) if options.greedy_tokens > 0 else 0
        results = []
        for i in range(count):
            chunk = self.chunks[i * len(self.chunks) // count]
            runner: Any = self.device
            result = checks.greedy_agreement(
                runner, self.reference, chunk.label, chunk.ids, options.greedy_tokens, self.eos
            )
            self.progress(f"greedy {i + 1} of {count} ({chunk.label}): {result.agreed} of {result.tokens} tokens equal")
            results.append(result)
        return results

    def _tasks(self, found: list[Check]) -> tuple[TaskAccuracy | None, TaskAccuracy | None]:
        if not self.tasks:
            return None, None
        tasks = self._answer("tasks", self.device.greedy)
        if self.thresholds.min_accuracy is not None:
            limit = self.thresholds.min_accuracy
            found.append(Check("task accuracy", "share right", tasks.accuracy, limit, ">="))
        if not self.options.reference_tasks:
            return tasks, None
        reference = self._answer("tasks by the reference", self.reference.greedy)
        limit = reference.accuracy - self.thresholds.accuracy_loss
        note = f"reference {reference.accuracy:.1%}"
        found.append(Check("tasks as the reference", "share right", tasks.accuracy, limit, ">=", note))
        return tasks, reference

    def _answer(self, name: str, greedy: Callable[..., list[int]]) -> TaskAccuracy:
        assert self.tokenizer is not None
        length = self.manifest.context_lengths[-1]
        return answer_tasks(
            self.tasks, self.tokenizer, greedy, self.eos, length, lambda line: self.progress(f"{name}: {line}")
        )

    def _identity(self) -> dict[str, str]:
        found = identity(self.artifact, self.checkpoint, self.options.backend, self.device.provider)
        precision = self.manifest.precision
        found["variant"] = ", ".join(f"{key} {value}" for key, value in precision.items())
        parts, lengths = len(self.manifest.parts), ", ".join(map(str, self.manifest.context_lengths))
        found["graphs"] = f"{parts} parts, chunks of {self.manifest.chunk}, contexts of {lengths} tokens"
        if self.cpu is not None:
            found["beside"] = self.cpu.provider
        return found


def _spread(tasks: list[Task], most: int | None) -> list[Task]:
    if most is None or most >= len(tasks):
        return tasks
    return [tasks[i * len(tasks) // most] for i in range(most)]
