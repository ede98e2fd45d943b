"""Opening an NPU export: which plan runs where, and the CPU when the NPU is missing or busy."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from pathlib import Path

from ...artifact.artifact import Artifact, Verification
from ...artifact.manifest import Manifest
from ...artifact.npu_manifest import NpuManifest, is_npu_artifact
from ...errors import ArtifactError, InputError
from ...hardware.cores import check_threads
from ..session import DecoderSession, limited_context_length, open_decoder
from ..session_protocol import OpenedSession
from .backends import Backend, CpuBackend, open_backend
from .hybrid import HybridSession
from .provider import NpuUnavailable, device
from .run_options import NpuRunOptions
from .session import NpuSession

VARIANT = "qnn"
_log = logging.getLogger(__name__)


def open_npu_session(
    folder: str | Path,
    options: NpuRunOptions,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    native: bool | None = None,
    verify: Verification = "quick",
) -> OpenedSession:
    """Open the export in ``folder`` and start what its plan needs. Raises LfmOnnxError."""
    options.check()
    check_threads(threads)
    if VARIANT not in (variants := Manifest.read(Path(folder)).variants):
        raise ArtifactError(
            f"{folder} holds no export for the NPU, only {', '.join(sorted(variants))}; make one with "
            '`target="qnn"`, or leave out what asks for it'
        )
    artifact = Artifact.open(folder, VARIANT, verify=verify)
    if not is_npu_artifact(artifact):
        raise ArtifactError(f'{folder} was not exported with `target="qnn"`')
    manifest = NpuManifest.read(artifact)
    limit = limited_context_length(context_length, manifest.context_lengths[-1])
    notice = options.notice or _log.warning
    plan = _resolve_plan(options, notice)
    cpu = _cpu_artifact(artifact, options.cpu_artifact, verify)
    if plan == "cpu" and cpu is not None:
        return open_decoder(cpu, threads=threads, context_length=context_length, native=native)
    if plan == "hybrid" and cpu is None:
        raise InputError(
            f'`plan="hybrid"` decodes with a model exported for the CPU, and {folder} has none: make one with '
            f"`{_export_command(artifact)}` and name it by `cpu_artifact`"
        )
    session = _npu_session(artifact, manifest, options, plan, threads, notice)
    if plan != "hybrid" or cpu is None:
        return OpenedSession(artifact, session, limit)
    decoder = DecoderSession.of_artifact(cpu, threads=threads, native=native)
    return OpenedSession(artifact, HybridSession(session, decoder), limit)


def _export_command(artifact: Artifact) -> str:
    """What makes the CPU's counterpart beside the NPU's folder, from the checkpoint that it was made of."""
    name = artifact.manifest.source.checkpoint
    checkpoint = shlex.quote(name) if name.isprintable() else "CHECKPOINT"
    return f"lfm-onnx export {checkpoint} -o {shlex.quote(f'{artifact.folder}-cpu')} --precision q4"


def _resolve_plan(options: NpuRunOptions, notice: Callable[[str], None]) -> str:
    if options.backend == "cpu" or options.plan == "cpu":
        return "npu" if options.plan == "auto" else options.plan
    try:
        npu = device()
    except NpuUnavailable as error:
        if options.strict:
            raise
        notice(f"{error}; the CPU runs the model")
        return "cpu"
    if options.plan != "auto":
        return options.plan
    if npu.emulator:
        notice('no NPU in this machine: the CPU runs the model (`plan="npu"` takes the emulator, which is slow)')
        return "cpu"
    return "npu"


def _npu_session(
    artifact: Artifact,
    manifest: NpuManifest,
    options: NpuRunOptions,
    plan: str,
    threads: int | None,
    notice: Callable[[str], None],
) -> NpuSession:
    def on_cpu() -> Backend:
        return CpuBackend(artifact, threads)

    if plan == "cpu" or options.backend == "cpu":
        return NpuSession(manifest, on_cpu())
    fallback = None if options.strict else on_cpu
    try:
        backend = open_backend(options.backend, artifact, manifest, soc=options.soc, threads=threads)
    except NpuUnavailable as error:
        if fallback is None:
            raise
        notice(f"{error}; the CPU runs the same graphs")
        backend = fallback()
    return NpuSession(manifest, backend, fallback=fallback, notice=notice)


def _cpu_artifact(artifact: Artifact, folder: str | Path | None, verify: Verification) -> Artifact | None:
    """The same model for the CPU: from ``folder``, or a variant beside the NPU's; None where there is none."""
    if folder is None:
        others = [name for name in artifact.manifest.variants if name != artifact.variant]
        for name in others:
            candidate = Artifact.open(artifact.folder, name, verify="none")
            if not is_npu_artifact(candidate):
                return candidate
        return None
    candidate = Artifact.open(folder, None, verify=verify)
    if is_npu_artifact(candidate):
        raise InputError(f"{folder} is an export for the NPU too: expected one for the CPU")
    own, theirs = (item.manifest.source.content_sha256 for item in (artifact, candidate))
    if own != theirs:
        raise ArtifactError(f"{folder} was exported from another checkpoint than {artifact.folder}")
    return candidate
