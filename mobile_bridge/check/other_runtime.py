"""Runs an artifact's model in another Python or on another provider, and compares its logits."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...artifact.artifact import Artifact
from ...checkpoint.checkpoint import Checkpoint
from ...hardware.cores import usable_processors
from ...runtime.parity.identity import require_same_config
from ...runtime.parity.metrics import LogitComparison, LogitMetrics
from ...runtime.parity.report.contents import Thresholds
from ...runtime.worker_process import WorkerProcess
from .result import CheckReport, GraphCheck, Requirement

_WORKER_FILE = Path(__file__).with_name("session_worker.py")
_PROMPT_LENGTHS = (1, 7, 33, 64)
_NEXT_TOKENS = 8
_RUNS = "the model loads and runs"


@dataclass(frozen=True)
class OtherRun:
    """What a worker measured: its versions, the nodes by provider (None: not told), and logits per sequence."""

    result: dict[str, Any]
    logits: list[np.ndarray]


def sequences(artifact: Artifact, seed: int = 0) -> list[dict[str, list[int]]]:
    """Random prompts of 1 to 64 tokens, each with 8 tokens to decode after it."""
    rng = np.random.default_rng(seed)
    longest = max(artifact.context_length - _NEXT_TOKENS, 1)
    lengths = sorted({min(length, longest) for length in _PROMPT_LENGTHS})
    draw = [rng.integers(0, artifact.config.vocab_size, length + _NEXT_TOKENS).tolist() for length in lengths]
    return [{"prompt": ids[:-_NEXT_TOKENS], "next": ids[-_NEXT_TOKENS:]} for ids in draw]


def run_elsewhere(
    artifact: Artifact, what: list[dict[str, list[int]]], provider: str, interpreter: Path | None
) -> OtherRun:
    """Run ``what`` in ``interpreter`` (this Python by default) on ``provider``. Raises WorkerError, of the
    kinds "missing", "device", "load" and "run" where the worker can say what failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "logits.npz"
        request = {
            "model": str(artifact.model_path),
            "provider": provider,
            "sequences": what,
            "logits": str(target),
            "threads": usable_processors(),
        }
        command = [str(interpreter or sys.executable), str(_WORKER_FILE)]
        with WorkerProcess(command, "the process that ran the model") as worker:
            result = worker.ask(request)
        with np.load(target) as data:
            return OtherRun(result, [data[f"s{number}"] for number in range(len(what))])


def compare_logits(
    artifact: Artifact,
    what: list[dict[str, list[int]]],
    logits: list[np.ndarray],
    reference: str | None,
    progress: Callable[[str], None],
) -> tuple[LogitMetrics, str]:
    """Metrics of ``logits``, and what it was compared with: the checkpoint in float32, or this onnxruntime's CPU."""
    if reference is not None:
        from ...reference.model import Reference

        checkpoint = Checkpoint.open(reference, progress=progress)
        require_same_config(artifact, checkpoint)
        model, name = Reference(checkpoint), f"{checkpoint.source} in float32"
        expected = []
        for item in what:
            ids = [*item["prompt"], *item["next"]]
            expected.append(model.forward(np.asarray(ids, np.int64), logits="all")[0][len(item["prompt"]) - 1 :])
    else:
        own = run_elsewhere(artifact, what, "cpu", None)
        expected, name = own.logits, f"the same file on onnxruntime {own.result['onnxruntime']} CPU"
    comparison = LogitComparison()
    for number, (item, right, model_logits) in enumerate(zip(what, expected, logits, strict=True), 1):
        ids = [*item["prompt"][-1:], *item["next"]]
        comparison.add(f"sequence {number}", ids, right, model_logits)
    return comparison.summary(), name


def parity_requirements(artifact: Artifact, metrics: LogitMetrics, against_file: bool) -> list[Requirement]:
    """The limits of ``lfm-onnx parity`` for the artifact's precision; the same file elsewhere is held to those too."""
    limits = Thresholds.of_variant(artifact.variant)
    requirements = [Requirement("logits are finite", metrics.non_finite == 0, f"{metrics.non_finite} are not")]
    if limits.max_logit_diff is not None:
        value = metrics.relative_max_diff
        detail = f"largest difference {value:.2e} standard deviations, limit {limits.max_logit_diff:g}"
        requirements.append(Requirement("logits agree", value <= limits.max_logit_diff, detail))
    if limits.max_kld is not None:
        detail = f"mean KLD {metrics.kld_mean:.2e} nats, limit {limits.max_kld:g}"
        requirements.append(Requirement("distributions agree", metrics.kld_mean <= limits.max_kld, detail))
    if limits.min_top1 is not None and not against_file:
        detail = f"{metrics.top1:.1%}, at least {limits.min_top1:.0%}"
        requirements.append(Requirement("likeliest tokens agree", metrics.top1 >= limits.min_top1, detail))
    return requirements


@dataclass(frozen=True)
class Elsewhere:
    """A check that runs an artifact on another runtime: what its report says whether or not that goes well."""

    target: str
    artifact: Artifact
    environment: dict[str, str]

    def failed(self, reason: str, notes: Sequence[str]) -> CheckReport:
        """The model does not load or run there."""
        missed = Requirement(_RUNS, False, reason)
        where = {**self.environment, "variant": self.artifact.variant}
        return CheckReport(self.target, str(self.artifact.folder), where, (), (missed,), tuple(notes))

    def compared(
        self,
        what: list[dict[str, list[int]]],
        run: OtherRun,
        reference: str | None,
        progress: Callable[[str], None],
        *,
        requirements: Sequence[Requirement] = (),
        graphs: Sequence[GraphCheck] = (),
        notes: Sequence[str] = (),
    ) -> CheckReport:
        """It ran ``what``: its logits against those of the checkpoint ``reference`` or, None, of this onnxruntime."""
        metrics, against = compare_logits(self.artifact, what, run.logits, reference, progress)
        loaded = Requirement(_RUNS, True, f"{run.result['load_s']:.2f} s to load")
        return CheckReport(
            target=self.target,
            artifact=str(self.artifact.folder),
            environment={**self.environment, "compared": f"{self.artifact.variant} with {against}"},
            graphs=tuple(graphs),
            requirements=(loaded, *requirements, *parity_requirements(self.artifact, metrics, reference is None)),
            notes=tuple(notes),
            figures=figures(metrics, run),
        )


def figures(metrics: LogitMetrics, run: OtherRun) -> dict[str, float]:
    """Numbers for the report."""
    return {
        "kld_mean": float(metrics.kld_mean),
        "top1": float(metrics.top1),
        "max_abs_diff": float(metrics.max_abs_diff),
        "relative_max_diff": float(metrics.relative_max_diff),
        "load_s": float(run.result["load_s"]),
        "run_s": float(run.result["seconds"]),
    }
