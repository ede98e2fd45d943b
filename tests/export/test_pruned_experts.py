"""Experts that were taken out, or that the router never chooses, are exported as transformers runs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_model import export_quietly
from lfm_onnx.artifact.precision import FP32
from lfm_onnx.export import OpsProfile
from lfm_onnx.runtime.model import LfmModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

KEPT = [0, 2, 3, 5, 7]
IDS = np.arange(1, 25)[None]
Tensors = dict[str, np.ndarray]


def _without_experts(tensors: Tensors) -> Tensors:
    """Five of eight experts, under new numbers; the router's rows and biases with them."""
    pruned = {}
    for name, values in tensors.items():
        before, expert, rest = name.partition(".experts.")
        if expert:
            number, _, matrix = rest.partition(".")
            if int(number) in KEPT:
                pruned[f"{before}.experts.{KEPT.index(int(number))}.{matrix}"] = values
        else:
            pruned[name] = values[KEPT].copy() if name.endswith(("feed_forward.gate.weight", "expert_bias")) else values
    return pruned


def _never_chosen(tensors: Tensors) -> Tensors:
    """All experts stay, three of them behind a bias of minus infinity."""
    changed = {name: values.copy() for name, values in tensors.items()}
    for name, values in changed.items():
        if name.endswith("expert_bias"):
            values[[expert for expert in range(8) if expert not in KEPT]] = -np.inf
    return changed


@pytest.mark.parametrize("ops_profile", list(OpsProfile))
@pytest.mark.parametrize(("prune", "experts"), [(_without_experts, 5), (_never_chosen, 8)])
def test_logits_are_those_of_transformers(
    prune: Callable[[Tensors], Tensors],
    experts: int,
    ops_profile: OpsProfile,
    variant_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(variant_checkpoint("moe", dtype="float32"), tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts": experts}))
    save_file(prune(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits.numpy()
    export_quietly(folder, tmp_path / "out", ops_profile, FP32)
    logits, _ = LfmModel.load(tmp_path / "out", threads=1).forward(IDS, num_logits_to_keep=0)
    np.testing.assert_allclose(logits, expected, atol=2e-4)
