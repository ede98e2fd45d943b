"""The same checkpoint through this package and its peers on one machine: speed, memory, and distance from float32.

    python benchmarks/peers.py CHECKPOINT --work FOLDER

Prepares what is missing under FOLDER, measures one engine after the other, each in a process of its own, prints a
table and writes peers.json and peers.png there.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import click
import numpy as np
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.errors import LfmOnnxError
from lfm_onnx.hardware.cores import physical_cores
from lfm_onnx.hardware.memory_bandwidth import MemoryBandwidth
from lfm_onnx.runtime.bench.bench import random_ids, repeated_runs, statistics
from lfm_onnx.runtime.bench.process import BenchWorker
from lfm_onnx.runtime.parity.metrics import row_metrics
from peers_list import PEERS, Peer, Prepared
from peers_report import Measured, machine, plot, print_report

_QUALITY_PROMPTS = 2
_QUALITY_TOKENS = 128
_QUALITY_SEED = 1000


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for models and results.")
@click.option("--contexts", default="32,512,4096", show_default=True, help="Prompt lengths in tokens.")
@click.option("--new-tokens", default=64, show_default=True, help="Tokens decoded after each prompt.")
@click.option("--repeat", default=3, show_default=True, help="Measurements of each figure.")
@click.option("--threads", type=int, help="Every core by default.")
@click.option("--only", help=f"Comma-separated names out of: {', '.join(peer.key for peer in PEERS)}.")
@click.option("--prepare-only", is_flag=True, help="Export, convert and quantize; measure nothing.")
@click.option("--quality/--no-quality", default=True, help="Compare the logits with the float32 reference.")
def main(
    checkpoint: Path,
    work: Path,
    contexts: str,
    new_tokens: int,
    repeat: int,
    threads: int | None,
    only: str | None,
    prepare_only: bool,
    quality: bool,
) -> None:
    """Compare CHECKPOINT's speed through every engine that is installed."""
    work.mkdir(parents=True, exist_ok=True)
    source = Checkpoint.open(checkpoint)
    threads = threads or physical_cores()
    lengths = [int(part) for part in contexts.split(",")]
    wanted = [peer for peer in PEERS if only is None or peer.key in only.split(",")]
    ready = _prepare_all(wanted, source, work, threads)
    reference = _reference_logits(source, work) if quality else None
    if prepare_only:
        return
    memory = MemoryBandwidth(threads)
    measured = []
    for peer, prepared in ready:
        click.echo(f"measuring {peer.name} …", err=True)
        try:
            measured.append(_measure(peer, prepared, source, memory, lengths, new_tokens, repeat, threads, reference))
        except LfmOnnxError as error:
            click.echo(f"{peer.name} failed: {error}", err=True)
    report = {
        "machine": machine(threads),
        "checkpoint": {"config": source.raw_config, "contexts": lengths, "new_tokens": new_tokens, "repeat": repeat},
        "engines": [item.to_dict() for item in measured],
    }
    (work / "peers.json").write_text(json.dumps(report, indent=1))
    print_report(measured, threads)
    plot(measured, work / "peers.png")


def _prepare_all(wanted: list[Peer], source: Checkpoint, work: Path, threads: int) -> list[tuple[Peer, Prepared]]:
    ready = []
    for peer in wanted:
        missing = peer.missing()
        if missing:
            click.echo(f"skipping {peer.name}: {missing}", err=True)
            continue
        click.echo(f"preparing {peer.name} …", err=True)
        try:
            ready.append((peer, peer.prepare(source, work, threads)))
        except Exception:  # whatever stops one peer must not stop the others
            traceback.print_exc()
            click.echo(f"skipping {peer.name}: it could not be prepared", err=True)
    return ready


def _measure(
    peer: Peer,
    prepared: Prepared,
    source: Checkpoint,
    memory: MemoryBandwidth,
    lengths: list[int],
    new_tokens: int,
    repeat: int,
    threads: int,
    reference: list[np.ndarray] | None,
) -> Measured:
    vocab_size = source.config.vocab_size
    settings = {**prepared.settings, "threads": threads, "max_tokens": max(lengths) + new_tokens}
    loads, contexts, kld = [], {}, None
    for _ in range(repeat - 1):
        with BenchWorker(peer.command, settings, peer.environment) as worker:
            loads.append(worker.load_s)
    with BenchWorker(peer.command, settings, peer.environment) as worker:
        loads.append(worker.load_s)
        for length in lengths:
            runs = repeated_runs(
                worker, memory, prompt_tokens=length, new_tokens=new_tokens, repeat=repeat, vocab_size=vocab_size
            )
            decode = [new_tokens / run.decode_s for run in runs]
            bandwidth = [run.read_bandwidth_bytes_per_s for run in runs]
            fractions = [rate * prepared.bytes_per_token / best for rate, best in zip(decode, bandwidth, strict=True)]
            contexts[length] = {
                **statistics("prefill_tokens_per_s", [length / run.prefill_s for run in runs]),
                **statistics("decode_tokens_per_s", decode),
                **statistics("read_bandwidth_bytes_per_s", bandwidth),
                **statistics("bandwidth_fraction", fractions),
                "peak_rss_bytes": runs[-1].peak_rss_bytes,
            }
    if reference is not None:
        # A process of its own: the logits of all these tokens are no part of the engine's memory.
        with BenchWorker(peer.command, settings, peer.environment) as worker:
            rows = [
                row_metrics(expected, worker.logits(random_ids(len(expected), vocab_size, _QUALITY_SEED + i))).kld
                for i, expected in enumerate(reference)
            ]
        kld = float(np.concatenate(rows).mean())
    return Measured(peer.key, peer.name, statistics("load_s", loads), prepared.bytes_per_token, prepared.file_bytes,
                    kld, contexts)  # fmt: skip


def _reference_logits(source: Checkpoint, work: Path) -> list[np.ndarray]:
    """Float32 logits of the reference on the prompts of the comparison; computed once per checkpoint."""
    from lfm_onnx.reference.model import Reference

    path = work / f"reference-{source.fingerprint()[:16]}.npy"
    if not path.exists():
        click.echo("computing the float32 reference …", err=True)
        model = Reference(source)
        prompts = [
            random_ids(_QUALITY_TOKENS, source.config.vocab_size, _QUALITY_SEED + i) for i in range(_QUALITY_PROMPTS)
        ]
        np.save(path, np.stack([model.forward(ids)[0] for ids in prompts]))
    return list(np.load(path, mmap_mode="r"))


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except LfmOnnxError as error:
        sys.exit(f"Error: {error}")
