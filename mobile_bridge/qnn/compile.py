"""Compiles an export part by part, each in a process of its own: what is done stays done."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifact.artifact import Artifact
from ...artifact.npu_compiled import COMPILED, PartRecord, part_folder, source_digest
from ...artifact.npu_manifest import NpuManifest
from ...artifact.npu_parts import NpuPart
from ...errors import ArtifactError, InputError, LfmOnnxError, OutputError
from ...hardware.chips import Chip
from ...hardware.chips import chip as chip_named
from ...hardware.compile_cost import LARGEST_GRAPH_BYTES
from ...hardware.memory import available_memory_bytes
from ...reporting.byte_size import byte_size
from ...runtime.npu.provider import COMPILE_OPTIONS, versions
from ...runtime.worker_process import WorkerError, WorkerProcess
from .compile_plan import PartToCompile, plan_compile

_WORKER = (sys.executable, "-m", "lfm_onnx.mobile_bridge.qnn.compile_worker")


class CompileError(LfmOnnxError):
    """The compiler refused a part, crashed, or ran out of memory."""


@dataclass(frozen=True)
class CompileOptions:
    """chips: to compile for. builds: "device" (one binary for prefill and decode), "emulator" (a binary each).
    memory_bytes: what a part may take; None: what is free now. force: compile anew what is done already.
    parts: names of those to compile, None for all.
    """

    chips: Sequence[Chip]
    builds: Sequence[str] = ("device",)
    memory_bytes: int | None = None
    force: bool = False
    parts: Sequence[str] | None = None


def compile_export(
    folder: str | Path, options: CompileOptions, progress: Callable[[str], None] = lambda _line: None
) -> list[PartRecord]:
    """Compile the NPU export in ``folder``; returns the record of every part, those of earlier runs included.

    progress: called with one line as parts begin and end. Raises ArtifactError, NpuUnavailable without the compiler,
    InputError where a part needs more memory than there is, CompileError where the compiler fails: its log is kept.
    """
    artifact = Artifact.open(folder, "qnn")
    manifest = NpuManifest.read(artifact)
    here = versions()
    plan = plan_compile(artifact, manifest, options.chips, options.builds, here=here)
    if options.parts is not None:
        unknown = sorted(set(options.parts) - {part.name for part in manifest.parts})
        if unknown:
            raise InputError(f"no part {unknown[0]!r}: there are {', '.join(part.name for part in manifest.parts)}")
        plan = [item for item in plan if item.part in options.parts]
    todo = [item for item in plan if options.force or not item.done]
    _check_memory(todo, options.memory_bytes)
    by_name = {part.name: part for part in manifest.parts}
    records = []
    for number, item in enumerate(plan, 1):
        part = by_name[item.part]
        target = part_folder(artifact, item.soc, item.build, part)
        if item not in todo:
            record = PartRecord.read(target)
            assert record is not None  # the plan has read it
            progress(f"{number} of {len(plan)}: {item.soc} {item.build} {item.part} is done")
        else:
            progress(
                f"{number} of {len(plan)}: {item.soc} {item.build} {item.part}, {byte_size(item.weight_bytes)} of "
                f"weights, expected {item.expected_seconds:.0f} s and {byte_size(item.expected_memory_bytes)}"
            )
            record = _compile_part(artifact, part, item, target)
            size = sum(record.files.values())
            progress(f"   {record.seconds:.1f} s, {byte_size(record.peak_rss_bytes)}, {byte_size(size)} written")
        records.append(record)
    return records


def _check_memory(todo: Sequence[PartToCompile], limit: int | None) -> None:
    available = limit if limit is not None else available_memory_bytes()
    for item in todo:
        if item.weight_bytes > LARGEST_GRAPH_BYTES:
            raise InputError(
                f"{item.part} has {byte_size(item.weight_bytes)} of weights, one context takes at most "
                f"{byte_size(LARGEST_GRAPH_BYTES)}: export with a smaller `weight_budget`"
            )
        if available is not None and item.expected_memory_bytes > available:
            raise InputError(
                f"compiling {item.part} takes about {byte_size(item.expected_memory_bytes)} of memory, "
                f"{byte_size(available)} are there: export with a smaller `weight_budget`, or allow more by "
                "`memory_budget`"
            )


def _compile_part(artifact: Artifact, part: NpuPart, item: PartToCompile, target: Path) -> PartRecord:
    graphs = list(part.graphs)
    names = [f"{graph.phase}-{graph.context_length}_ctx.onnx" for graph in graphs]
    provider_options = {**chip_named(item.soc).provider_options}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{part.name}-", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written: {error.strerror}") from error
    log = artifact.folder / COMPILED / f"{item.soc}-{item.build}-{part.name}.log"
    try:
        result = _run_worker(
            {
                "graphs": [str(artifact.folder / graph.file) for graph in graphs],
                "names": names,
                "folder": str(work),
                "provider_options": provider_options,
                "shared": item.build == "device",
            },
            log,
            what=f"{item.part} for {item.soc}",
        )
        files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        if any(name not in files for name in names):
            raise CompileError(f"the compiler wrote no context for {item.part}; see {log}")
        record = PartRecord(
            part=part.name,
            soc=item.soc,
            build=item.build,
            digest=source_digest(artifact, part, graphs),
            versions=versions().to_dict(),
            graphs=dict(zip((graph.file for graph in graphs), names, strict=True)),
            files=files,
            weight_bytes=item.weight_bytes,
            seconds=round(sum(result["seconds"]), 2),
            peak_rss_bytes=result["peak_rss_bytes"],
            options={**COMPILE_OPTIONS, **provider_options},
        )
        record.write(work)
        _replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return record


def _run_worker(request: dict[str, Any], log: Path, what: str) -> dict[str, Any]:
    try:
        with WorkerProcess(_WORKER, "it", log_file=log) as worker:
            return worker.ask(request)
    except WorkerError as error:
        remedy = ": export with a smaller `weight_budget`" if error.kind == "killed" else ""
        raise CompileError(f"the compiler did not take {what}: {error}{remedy}; its log is {log}") from error


def _replace(work: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}-old-{os.getpid()}")
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(work, target)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be replaced: {error.strerror}") from error
    finally:
        shutil.rmtree(old, ignore_errors=True)
