"""An NPU export as parity sees it, on the device or its emulator, and the same graphs on the CPU beside it.

What the CPU loses against the checkpoint is the price of quantization; what the device loses against the CPU is the
device's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ...artifact.artifact import Artifact
from ...artifact.npu_manifest import NpuManifest
from ...checkpoint.config import LfmConfig
from ..npu.backends import Backend, CpuBackend, open_backend
from ..npu.session import NpuSession
from ..npu.state import NpuState
from .metrics import Deviation
from .options import ParityOptions
from .passages import Passage
from .report.contents import Check, Thresholds
from .runner import Array, LayerState

_DECODED = 8
"""Tokens at the end of a passage that are read one by one as well."""
_SHORT = (1, 2, 5)


def open_npu_runners(artifact: Artifact, options: ParityOptions) -> tuple[NpuRunner, NpuRunner | None]:
    """The backend that was asked for, and ONNX Runtime's CPU beside it unless it is that. Raises LfmOnnxError."""
    manifest = NpuManifest.read(artifact)
    backend = open_backend(options.npu_backend, artifact, manifest, soc=options.soc, threads=options.threads)
    device = NpuRunner(artifact.config, manifest, backend)
    if options.npu_backend == "cpu":
        return device, None
    return device, NpuRunner(artifact.config, manifest, CpuBackend(artifact, options.threads))


class NpuRunner:
    """One backend over an NPU export; errors of the backend are errors here. Raises LfmOnnxError."""

    layers_are_judged = False

    def __init__(self, config: LfmConfig, manifest: NpuManifest, backend: Backend) -> None:
        self.config, self.manifest = config, manifest
        self.session = NpuSession(manifest, backend)

    @property
    def provider(self) -> str:
        """Who runs the graphs."""
        return self.session.backend.name

    def about(self) -> dict[str, str]:
        """The precision of each kind of tensor, and the graphs."""
        manifest = self.manifest
        lengths = ", ".join(map(str, manifest.context_lengths))
        return {
            "variant": ", ".join(f"{key} {value}" for key, value in manifest.precision.items()),
            "graphs": f"{len(manifest.parts)} parts, chunks of {manifest.chunk}, contexts of {lengths} tokens",
        }

    def logits(self, ids: Sequence[int]) -> Array:
        """All logits [T, V] of one sequence, by prefill."""
        return self.read(ids)[0]

    def greedy(self, ids: Sequence[int], max_new_tokens: int, eos_token_ids: Collection[int]) -> list[int]:
        """See ``Runner``."""
        state = self._new_state()
        tokens: list[int] = []
        step = list(ids)
        while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in eos_token_ids):
            tokens.append(int(self._feed(state, step).argmax()))
            step = tokens[-1:]
        return tokens

    def layer_states(self, ids: Sequence[int]) -> list[LayerState]:
        """After every layer, with the part that it is in."""
        config = self.config
        streams = self.read(ids, range(config.num_hidden_layers))[1]
        found = []
        for layer, rows in sorted(streams.items()):
            kind = "conv" if config.layer_types[layer] == "conv" else "attention"
            kind += ", experts" if config.is_moe_layer(layer) else ", feed-forward"
            part = next(p.name for p in self.manifest.parts if p.first_layer <= layer < p.last_layer)
            found.append(LayerState(str(layer), f"{kind} ({part})", layer + 1, rows))
        return found

    def own_checks(self, passages: Sequence[Passage], limits: Thresholds, logit_std: float) -> list[Check]:
        """Prompts of few tokens, around the chunk's length and read on by decode, against the rows of one prefill."""
        ids = max(passages, key=lambda passage: len(passage.ids)).ids
        whole = self.logits(ids)
        chunk = self.manifest.chunk
        lengths = sorted({n for n in (*_SHORT, chunk - 1, chunk, chunk + 1) if 0 < n <= len(ids)})
        rows = np.concatenate([self.decode_logits(ids[:n], []) for n in lengths])
        short = Deviation.between(whole[[n - 1 for n in lengths]], rows)
        note = f"prompts of {', '.join(map(str, lengths))} tokens"
        found = [Check("short and whole prompts", "mean KLD in nats", short.kld_mean, limits.consistency, detail=note)]
        split = len(ids) - min(_DECODED, len(ids) - 1)
        if split < len(ids):
            decoded = Deviation.between(whole[split - 1 :], self.decode_logits(ids[:split], ids[split:]))
            note = f"{len(ids) - split} tokens one by one"
            found.append(
                Check("prefill and decode", "mean KLD in nats", decoded.kld_mean, limits.consistency, detail=note)
            )
        return found

    def read(self, ids: Sequence[int], layers: Sequence[int] = ()) -> tuple[Array, dict[int, Array]]:
        """Logits [T, V] by prefill, and the residual stream [T, H] after each of ``layers``."""
        return self.session.compare_prefill(self._new_state(), np.asarray(ids, np.int64), layers)

    def decode_logits(self, prompt: Sequence[int], following: Sequence[int]) -> Array:
        """Logits [1 + len(following), V]: of the prompt's last token by prefill, then one by one."""
        state = self._new_state()
        rows = [self._feed(state, prompt), *(self._feed(state, [token]) for token in following)]
        return np.stack(rows)

    def _new_state(self) -> NpuState:
        return NpuState(self.manifest, self.manifest.context_lengths[-1])

    def _feed(self, state: NpuState, ids: Sequence[int]) -> Array:
        result: Array = self.session.run(state, np.asarray(ids, np.int64)[None])[0, -1].copy()
        return result
