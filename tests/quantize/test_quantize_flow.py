"""Quantizing from a checkpoint or an artifact: the same bytes whatever the way, the threads or an interruption, and
promises of size and quality that hold."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from click.testing import CliRunner, Result
from exported_model import ExportedModel
from graph_weights import ANY_MATRIX, block_weights
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.formats import BlockFormat, QuantizedRows
from lfm_onnx.artifact.graph_weights import GraphWeight, TensorKind
from lfm_onnx.artifact.precision import FP16, FP32, Q4, Q4F16, Q8
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.cli.main import main
from lfm_onnx.errors import ArtifactError, InputError, PromiseError
from lfm_onnx.export import ExportOptions, OpsProfile, resolve_export, weights
from lfm_onnx.export.artifact_source import ArtifactSource
from lfm_onnx.export.weights import BlockWeight
from lfm_onnx.quantize.budget import Upgrade, fewest_steps, spend, upgrades
from lfm_onnx.quantize.round_to_nearest import quantize_round_to_nearest
from lfm_onnx.quantize.sensitivity import GroupOptions, Option
from lfm_onnx.quantize.tensor_groups import tensor_groups
from lfm_onnx.reference.model import Reference

Variants = Callable[..., Path]

FEW = ("--calibration-tokens", "64")


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)])


def done(command: str, *arguments: object) -> Result:
    result = run(command, *arguments)
    assert result.exit_code == 0, result.output
    return result


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def fp32_artifact(exported_artifact: ArtifactFactory) -> Path:
    return exported_artifact(SAMPLE)


# --- one way for all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rtn", "search", "gptq"])
def test_bytes_depend_neither_on_threads_nor_on_where_the_weights_come_from(
    method: str, tiny_lfm: Path, fp32_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PIECE_ELEMENTS", 1 << 13)  # many pieces of each weight
    options = ("--precision", "q4", "--method", method, *FEW)
    expected = None
    for threads in (1, 2, 4):
        folder = tmp_path / f"export{threads}"
        done("export", tiny_lfm, "-o", folder, *options, "--threads", threads)
        expected = expected or contents(folder)
        assert contents(folder) == expected
    done("quantize", fp32_artifact, "-o", tmp_path / "quantize", *options)
    assert contents(tmp_path / "quantize") == expected


def test_pieces_come_in_their_order_however_long_each_takes() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 32), np.float32)
    fmt = BlockFormat(4)
    done = {first_row: threading.Event() for first_row in range(0, 64, 4)}

    def after_the_next(weight: GraphWeight, piece: np.ndarray, first_row: int, fmt: BlockFormat) -> QuantizedRows:
        if first_row % 16 == 0:
            assert done[first_row + 4].wait(60)
        assert (piece == rows[first_row : first_row + len(piece)]).all()
        done[first_row].set()
        return quantize_round_to_nearest(piece, fmt)

    weight = BlockWeight(ANY_MATRIX, fmt, lambda: iter(np.split(rows, 16)), after_the_next, 4)
    expected = quantize_round_to_nearest(rows, fmt)
    assert (np.concatenate(list(weight.codes())) == expected.data).all()
    assert (np.concatenate(list(weight.scales())) == expected.scales).all()


@pytest.mark.parametrize(
    "variant", ["dense_untied", "dense_conv_bias", "dense_conv_length_4", "moe_conv_bias", "moe_no_expert_bias", "moe"]
)
@pytest.mark.parametrize("ops_profile", OpsProfile, ids=[profile.value for profile in OpsProfile])
def test_an_artifact_holds_its_checkpoints_tensors(
    ops_profile: OpsProfile, variant: str, exported_artifact: ArtifactFactory
) -> None:
    checkpoint = Checkpoint.open(exported_artifact.checkpoint(variant))
    source = ArtifactSource.open(exported_artifact(variant, ops_profile))
    assert source.names() == checkpoint.names()
    for name in checkpoint.names():
        values = checkpoint.float32(name)
        np.testing.assert_array_equal(source.float32(name), values, err_msg=name)
        np.testing.assert_array_equal(source.float32(name, slice(1, 5)), values[1:5], err_msg=name)
        np.testing.assert_array_equal(source.raw(name).astype(np.float32), values, err_msg=name)


def test_a_half_precision_artifact_is_a_source_too(exported_artifact: ArtifactFactory, tmp_path: Path) -> None:
    done("quantize", exported_artifact(SAMPLE, precision=FP16), "-o", tmp_path / "q8", "--precision", "q8")
    assert Artifact.open(tmp_path / "q8", verify="full").variant == "q8"


def test_a_quantized_artifact_cannot_be_quantized_again(exported_artifact: ArtifactFactory, tmp_path: Path) -> None:
    result = run("quantize", exported_artifact(SAMPLE, precision=Q4), "-o", tmp_path / "out", "--precision", "q8")
    assert result.exit_code == 2 and "quantized already" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_to_quantize_to_must_be_said(fp32_artifact: Path, tmp_path: Path) -> None:
    """Without it the command would write another copy of the floats."""
    for options in ((), ("--report", tmp_path / "report.md"), ("--dry-run",)):
        result = run("quantize", fp32_artifact, "-o", tmp_path / "out", *options)
        assert result.exit_code == 2 and "--precision q4" in result.stderr and "--budget" in result.stderr
    floats = ("--precision", "fp16", "--report", tmp_path / "report.md")
    result = run("quantize", fp32_artifact, "-o", tmp_path / "out", *floats)
    assert result.exit_code == 2 and "--report is on quantized weights" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_promises_and_recipes_work_from_python(tiny_lfm: Path, tmp_path: Path) -> None:
    options = ExportOptions(budget=1_400_000, method="rtn", calibration_tokens=64)
    plan = resolve_export(tiny_lfm, options)
    assert plan.weight_bytes <= 1_400_000 and plan.precision == Q4 and plan.chosen is not None
    assert plan.quantization is not None
    again = resolve_export(str(tiny_lfm), ExportOptions(recipe=plan.quantization.recipe))
    assert again.weight_bytes == plan.weight_bytes
    for wrong, parameter in (
        (ExportOptions(precision="q5"), "`precision`"),
        (ExportOptions(precision="q4", method="magic"), "`method`"),
        (ExportOptions(ops_profile="best"), "`ops_profile`"),
        (ExportOptions(precision="fp32", budget=10), "`budget`"),
        (ExportOptions(max_kld=0.0), "`max_kld`"),
        (ExportOptions(budget=10**7, block_size=32), "`block_size`"),
    ):
        with pytest.raises(InputError, match=parameter):
            resolve_export(tiny_lfm, wrong)


def test_a_graph_whose_weights_lie_elsewhere_is_refused(fp32_artifact: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(fp32_artifact, folder)
    path = folder / "onnx" / FP32.model_file
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../etc/passwd"
    onnx.save(model, path)
    manifest = json.loads((folder / "lfm_manifest.json").read_text())
    from lfm_onnx.artifact.files import ArtifactFile

    manifest["files"] = [
        ArtifactFile.describe(folder, file["path"]).to_dict() if file["path"].endswith(".onnx") else file
        for file in manifest["files"]
    ]
    (folder / "lfm_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="lies outside of the artifact"):
        ArtifactSource.open(folder)


# --- options that contradict ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "fp16", "--method", "rtn"), "--method is for precisions that store blocks"),
        (("--precision", "q4", "--budget", "1MB", "--block-size", "64"), "leave out --block-size"),
        (("--precision", "q4", "--method", "gptq", "--no-tokenizer"), "--method gptq needs a tokenizer"),
        (("--precision", "q4", "--calibration", "x.txt", "--no-tokenizer"), "--calibration needs a tokenizer"),
        (("--precision", "q4", "--method", "rtn", "--calibration", "x.txt"), "leave it out"),
        (("--precision", "q4", "--max-kld", "0.1", "--no-tokenizer"), "leave out --no-tokenizer"),
        (("--precision", "q4f16", "--ops", "standard"), "use --ops custom"),
        (("--precision", "q4", "--budget", "lots"), "is no size"),
    ],
)
def test_contradictions_are_named_before_anything_is_written(
    options: tuple[str, ...], message: str, tiny_lfm: Path, tmp_path: Path
) -> None:
    result = run("export", tiny_lfm, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_tokenizer_the_default_is_an_unweighted_search_and_says_so(
    variant_checkpoint: Variants, tmp_path: Path
) -> None:
    checkpoint = variant_checkpoint("moe")
    result = done("export", checkpoint, "-o", tmp_path / "out", "--precision", "q4", "--no-tokenizer")
    assert result.stderr.startswith("note: without a tokenizer")
    recipe = Artifact.open(tmp_path / "out").entry.quantization["recipe"]
    assert (recipe["method"], recipe["calibration"]) == ("search", None)
    explicit = done(
        "export", checkpoint, "-o", tmp_path / "same", "--precision", "q4", "--method", "search", "--no-tokenizer"
    )
    assert explicit.stderr == ""
    assert contents(tmp_path / "same") == contents(tmp_path / "out")


# --- promises ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibration(tiny_lfm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of the kind that the sample model was trained on."""
    path = tmp_path_factory.mktemp("text") / "chats.jsonl"
    tasks = [json.loads(line) for line in (tiny_lfm / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    chats = [
        {"messages": [*task["messages"], {"role": "assistant", "content": task["expected"]}]}
        for task in tasks[:60]
        if isinstance(task["expected"], str) and not task.get("tools")
    ]
    path.write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")
    return path


def test_a_budget_is_kept_and_nearly_spent(tiny_lfm: Path, calibration: Path, tmp_path: Path) -> None:
    budget = 1_250_000
    result = done("export", tiny_lfm, "-o", tmp_path / "out", "--budget", "1.25MB", "--calibration", calibration, *FEW)
    artifact = Artifact.open(tmp_path / "out", "q4", verify="full")
    assert 0.97 * budget < artifact.entry.weight_bytes <= budget
    recipe = artifact.entry.quantization["recipe"]
    assert recipe["choice"]["budget"] == budget
    assert len(set(recipe["formats"].values())) > 1
    for group in tensor_groups(block_weights(artifact.config).values()):
        assert group.name in result.stdout
    done("export", tiny_lfm, "-o", tmp_path / "again", "--recipe", tmp_path / "out", "--calibration", calibration)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_budget_that_is_too_small_says_the_smallest_possible(tiny_lfm: Path, tmp_path: Path) -> None:
    result = run("export", tiny_lfm, "-o", tmp_path / "out", "--budget", "100KB", "--method", "rtn")
    assert result.exit_code == 1
    (smallest,) = [int(word.strip("(")) for word in result.stderr.split() if word.startswith("(")]
    assert 500_000 < smallest < 1_250_000
    assert not any(tmp_path.iterdir())


def test_a_promised_divergence_is_kept_by_the_artifact(
    tiny_lfm: Path, exported_artifact: ArtifactFactory, tmp_path: Path
) -> None:
    """Measured here by ONNX Runtime, on the text that calibrated nothing."""
    from lfm_onnx.quantize.calibration_text import load_calibration
    from lfm_onnx.quantize.divergence import divergence

    limit = 0.03
    done("export", tiny_lfm, "-o", tmp_path / "out", "--max-kld", limit, "--method", "rtn")
    entry = Artifact.open(tmp_path / "out").entry
    choice = entry.quantization["recipe"]["choice"]
    checkpoint = Checkpoint.open(tiny_lfm)
    texts = load_calibration(None, checkpoint, 1024, half="held-out")
    model, reference = ExportedModel(tmp_path / "out" / entry.model), Reference(checkpoint)
    found = divergence(
        np.concatenate([reference.forward(ids)[0] for ids in texts]),
        np.concatenate([model.feed(ids, keep=0)[0] for ids in texts]),
    )
    assert found.kld <= limit
    assert found.kld == pytest.approx(choice["kld"], abs=2 * found.standard_error)
    assert entry.weight_bytes < Artifact.open(exported_artifact(SAMPLE, precision=Q8)).entry.weight_bytes


def test_a_divergence_that_no_format_reaches_ends_with_one(tiny_lfm: Path, tmp_path: Path) -> None:
    result = run("export", tiny_lfm, "-o", tmp_path / "out", "--max-kld", "1e-9", "--method", "rtn")
    assert result.exit_code == 1
    assert "cannot be kept: with the best format of every tensor the KLD is" in result.stderr
    assert not any(tmp_path.iterdir())


def options_of(*points: tuple[int, float]) -> GroupOptions:
    """A group with options of these (bytes, effects)."""
    from lfm_onnx.quantize.tensor_groups import TensorGroup

    name = f"group{points[0][0]}-{points[0][1]}"
    return GroupOptions(
        TensorGroup(name, TensorKind.CONV, 0, ()),
        tuple(Option(BlockFormat(4), nbytes, effect) for nbytes, effect in points),
    )


def test_upgrades_go_by_gain_per_byte_and_skip_options_above_the_hull() -> None:
    first, second = options_of((10, 1.0), (20, 0.9), (30, 0.1)), options_of((10, 0.5), (20, 0.3), (40, 0.25))
    steps = upgrades([first, second])
    assert [(step.group, step.option.nbytes) for step in steps] == [
        (first.group.name, 30),
        (second.group.name, 20),
        (second.group.name, 40),
    ]
    assert [step.option.nbytes for step in spend(steps, 25)] == [30]
    assert [step.option.nbytes for step in spend(steps, 15)] == [20]


@pytest.mark.parametrize("start", [0, 3, 9, 20])
@pytest.mark.parametrize("needed", [0, 1, 5, 9])
def test_the_fewest_steps_are_found_from_any_guess(start: int, needed: int) -> None:
    steps = [Upgrade("g", Option(BlockFormat(4), 1, 0.0), 1, 1.0)] * 9
    asked: list[int] = []
    assert fewest_steps(steps, start, lambda count: asked.append(count) or count >= needed) == needed
    assert len(asked) <= 8
    with pytest.raises(PromiseError):
        fewest_steps(steps, start, lambda count: False)


# --- q4f16 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["dense_untied", "dense_conv_bias", "dense_attention_only", "moe_conv_bias", "moe"])
def test_half_precision_activations_change_little(variant: str, exported_artifact: ArtifactFactory) -> None:
    ids = np.random.default_rng(0).integers(0, 96, 12)
    # Experts of random models are close calls: the whole logits move with one that is chosen otherwise.
    whole, half = (ExportedModel(exported_artifact.graph(variant, precision=precision)) for precision in (Q4, Q4F16))
    types = {value.name: value.type for value in (*half.session.get_inputs(), *half.session.get_outputs())}
    floats = {name for name, kind in types.items() if kind == "tensor(float16)"}
    states = ("past_", "present", "logits")
    assert floats == {name for name in types if name.startswith(states)}
    expected, _ = whole.feed(ids, keep=0)
    found, _ = half.feed(ids, half.empty_states(1, np.float16), keep=0)
    close = np.sqrt(np.square(found.astype(np.float32) - expected).mean(axis=1)) < 0.1 * expected.std()
    assert close.mean() > (0.5 if "moe" in variant else 0.99)


def test_files_of_q4f16_are_called_as_clients_expect(exported_artifact: ArtifactFactory) -> None:
    folder = exported_artifact(SAMPLE, precision=Q4F16)
    config = json.loads((folder / "config.json").read_text())["transformers.js_config"]
    assert config == {
        "dtype": "q4f16",
        "use_external_data_format": {"model_q4f16.onnx": 1},
        "kv_cache_dtype": {"q4f16": "float16"},
    }
    assert (folder / "onnx" / "model_q4f16.onnx_data").is_file()
    graph = onnx.load(folder / "onnx" / "model_q4f16.onnx", load_external_data=False)
    domains = {function.domain for function in graph.functions}
    assert domains == {"ai.liquid.half"}
