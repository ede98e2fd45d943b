"""Quality by bytes: the same checkpoint quantized by this package and its peers, against the same float32 logits.

    python benchmarks/quality.py CHECKPOINT --work FOLDER

Makes what is missing under FOLDER, one variant after the other, prints a table and writes quality.json and quality.png
there. What was made or measured before is used again; remove a variant's folder or file to have it made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import peers_llama_cpp
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.errors import LfmOnnxError
from lfm_onnx.hardware.cores import physical_cores
from lfm_onnx.quantize.calibration_text import DEFAULT_CALIBRATION_TOKENS, load_calibration
from lfm_onnx.quantize.quantization import Sequences, calibration_sequences, sequences_digest
from lfm_onnx.runtime.parity.metrics import clustered_mean, row_metrics
from lfm_onnx.runtime.parity.tasks import Task, answer_tasks, read_tasks
from peers_report import machine
from quality_engines import QualityEngine
from quality_report import Quality, plot, print_report
from quality_variants import FLOAT, VARIANTS, Source, Variant

FLOAT_KLD = 1e-4
"""Nats that llama.cpp in float32 may be away from the reference: more would mean that another model is compared."""

_TASK_CONTEXT = 1024
_FILE = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for models and results.")
@click.option("--tokens", default=8192, show_default=True, help="Most tokens of text to compare on.")
@click.option("--text", type=_FILE, help="Text to compare on [default: the held-out half of what ships].")
@click.option("--calibration", type=_FILE, help="Text for all methods that calibrate [default: what ships].")
@click.option("--calibration-tokens", default=DEFAULT_CALIBRATION_TOKENS, show_default=True)
@click.option("--threads", type=int, help="Every core by default.")
@click.option("--only", help=f"Comma-separated, out of: {', '.join(variant.key for variant in VARIANTS)}.")
@click.option("--tasks/--no-tasks", default=True, help="Answer CHECKPOINT/tasks.jsonl, where it is there.")
def main(
    checkpoint: Path,
    work: Path,
    tokens: int,
    text: Path | None,
    calibration: Path | None,
    calibration_tokens: int,
    threads: int | None,
    only: str | None,
    tasks: bool,
) -> None:
    """Compare the quality of CHECKPOINT's quantized models, by this package and its peers, at their sizes."""
    work.mkdir(parents=True, exist_ok=True)
    model = Checkpoint.open(checkpoint)
    longest = model.config.max_position_embeddings
    sequences = [ids[:longest] for ids in load_calibration(text, model, tokens, half="held-out")]
    calibrating = calibration_sequences(model, calibration, calibration_tokens)
    source = Source(model, work, threads or physical_cores(), calibration, calibration_tokens, calibrating)
    task_file = checkpoint / "tasks.jsonl"
    if peers_llama_cpp.installed():
        peers_llama_cpp.silence()
    measure = _Measurement(source, sequences, read_tasks(task_file) if tasks and task_file.is_file() else [])
    wanted = set(only.split(",")) if only else {variant.key for variant in VARIANTS}
    wanted |= {needed for variant in VARIANTS if variant.key in wanted for needed in variant.needs}
    found = []
    for variant in VARIANTS:
        if variant.key not in wanted:
            continue
        if missing := variant.missing():
            click.echo(f"skipping {variant.engine}: {missing}", err=True)
            continue
        try:
            found.append(measure.of(variant))
        except Exception as error:  # whatever stops one variant must not stop the others
            if not isinstance(error, (LfmOnnxError, RuntimeError)):
                traceback.print_exc()
            click.echo(f"skipping {variant.key}: {error}", err=True)
            continue
        if variant.key == FLOAT and found[-1].kld > FLOAT_KLD:
            sys.exit(f"Error: llama.cpp in float32 is {found[-1].kld:.2e} nats from the reference: nothing to compare")
    report = {
        "machine": machine(source.threads),
        "checkpoint": {"config": model.raw_config, "parameters": measure.parameters},
        "text": {
            "tokens": sum(map(len, sequences)),
            "sequences": len(sequences),
            "sha256": sequences_digest(sequences),
        },
        "calibration": {"tokens": sum(map(len, calibrating)), "sha256": sequences_digest(calibrating)},
        "variants": [item.to_dict() for item in found],
    }
    (work / "quality.json").write_text(json.dumps(report, indent=1))
    print_report(found)
    plot(found, work / "quality.png")


