"""A quantized export is the model of the rounded weights, in every format and variant, and close to the original."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from click.testing import CliRunner
from exported_model import Array, ExportedModel, Ids, export_quietly, padded
from graph_weights import ANY_MATRIX
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.formats import BlockFormat, dequantize
from lfm_onnx.artifact.method import Method
from lfm_onnx.artifact.precision import Q4, Q8, Precision
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.cli.main import main
from lfm_onnx.errors import CheckpointError, InputError
from lfm_onnx.export import ExportOptions, OpsProfile, resolve_export
from lfm_onnx.export.weights import BlockWeight
from lfm_onnx.quantize.methods import Quantizer
from lfm_onnx.quantize.round_to_nearest import quantize_round_to_nearest
from lfm_onnx.reference.model import Reference
from lfm_onnx.runtime.parity.onnx_model import OnnxModel
from lfm_onnx.runtime.parity.tasks import answer_tasks, read_tasks
from safetensors.numpy import load_file, save_file

Variants = Callable[..., Path]

PRECISIONS = {
    "q4": Q4,
    "q8": Q8,
    "q4-zero-points": Q4.with_blocks(None, "float32", zero_points=True),
    "q8-one-block-a-row": Q8.with_blocks(64, None, zero_points=True),
}
VARIANTS = ["dense_untied", "dense_conv_bias", "dense_own_head_dim", "dense_attention_only"]
VARIANTS += ["moe_conv_bias", "moe_no_dense_layers", "moe_no_expert_bias", "moe_top_8_of_8", "moe_fused"]
ops_profiles = pytest.mark.parametrize("ops_profile", OpsProfile, ids=[profile.value for profile in OpsProfile])


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a checkpoint is stored in blocks: matrices, the router's and the convolution's excepted."""
    return len(shape) == 2 and not name.endswith("feed_forward.gate.weight")


def rounded(checkpoint: Path, folder: Path, fmt: BlockFormat) -> Path:
    """The checkpoint with every weight that is stored in blocks replaced by what the blocks stand for, in float32."""
    source = Checkpoint.open(checkpoint)
    tensors = {}
    for name in source.names():
        values = source.float32(name)
        if is_quantized(name, source.shape(name)):
            values = dequantize(quantize_round_to_nearest(values, fmt), fmt, values.shape[1])
        tensors[name] = np.ascontiguousarray(values)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(checkpoint / "config.json", folder)
    return folder


def block_format(precision: Precision) -> BlockFormat:
    assert isinstance(precision.weights, BlockFormat)
    return precision.weights


def random_ids(vocab_size: int, count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, vocab_size, count)


@pytest.mark.parametrize(
    ("variant", "name"),
    [*((variant, "q4-zero-points") for variant in VARIANTS), *itertools.product(["dense", "moe"], PRECISIONS)],
)
def test_the_graph_is_the_float_model_of_the_rounded_weights(
    variant: str, name: str, exported_artifact: ArtifactFactory, tmp_path: Path
) -> None:
    """Every row of every weight is where it belongs: standard bodies compute in float32 and must agree closely."""
    precision = PRECISIONS[name]
    checkpoint = exported_artifact.checkpoint(variant)
    ids = random_ids(96, 23)
    expected, _ = Reference(
        Checkpoint.open(rounded(checkpoint, tmp_path / "rounded", block_format(precision)))
    ).forward(ids, logits="all")

    model = ExportedModel(exported_artifact.graph(variant, OpsProfile.STANDARD, precision))
    found, states = model.feed(ids[:-2], keep=0)
    assert np.abs(found - expected[:-2]).max() <= 1e-3 * expected.std()
    for step in (-2, -1):  # decoding
        found, states = model.feed(ids[[step]], states)
        assert np.abs(found - expected[step]).max() <= 1e-3 * expected.std()


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("variant", ["dense", "dense_conv_bias"])
def test_contrib_bodies_differ_by_the_rounding_of_activations_alone(
    variant: str, precision: Precision, exported_artifact: ArtifactFactory
) -> None:
    ids = random_ids(96, 23)
    custom, standard = (
        ExportedModel(exported_artifact.graph(variant, ops_profile, precision)).feed(ids, keep=0)[0]
        for ops_profile in (OpsProfile.CUSTOM, OpsProfile.STANDARD)
    )
    # Models with experts are compared below: one that is chosen differently moves the logits of a random model far.
    assert np.sqrt(np.square(custom - standard).mean()) < 0.1 * standard.std()


@ops_profiles
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_what_each_row_alone_gives(
    side: str, ops_profile: OpsProfile, tiny_lfm: Path, exported_artifact: ArtifactFactory
) -> None:
    model = ExportedModel(exported_artifact.graph(SAMPLE, ops_profile, Q8))
    vocab_size = LfmConfig.load(tiny_lfm).vocab_size
    rows = [random_ids(vocab_size, count, count) for count in (5, 1, 9)]
    ids, mask = padded(rows, side)
    logits, _ = model.run(ids, mask, model.empty_states(len(rows)), keep=1)
    for row, found in zip(rows, logits, strict=True):
        alone, _ = model.feed(row)
        # Kernels for one token and for several round differently where activations are int8.
        np.testing.assert_allclose(
            found, alone, atol=(1e-3 if ops_profile is OpsProfile.STANDARD else 0.2) * alone.std()
        )


