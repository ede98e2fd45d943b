"""``LfmModel`` on an NPU export: which plan runs where, and the CPU when the NPU is missing or busy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...artifact.artifact import Artifact, Verification
from ...artifact.npu_manifest import NpuManifest, is_npu_artifact
from ...errors import ArtifactError, InputError, LfmOnnxError
from ..generation import PREFILL_CHUNK
from ..model import LfmModel
from ..session import DecoderSession
from ..state import FIRST_CAPACITY, DecoderState
from .backends import Backend, CpuBackend, open_backend
from .hybrid import HybridSession, HybridState
from .provider import NpuUnavailable, device
from .session import NpuSession
from .state import NpuState

PLANS = ("auto", "npu", "hybrid", "cpu")
VARIANT = "qnn"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NpuOptions:
    """How to run an NPU export.

    plan: "npu" runs everything on the NPU (or the emulator), "hybrid" the prompt there and decoding on the CPU's
    kernels, "cpu" everything on the CPU, "auto" takes the NPU where a real one is and the CPU elsewhere.
    backend: "qnn", or "cpu" to run the same quantized graphs on ONNX Runtime's CPU kernels in the NPU's place.
    soc: the chip whose binaries to take. cpu_artifact: folder of the same model exported for the CPU; the variants
    beside the NPU's serve as well. strict: an NPU that fails is an error instead of a reason to go on with the CPU.
    notice: called with one line when something else runs than was asked for; logged by default.
    """

    plan: str = "auto"
    backend: str = "qnn"
    soc: str | None = None
    cpu_artifact: str | Path | None = None
    strict: bool = False
    notice: Callable[[str], None] | None = None

    def check(self) -> None:
        """InputError for a plan that does not exist."""
        if self.plan not in PLANS:
            raise InputError(f"unknown plan {self.plan!r}: expected one of {', '.join(PLANS)}")


class NpuModel(LfmModel):
    """A loaded NPU export; ``plan`` is the one that runs. Everything else is as with ``LfmModel``."""

    session: Any
    plan: str
    manifest: NpuManifest

    def new_state(self, batch: int = 1, capacity: int = FIRST_CAPACITY) -> Any:
        """An empty state of one sequence. InputError for a batch: the graphs are static."""
        if batch != 1:
            raise InputError(f"the NPU's graphs take one sequence at a time, found a batch of {batch}")
        npu = NpuState(self.manifest, self.context_length)
        if self.plan != "hybrid":
            return npu
        cpu = DecoderState(self.session.cpu.layout, 1, capacity, self.context_length)
        return HybridState(self.manifest, npu, cpu)

    def forward(
        self,
        input_ids: np.ndarray | Sequence[int],
        attention_mask: np.ndarray | None = None,
        state: Any = None,
        *,
        num_logits_to_keep: int = 1,
    ) -> tuple[np.ndarray, Any]:
        """Logits float32 [1, rows, V] and the state. One row without padding; see ``LfmModel.forward``."""
        ids = np.atleast_2d(np.asarray(input_ids, np.int64))
        self._check_ids(ids)
        state = state if state is not None else self.new_state(ids.shape[0])
        mask = None if attention_mask is None else np.atleast_2d(np.asarray(attention_mask))
        logits = self.session.run(state, ids, new_mask=mask, keep=num_logits_to_keep)
        return logits.astype(np.float32, copy=True), state

    def prefill(self, state: Any, input_ids: Sequence[int], chunk: int = PREFILL_CHUNK) -> np.ndarray:
        """Feed a prompt; float32 logits [V] of its last token. The graphs' own chunk counts, not ``chunk``."""
        ids = np.asarray(input_ids, np.int64)[None]
        self._check_ids(ids)
        return self.session.run(state, ids)[0, -1].astype(np.float32, copy=True)


def load_npu_model(
    folder: str | Path,
    options: NpuOptions,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    native: bool | None = None,
    verify: Verification = "quick",
    generation_config: Callable[[Path], Mapping[str, Any]],
) -> LfmModel:
    """Open the export in ``folder`` and start what its plan needs. Raises LfmOnnxError."""
    options.check()
    artifact = Artifact.open(folder, VARIANT, verify=verify)
    if not is_npu_artifact(artifact):
        raise ArtifactError(f"{folder} was not exported with --target qnn")
    manifest = NpuManifest.read(artifact)
    limit = manifest.context_lengths[-1]
    if context_length is not None and not 1 <= context_length <= limit:
        raise InputError(f"context length: expected 1 to {limit}, as the export allows, found {context_length}")
    notice = options.notice or _log.warning
    plan = _resolve_plan(options, notice)
    cpu = _cpu_artifact(artifact, options.cpu_artifact, verify)
    if plan == "cpu" and cpu is not None:
        return LfmModel.load(
            cpu.folder, variant=cpu.variant, threads=threads, context_length=context_length, native=native,
            verify="none",
        )  # fmt: skip
    if plan == "hybrid" and cpu is None:
        raise InputError(
            f"the hybrid plan decodes with a model exported for the CPU, and {folder} has none: export one "
            "(`lfm-onnx export CHECKPOINT -o DIR2`) and name it by --cpu-artifact"
        )
    session = _npu_session(artifact, manifest, options, plan, threads, notice)
    runner: Any = session
    if plan == "hybrid":
        assert cpu is not None
        shared = cpu.ops_profile == "custom"
        runner = HybridSession(session, DecoderSession(cpu.model_path, shared=shared, threads=threads, native=native))
    settings = generation_config(artifact.folder / "generation_config.json")
    model = NpuModel(artifact, runner, settings, context_length or limit)
    model.plan, model.manifest = plan, manifest
    return model


def _resolve_plan(options: NpuOptions, notice: Callable[[str], None]) -> str:
    if options.backend == "cpu" or options.plan == "cpu":
        return "npu" if options.plan == "auto" else options.plan
    try:
        found = device()
    except NpuUnavailable as error:
        if options.strict:
            raise
        notice(f"{error}; the CPU runs the model")
        return "cpu"
    if options.plan != "auto":
        return options.plan
    if found.emulator:
        notice("no NPU in this machine: the CPU runs the model (--plan npu takes the emulator, which is slow)")
        return "cpu"
    return "npu"


def _npu_session(
    artifact: Artifact,
    manifest: NpuManifest,
    options: NpuOptions,
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
        others = [name for name in artifact.manifest["variants"] if name != artifact.variant]
        for name in others:
            found = Artifact.open(artifact.folder, name, verify="none")
            if not is_npu_artifact(found):
                return found
        return None
    found = Artifact.open(folder, None, verify=verify)
    if is_npu_artifact(found):
        raise InputError(f"{folder} is an export for the NPU too: expected one for the CPU")
    own, theirs = (item.manifest.get("source", {}).get("content_sha256") for item in (artifact, found))
    if own != theirs:
        raise ArtifactError(f"{folder} was exported from another checkpoint than {artifact.folder}")
    return found


def is_npu_folder(folder: str | Path, variant: str | None) -> bool:
    """Whether ``folder`` (with ``variant``, or its first) is an NPU export; errors are left to the real opening."""
    try:
        return is_npu_artifact(Artifact.open(folder, variant, verify="none"))
    except LfmOnnxError:
        return False