class _Measurement:
    """Makes variants and compares them with the reference's logits, which are computed once."""

    def __init__(self, source: Source, sequences: Sequences, tasks: list[Task]) -> None:
        self.source, self.sequences, self.tasks = source, sequences, tasks
        self.config = source.checkpoint.config
        self.parameters = sum(int(np.prod(source.checkpoint.shape(name))) for name in _tensor_names(source.checkpoint))
        self.reference = self._reference()

    def of(self, variant: Variant) -> Quality:
        """Sizes and quality, from the file of an earlier run where model, text and calibration are the same."""
        model = self.source.path(variant.key)
        result = model.with_name(model.name + ".json")
        if not model.exists():
            click.echo(f"making {variant.engine} {variant.name} …", err=True)
            result.unlink(missing_ok=True)
            part = model.with_name(model.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            variant.make(self.source, part)
            part.rename(model)
        text = sequences_digest(self.sequences)
        stored = json.loads(result.read_text()) if result.exists() else {"measured_on": None}
        quality = Quality(**stored) if stored.pop("measured_on") == text else None
        if quality is None or (self.tasks and quality.exact_match is None):
            click.echo(f"measuring {variant.engine} {variant.name} …", err=True)
            longest = min(self.config.max_position_embeddings, max(_TASK_CONTEXT, *map(len, self.sequences)))
            engine = variant.open(model, self.source.threads, longest)
            quality = quality or self._measure(variant, engine)
            if self.tasks:
                quality = replace(quality, exact_match=self._exact_match(engine, longest))
            click.echo(f"  {quality.bits_per_weight:.3f} bits per weight, KLD {quality.kld:.3e}", err=True)
            result.write_text(json.dumps({"measured_on": text, **quality.to_dict()}))
        return quality

    def _measure(self, variant: Variant, engine: QualityEngine) -> Quality:
        rows = [
            row_metrics(np.asarray(expected), engine.logits(ids.tolist()))
            for ids, expected in zip(self.sequences, self.reference, strict=True)
        ]
        kld = np.concatenate([part.kld for part in rows])
        mean, error = clustered_mean([float(part.kld.mean()) for part in rows], [len(part.kld) for part in rows])
        size = variant.size(self.source.path(variant.key))
        return Quality(
            key=variant.key,
            engine=variant.engine,
            name=variant.name,
            tensor_bytes=size.tensor_bytes,
            file_bytes=size.file_bytes,
            bits_per_weight=8 * size.tensor_bytes / self.parameters,
            tokens=len(kld),
            kld=mean,
            kld_standard_error=error,
            kld_p99=float(np.percentile(kld, 99)),
            top1=float(np.concatenate([part.top1_equal for part in rows]).mean()),
            exact_match=None,
        )

    def _exact_match(self, engine: QualityEngine, longest: int) -> float:
        tokenizer = ChatTokenizer.load(self.source.checkpoint.folder)
        eos = set(self.config.eos_token_ids)
        return answer_tasks(self.tasks, tokenizer, engine.greedy, eos, longest, lambda line: None).accuracy

    def _reference(self) -> list[npt.NDArray[np.float32]]:
        """Float32 logits [T, V] of each sequence, mapped from a file that is made once."""
        from lfm_onnx.reference.model import Reference

        identity = self.source.checkpoint.fingerprint() + sequences_digest(self.sequences)
        path = self.source.work / f"reference-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
        ends = np.cumsum([len(ids) for ids in self.sequences])
        if not path.exists():
            click.echo(f"computing the float32 reference of {ends[-1]} tokens …", err=True)
            part, model = path.with_suffix(".part"), Reference(self.source.checkpoint)
            shape = (int(ends[-1]), self.config.vocab_size)
            logits = np.lib.format.open_memmap(part, "w+", np.float32, shape)
            for end, ids in zip(ends, self.sequences, strict=True):
                logits[end - len(ids) : end] = model.forward(ids)[0]
            logits.flush()
            part.rename(path)
        return np.split(np.load(path, mmap_mode="r"), ends[:-1])


def _tensor_names(checkpoint: Checkpoint) -> Iterator[str]:
    from lfm_onnx.checkpoint.expected_tensors import expected_tensors

    return (name for name, _ in expected_tensors(checkpoint.config))


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except LfmOnnxError as error:
        sys.exit(f"Error: {error}")
