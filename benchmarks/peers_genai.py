"""onnxruntime-genai as a peer: its own model builder, int4 in blocks of 32, and its own generator."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lfm_onnx.checkpoint.config import LfmConfig

INSTALL = "pip install onnxruntime-genai torch transformers"
_BUILDER_OPTIONS = ("block_size=32", "qmoe_block_size=32")
_TOKENIZER = Path(__file__).parent.parent / "samples" / "tiny_lfm"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def installed() -> bool:
    """Whether the package is there."""
    from importlib.util import find_spec

    return find_spec("onnxruntime_genai") is not None


def build(checkpoint: Path, target: Path, *, all_logits: bool = False) -> None:
    """Run the builder. It wants a tokenizer: a checkpoint without one borrows the sample model's.

    all_logits: of every token of a prompt, where speed needs only those of the last one, as the other engines do it.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source = Path(folder) / "checkpoint"
        source.mkdir()
        for file in checkpoint.resolve().iterdir():
            (source / file.name).symlink_to(file)
        for name in _TOKENIZER_FILES:
            if not (source / name).exists():
                shutil.copyfile(_TOKENIZER / name, source / name)
        built = Path(folder) / "built"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(built)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(Path(folder) / "cache")]
        prune = f"prune_lm_head={str(not all_logits).lower()}"
        log = target.parent / "genai-builder.log"
        with log.open("w") as messages:
            done = subprocess.run(
                [*command, "--extra_options", *_BUILDER_OPTIONS, prune], stdout=messages, stderr=messages
            )
        if done.returncode:
            raise RuntimeError(f"onnxruntime-genai's builder failed: see {log}")
        built.rename(target)


def touched_bytes_per_token(folder: Path, config: LfmConfig) -> int:
    """Bytes of weights that decoding one token reads: the chosen experts, a table's row, everything else whole."""
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    total = 0
    for tensor in model.graph.initializer:
        found = readers.get(tensor.name, set())
        bits = {1: 32, 7: 64, 10: 16, 16: 16, 21: 4, 22: 4}.get(tensor.data_type, 8)
        size = int(np.prod(tensor.dims, dtype=np.int64)) * bits // 8
        if found & {"MoE", "QMoE"} and tensor.dims[0] == config.num_experts:
            size = size * config.num_experts_per_tok // config.num_experts
        elif all("Gather" in op for op in found) or "GroupQueryAttention" in found:
            size //= max(tensor.dims[0] if tensor.dims else 1, 1)
        total += size
    return total


class GenaiEngine:
    """One folder of the builder's; settings: folder, threads."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import onnxruntime_genai

        self._library = onnxruntime_genai
        config = onnxruntime_genai.Config(settings["folder"])
        session_options = {"intra_op_num_threads": settings["threads"]}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
        self._model = onnxruntime_genai.Model(config)

    def restart(self, tokens: int) -> None:
        params = self._library.GeneratorParams(self._model)
        # Without min_length an end token that comes by chance would stop the measurement.
        params.set_search_options(max_length=tokens + 2, min_length=tokens + 2, do_sample=False)
        self._generator = self._library.Generator(self._model, params)
        self._chose_first = False

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        self._generator.append_tokens(np.asarray(ids, np.int32))
        result: np.ndarray = self._generator.get_logits()[0, -1]
        return result

    def step(self, token_id: int) -> np.ndarray:
        """Its own loop feeds the token it has chosen, whatever ``token_id`` is, and returns no logits."""
        if not self._chose_first:  # of the prompt's logits, without running the model
            self._generator.generate_next_token()
            self._chose_first = True
        self._generator.generate_next_token()
        return np.zeros(1, np.float32)


if __name__ == "__main__":
    import onnxruntime_genai  # noqa: F401  (its import is no part of loading a model)
    from lfm_onnx.runtime.bench.worker import serve_engine

    serve_engine(GenaiEngine)
