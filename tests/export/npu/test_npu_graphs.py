"""The static graphs for the NPU: the same numbers as the reference for every prompt length, in float and quantized."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.errors import InputError, OutputError
from lfm_onnx.export.npu import MoeForm, NpuOptions, NpuWeights, check_graph, export_npu
from lfm_onnx.export.npu.calibration import CalibrationOptions
from lfm_onnx.reference.model import Reference
from npu_graphs import NpuGraphs, read_npu_manifest
from npu_models import conversations

CHUNK = 128
CONTEXT = 320
LENGTHS = (1, 2, 3, 127, 128, 129, 256, 300)
"""Prompts around the chunk's edges."""

EXACT = 1e-4
"""Largest difference of a float logit, in standard deviations of the logits."""


KINDS = (
    "dense",
    "dense_untied",
    "dense_conv_bias",
    "dense_conv_length_5",
    "dense_own_head_dim",
    "dense_conv_only",
    "dense_attention_only",
    "dense_one_kv_head",
    "moe",
    "moe_top_1",
    "moe_top_8_of_8",
    "moe_unnormalized_top_k",
    "moe_scaled_routing",
    "moe_no_expert_bias",
)


def export(
    checkpoint: Path, output: Path, weights: NpuWeights = NpuWeights.FLOAT, *, seed: int = 0, **options: object
) -> Path:
    """An export calibrated on random tokens, which is what random weights are asked about; rounded to the nearest."""
    opened = Checkpoint.open(checkpoint)
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, opened.config.vocab_size, 40) for _ in range(3)]
    chosen: dict[str, object] = {
        "weights": weights,
        "chunk": CHUNK,
        "context_lengths": (CONTEXT,),
        "calibration": sequences,
        "error_feedback": False,
        "tokenizer": (checkpoint / "tokenizer.json").is_file(),
        **options,
    }
    export_npu(opened, output, NpuOptions(**chosen))  # type: ignore[arg-type]
    return output


def worst_difference(model: NpuGraphs, reference: Reference, lengths: Sequence[int], decoded: int = 3) -> float:
    """Of the logits after a prompt of each length and after ``decoded`` more tokens, in standard deviations."""
    rng = np.random.default_rng(1)
    worst = 0.0
    for length in lengths:
        ids = rng.integers(0, reference.config.vocab_size, length + decoded)
        wanted, _ = reference.forward(ids)
        model.reset()
        found = [model.prefill(ids[:length]), *(model.decode(int(token)) for token in ids[length:])]
        worst = max(worst, float(np.abs(np.stack(found) - wanted[length - 1 :]).max() / wanted.std()))
    return worst