# --- the trained sample model -----------------------------------------------------------------------------------------


class Sample:
    """The sample model's task prompts, and its reference's log probabilities for them."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = ChatTokenizer.load(checkpoint)
        self.tasks = read_tasks(checkpoint / "tasks.jsonl")
        prompts = [np.array(task.prompt_ids(self.tokenizer)[:64], np.int64) for task in self.tasks[::8]]
        reference = Reference(Checkpoint.open(checkpoint))
        self.expected = [(ids, log_softmax(reference.forward(ids, logits="all")[0])) for ids in prompts]

    def divergence(self, runner: OnnxModel) -> float:
        """Mean KLD from the reference to the export, in nats per token."""
        terms = [
            (np.exp(expected) * (expected - log_softmax(runner.logits(ids)))).sum(-1) for ids, expected in self.expected
        ]
        return float(np.concatenate(terms).mean())


@pytest.fixture(scope="module")
def sample(tiny_lfm: Path) -> Sample:
    return Sample(tiny_lfm)


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@ops_profiles
@pytest.mark.parametrize(
    ("precision", "limit"), [(Q8, 1e-3), (Q4, 0.03)], ids=lambda value: getattr(value, "name", None)
)
def test_the_sample_models_distribution_hardly_moves(
    precision: Precision,
    limit: float,
    ops_profile: OpsProfile,
    sample: Sample,
    exported_artifact: ArtifactFactory,
    record_property: Callable[[str, object], None],
) -> None:
    artifact = Artifact.open(exported_artifact(SAMPLE, ops_profile, precision))
    divergence = sample.divergence(OnnxModel(artifact, threads=1))
    record_property("kld", divergence)
    print(f"{precision.name}, {ops_profile.value} ops: KLD {divergence:.3g} nats per token")
    assert 0 <= divergence < limit


@pytest.mark.parametrize(("precision", "loss"), [(Q8, 0.01), (Q4, 0.03)], ids=["q8", "q4"])
def test_the_sample_model_answers_its_tasks_as_before(
    precision: Precision, loss: float, sample: Sample, exported_artifact: ArtifactFactory
) -> None:
    artifact = Artifact.open(exported_artifact(SAMPLE, precision=precision))
    eos = artifact.config.eos_token_ids

    def accuracy(greedy: Callable[..., list[int]]) -> float:
        tasks = sample.tasks[::4]
        return answer_tasks(tasks, sample.tokenizer, greedy, eos, artifact.context_length, lambda line: None).accuracy

    original = accuracy(Reference(Checkpoint.open(sample.checkpoint)).greedy)
    assert original > 0.7, "a model that answers nothing loses nothing"
    assert accuracy(OnnxModel(artifact, threads=1).greedy) >= original - loss


# --- graph and files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def q4_folder(exported_artifact: ArtifactFactory) -> Path:
    return exported_artifact(SAMPLE, precision=Q4)


@ops_profiles
@pytest.mark.parametrize("variant", ["dense_conv_bias", "moe"])
def test_the_checker_accepts_the_graph(
    variant: str, ops_profile: OpsProfile, exported_artifact: ArtifactFactory
) -> None:
    onnx.checker.check_model(exported_artifact.graph(variant, ops_profile, Q4), full_check=True)


def test_a_layer_has_fewer_than_twelve_nodes(q4_folder: Path) -> None:
    model = onnx.load(q4_folder / "onnx" / Q4.model_file, load_external_data=False)
    prefixes = [node.name.split("/")[1] for node in model.graph.node if node.name.startswith("model/layers.")]
    for layer in range(6):
        nodes = [prefix for prefix in prefixes if prefix == f"layers.{layer}"]
        assert 5 <= len(nodes) < 12
    assert {"QLinear", "SwiGLU", "SparseMoE", "GatedShortConv", "SplitQKVNorm", "GatherDequantize"} <= {
        node.op_type for node in model.graph.node if node.domain == "ai.liquid"
    }


def test_every_call_passes_every_attribute(q4_folder: Path) -> None:
    model = onnx.load(q4_folder / "onnx" / Q4.model_file, load_external_data=False)
    declared = {function.name: set(function.attribute) for function in model.functions}
    calls = [node for node in model.graph.node if node.domain == "ai.liquid"]
    assert {node.op_type for node in calls} == set(declared)
    for node in calls:
        assert {attribute.name for attribute in node.attribute} == declared[node.op_type]


def test_a_tied_embedding_is_stored_once(q4_folder: Path) -> None:
    model = onnx.load(q4_folder / "onnx" / Q4.model_file, load_external_data=False)
    readers = [node.op_type for node in model.graph.node if "model.embed_tokens.weight" in node.input]
    assert sorted(readers) == ["GatherDequantize", "QLinear"]
    assert not [tensor.name for tensor in model.graph.initializer if "lm_head" in tensor.name]


def test_hidden_states_keep_their_names(q4_folder: Path, tiny_lfm: Path) -> None:
    names = ["hidden_states.embed", "hidden_states.0", "hidden_states.5", "hidden_states.final"]
    runner = OnnxModel(Artifact.open(q4_folder), threads=1, hidden_states=names)
    _, _, found = runner.forward(np.arange(6)[None])
    assert {name: value.reshape(6, -1).shape for name, value in found.items()} == dict.fromkeys(names, (6, 128))


def test_the_manifest_states_the_format_of_each_class(q4_folder: Path) -> None:
    entry = Artifact.open(q4_folder, "q4", verify="full").entry
    assert entry.model == "onnx/model_q4.onnx"
    stored = {"dtype": "int4", "bits": 4, "block_size": 32, "symmetric": True, "scale_dtype": "float16"}
    for kind in ("linear", "expert", "embedding"):
        assert entry.precision[kind].items() >= {**stored, "bits_per_weight": 4.5}.items()
    for kind in ("norm", "router", "conv"):
        assert entry.precision[kind]["dtype"] == "float32"
    # The table has 1280 rows of 128: half a byte each and a 2-byte scale for every 32.
    assert entry.precision["embedding"]["bytes"] == 1280 * 128 // 2 + 1280 * 4 * 2
    assert entry.precision["embedding"]["tensors"] == 1


@pytest.mark.parametrize("precision", [Q4, Q8], ids=lambda precision: precision.name)
def test_transformers_js_finds_the_files_by_its_own_names(
    precision: Precision, exported_artifact: ArtifactFactory
) -> None:
    folder = exported_artifact(SAMPLE, precision=precision)
    config = json.loads((folder / "config.json").read_text())["transformers.js_config"]
    assert config == {"dtype": precision.name, "use_external_data_format": {precision.model_file: 1}}
    assert (folder / "onnx" / f"{precision.model_file}_data").is_file()


def test_the_same_checkpoint_gives_the_same_bytes(tiny_lfm: Path, q4_folder: Path, tmp_path: Path) -> None:
    again = export_quietly(tiny_lfm, tmp_path / "out", OpsProfile.CUSTOM, Q4)
    for name in (Q4.model_file, Q4.data_file(0)):
        assert (again.parent / name).read_bytes() == (q4_folder / "onnx" / name).read_bytes()


@pytest.mark.parametrize("fmt", [BlockFormat(4), BlockFormat(8, symmetric=False)], ids=lambda fmt: fmt.name)
def test_scales_are_the_same_whether_or_not_the_codes_were_read_before(fmt: BlockFormat) -> None:
    """As in an export that goes on after the file of the codes."""
    rows = np.random.default_rng(0).standard_normal((6, 64), np.float32)

    def weight() -> BlockWeight:
        return BlockWeight(ANY_MATRIX, fmt, lambda: iter([rows[:4], rows[4:]]), Quantizer(Method.RTN).quantize)

    in_order, alone = weight(), weight()
    assert sum(len(piece) for piece in in_order.codes()) == 6
    for part in ("scales", "zero_points"):
        first, second = ([piece.tobytes() for piece in getattr(source, part)()] for source in (in_order, alone))
        assert first == second and (len(first) == 2 or (part == "zero_points" and fmt.symmetric))


# --- options and errors -----------------------------------------------------------------------------------------------


def export_command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    return result.exit_code, result.output


def test_options_choose_the_block_format(tiny_lfm: Path, tmp_path: Path) -> None:
    code, output = export_command(
        tiny_lfm, "-o", tmp_path / "out", "--precision", "q4", "--block-size", "64", "--scale-dtype", "float32",
        "--zero-points", "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0, output
    assert json.loads(output)["weights"] == "int4-block64-zero-points-float32"


def test_block_options_are_refused_for_floats(tiny_lfm: Path, tmp_path: Path) -> None:
    code, output = export_command(tiny_lfm, "-o", tmp_path / "out", "--precision", "fp16", "--block-size", "64")
    assert code == 2 and "fp16 stores no blocks" in output


def test_experts_that_blocks_do_not_divide_are_refused_before_anything_is_written(tiny_lfm: Path) -> None:
    precision = Q4.with_blocks(128, None, zero_points=False)
    with pytest.raises(InputError, match="128 does not divide moe_intermediate_size, which is 64"):
        resolve_export(Checkpoint.open(tiny_lfm), ExportOptions(precision))


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "k_proj.* holds nan"), (np.inf, "k_proj.* holds inf"), (1e7, r"qkv_proj\.weight.*beyond float16")],
)
def test_weights_that_no_code_stands_for_are_named(
    value: float, message: str, variant_checkpoint: Variants, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(variant_checkpoint("dense_fp32"), checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"][3, 5] = value
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"layers\.1\.self_attn\.{message}"):
        export_quietly(checkpoint, tmp_path / "out", OpsProfile.CUSTOM, Q4)
    assert not (tmp_path / "out").exists()