@pytest.mark.parametrize("variant", KINDS)
def test_float_graphs_give_the_references_logits_for_every_kind_of_model(
    variant: str, variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = variant_checkpoint(variant)
    model = NpuGraphs(export(checkpoint, tmp_path / "out", chunk=16))
    assert worst_difference(model, Reference(Checkpoint.open(checkpoint)), (1, 2, 15, 16, 17, 40)) < EXACT


@pytest.mark.parametrize("variant", ["dense", "moe", "sample"])
def test_prompts_shorter_and_longer_than_the_chunk(
    variant: str, variant_checkpoint: Callable[..., Path], tiny_lfm: Path, tmp_path: Path
) -> None:
    checkpoint = tiny_lfm if variant == "sample" else variant_checkpoint(variant)
    model = NpuGraphs(export(checkpoint, tmp_path / "out"))
    assert worst_difference(model, Reference(Checkpoint.open(checkpoint)), LENGTHS) < EXACT


@pytest.mark.parametrize(
    "variant, decode",
    [("moe", MoeForm.PACKED), ("moe_top_1", MoeForm.GATHERED), ("moe_scaled_routing", MoeForm.GATHERED)],
)
def test_experts_in_turn_give_the_references_logits(
    variant: str, decode: MoeForm, variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = variant_checkpoint(variant)
    shared = export(checkpoint, tmp_path / "shared", chunk=16, moe_decode=decode, share_experts=True)
    assert worst_difference(NpuGraphs(shared), Reference(Checkpoint.open(checkpoint)), (1, 15, 16, 17, 40)) < EXACT


def test_experts_in_turn_need_no_weights_of_their_own(variant_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint, form = variant_checkpoint("moe"), MoeForm.GATHERED
    folders = [
        export(checkpoint, tmp_path / str(shared), chunk=16, moe_decode=form, share_experts=shared)
        for shared in (False, True)
    ]
    apart, shared = (read_npu_manifest(folder)["parts"][0]["weight_bytes"]["file"] for folder in folders)
    assert shared < 0.75 * apart


def test_a_padded_chunk_may_stand_on_a_filled_cache(variant_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = variant_checkpoint("moe")
    model, reference = NpuGraphs(export(checkpoint, tmp_path / "out", chunk=16)), Reference(Checkpoint.open(checkpoint))
    ids = np.random.default_rng(2).integers(0, 96, 60)
    wanted, _ = reference.forward(ids)
    model.prefill(ids[:5])  # a first turn, padded
    model.decode(int(ids[5]))
    assert np.abs(model.prefill(ids[6:27]) - wanted[26]).max() / wanted.std() < EXACT
    assert np.abs(model.prefill(ids[27:]) - wanted[59]).max() / wanted.std() < EXACT


def test_padding_tokens_change_nothing(variant_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Whatever stands in the padding rows, the quantized results are the same to the bit."""
    model = NpuGraphs(export(variant_checkpoint("moe"), tmp_path / "out", NpuWeights.INT8, chunk=16))
    ids = np.random.default_rng(3).integers(0, 96, 21)
    plain = model.prefill(ids)
    states = {name: array.copy() for name, array in model.states.items()}
    model.reset()
    padding = model.manifest["embedding"]
    padding["zero_point"] = 60000  # what NpuGraphs fills padding rows with
    assert np.array_equal(model.prefill(ids), plain)
    assert all(np.array_equal(model.states[name], array) for name, array in states.items())


@pytest.mark.parametrize("weights, budget", [(NpuWeights.INT8, 130_000), (NpuWeights.INT4, 70_000)])
def test_several_parts_give_the_bits_of_one(
    weights: NpuWeights, budget: int, variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = variant_checkpoint("moe")
    one = NpuGraphs(export(checkpoint, tmp_path / "one", weights, chunk=16))
    several = NpuGraphs(export(checkpoint, tmp_path / "several", weights, chunk=16, weight_budget=budget))
    assert len(one.manifest["parts"]) == 1 and len(several.manifest["parts"]) > 2
    ids = np.random.default_rng(4).integers(0, 96, 21)
    assert np.array_equal(one.prefill(ids), several.prefill(ids))
    assert np.array_equal(one.decode(5), several.decode(5))


def test_states_keep_their_quantization_between_graphs_and_parts(
    variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = export(variant_checkpoint("moe"), tmp_path / "out", NpuWeights.INT8, chunk=16, weight_budget=130_000)
    manifest = read_npu_manifest(folder)
    known: dict[tuple[str, object], set[str]] = {}
    for part in manifest["parts"]:
        for graph in part["graphs"]:
            for port in [*graph["inputs"], *graph["outputs"]]:
                if "layer" in port:
                    parameters = json.dumps([port["dtype"], port["scale"], port["zero_point"]])
                    known.setdefault((port["role"], port["layer"]), set()).add(parameters)
    assert len(known) == 3 + 2 and all(len(parameters) == 1 for parameters in known.values())
    assert {state["kind"]: state["update"] for state in manifest["states"]} == {
        "conv": "replace",
        "key": "append",
        "value": "append",
    }


@pytest.fixture(scope="module")
def sample_text(tiny_lfm: Path) -> list[np.ndarray]:
    return conversations(tiny_lfm, every=11)


@pytest.fixture(scope="module")
def sample_export(
    tiny_lfm: Path, sample_text: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """sample_export(weights, decode form or "shared") -> folder, made once; calibrated on every second conversation."""

    @cache
    def made(weights: NpuWeights, decode: MoeForm | str | None = None) -> Path:
        folder = tmp_path_factory.mktemp("sample") / "out"
        form = {"share_experts": True} if decode == "shared" else {"moe_decode": decode}
        return export(tiny_lfm, folder, weights, calibration=sample_text[::2], error_feedback=True, **form)

    return made


@pytest.mark.parametrize(
    "weights, decode, agreement",
    [
        (NpuWeights.INT8, MoeForm.GATHERED, 0.97),
        (NpuWeights.INT8, MoeForm.WIDE, 0.97),
        (NpuWeights.INT8, "shared", 0.97),
        (NpuWeights.INT4, MoeForm.PACKED, 0.9),
    ],
)
def test_the_quantized_sample_chooses_the_references_tokens(
    weights: NpuWeights,
    decode: MoeForm | str,
    agreement: float,
    tiny_lfm: Path,
    sample_text: list[np.ndarray],
    sample_export: Callable[..., Path],
) -> None:
    model, reference = NpuGraphs(sample_export(weights, decode)), Reference(Checkpoint.open(tiny_lfm))
    same = []
    for ids in sample_text[1::2]:
        wanted, _ = reference.forward(ids)
        model.reset()
        found = [model.prefill(ids[: len(ids) // 2]), *(model.decode(int(token)) for token in ids[len(ids) // 2 :])]
        same += list(np.argmax(found, axis=1) == wanted[len(ids) // 2 - 1 :].argmax(axis=1))
    assert len(same) > 100 and np.mean(same) >= agreement


@pytest.mark.parametrize(
    "weights, decode",
    [(NpuWeights.INT8, MoeForm.GATHERED), (NpuWeights.INT4, MoeForm.PACKED), (NpuWeights.FLOAT, None)],
)
def test_every_written_graph_passes_the_check_of_forms(
    weights: NpuWeights, decode: MoeForm | None, sample_export: Callable[..., Path]
) -> None:
    folder = sample_export(weights, decode)
    for part in read_npu_manifest(folder)["parts"]:
        for graph in part["graphs"]:
            assert check_graph(folder / graph["file"]) == []


def test_the_folder_is_an_artifact_whose_files_are_all_listed(
    variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = export(variant_checkpoint("dense"), tmp_path / "out", NpuWeights.INT8, context_lengths=(256, 64), chunk=16)
    artifact = Artifact.open(folder, verify="full")
    assert artifact.model_path == folder / "npu" / "npu_manifest.json" and artifact.context_length == 256
    listed = {file.path for file in artifact.files}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert present - listed == {"lfm_manifest.json"} and listed <= present
    names = [graph["file"] for part in read_npu_manifest(folder)["parts"] for graph in part["graphs"]]
    assert [Path(name).name for name in names] == [
        f"{phase}-{length}.onnx" for length in (256, 64) for phase in ("prefill", "decode")
    ]


def test_an_interrupted_export_goes_on_behind_the_finished_parts(
    variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"chunk": 16, "weight_budget": 130_000}
    whole = export(variant_checkpoint("moe"), tmp_path / "whole", NpuWeights.INT8, **options)
    steps: list[str] = []

    def interrupt(step: str) -> None:
        steps.append(step)
        if step.startswith("wrote part 2"):
            raise KeyboardInterrupt

    opened = Checkpoint.open(variant_checkpoint("moe"))
    rng = np.random.default_rng(0)
    chosen = NpuOptions(
        chunk=16,
        context_lengths=(CONTEXT,),
        weight_budget=130_000,
        calibration=[rng.integers(0, 96, 40) for _ in range(3)],
        error_feedback=False,
        tokenizer=False,
    )
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export_npu(opened, output, chosen, on_step=interrupt)
    assert not output.exists()
    again: list[str] = []
    export_npu(opened, output, chosen, on_step=again.append)
    assert any("calibrated" in step for step in steps) and not any("calibrated" in step for step in again)
    for path in sorted(whole.rglob("*")):
        if path.is_file() and path.name != "lfm_manifest.json":
            assert (output / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    "options, message",
    [
        ({"context_lengths": (4096,)}, "context length 4096"),
        ({"context_lengths": ()}, "one or more"),
        ({"chunk": 1}, "chunk of 1"),
        ({"headroom": 0.5}, "headroom of 0.5"),
        ({"weight_budget": 1000}, "layer 0 has"),
        ({"calibration": []}, "at least one sequence"),
        ({"calibration": [[5000]]}, "0 to 1279"),
        ({"calibration_options": CalibrationOptions(), "calibration": [[-1]]}, "0 to 1279"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    options: dict[str, object], message: str, tiny_lfm: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        export(tiny_lfm, tmp_path / "out", NpuWeights.INT8, **options)
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_replaced(tiny_lfm: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("text")
    with pytest.raises(OutputError, match="not empty"):
        export(tiny_lfm, tmp_path)
