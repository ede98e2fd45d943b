"""A recipe is read strictly, names what is wrong with it, and replays an artifact to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.formats import BlockFormat
from lfm_onnx.artifact.method import Method
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.cli.main import main
from lfm_onnx.errors import InputError
from lfm_onnx.export.decoder import model_weights
from lfm_onnx.quantize.recipe import CalibrationText, Choice, Recipe, parse_recipe, read_recipe
from lfm_onnx.quantize.tensor_groups import TensorGroup, same_format, tensor_groups

Variants = Callable[..., Path]


@pytest.fixture
def config(tiny_lfm: Path) -> LfmConfig:
    return LfmConfig.load(tiny_lfm)


@pytest.fixture
def groups(config: LfmConfig) -> list[TensorGroup]:
    return tensor_groups(model_weights(config, blocks=True))


@pytest.fixture
def recipe(groups: list[TensorGroup]) -> Recipe:
    formats = same_format(groups, BlockFormat(4, 64)) | {"model.embed_tokens": BlockFormat(8)}
    return Recipe("q4", Method.GPTQ, formats, CalibrationText("0" * 64, 2048), Choice(max_kld=0.1, kld=0.05))


def export(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_recipe_is_what_it_was_written_from(recipe: Recipe, groups: list[TensorGroup]) -> None:
    assert parse_recipe(json.loads(json.dumps(recipe.to_dict())), groups, "r.json") == recipe


@pytest.mark.parametrize("variant", ["dense_untied", "dense_conv_bias", "moe", "moe_no_dense_layers"])
def test_groups_cover_every_matrix_of_the_checkpoint_once(variant: str, variant_checkpoint: Variants) -> None:
    from lfm_onnx.checkpoint.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    sources = [
        name
        for group in tensor_groups(model_weights(checkpoint.config, blocks=True))
        for w in group.weights
        for name in w.sources
    ]
    matrices = {name for name in checkpoint.names() if len(checkpoint.shape(name)) == 2 and ".gate." not in name}
    assert len(sources) == len(set(sources)) and set(sources) == matrices
    for group in tensor_groups(model_weights(checkpoint.config, blocks=True)):
        elements = sum(
            checkpoint.shape(name)[0] * checkpoint.shape(name)[1] for w in group.weights for name in w.sources
        )
        assert elements == group.parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(extra=1), "extra is unknown, expected recipe_version"),
        (lambda data: data.pop("method"), "method is missing"),
        (lambda data: data.update(recipe_version=2), "recipe_version is 2"),
        (lambda data: data.update(recipe_version=True), "recipe_version is"),
        (lambda data: data.update(method="magic"), "method is .*magic"),
        (lambda data: data.update(method=["rtn"]), "method is"),
        (lambda data: data.update(precision=4), "precision is 4"),
        (lambda data: data.update(formats=[]), "formats is"),
        (lambda data: data["formats"].pop("model.embed_tokens"), "no format for model.embed_tokens"),
        (lambda data: data["formats"].update({"model.layers.99.x": "q"}), "no weights .*model.layers.99.x"),
        (lambda data: data["formats"].update({"model.embed_tokens": "int5-block32-symmetric-float16"}), "int5"),
        (lambda data: data["formats"].update({"model.embed_tokens": {"bits": 4}}), "expected a text"),
        (
            lambda data: data["formats"].update({"model.layers.2.feed_forward.experts": BlockFormat(4, 128).name}),
            "cannot be cut into blocks of 128",
        ),
        (
            lambda data: data["formats"].update({"model.embed_tokens": BlockFormat(8, symmetric=False).name}),
            "zero points",
        ),
        (lambda data: data.update(calibration={"sha256": "../../etc", "tokens": 1}), "calibration.sha256 is"),
        (lambda data: data.update(calibration={"sha256": "0" * 64, "tokens": -1}), "calibration.tokens is -1"),
        (lambda data: data.update(calibration=None), "needs calibration"),
        (lambda data: data.update(choice={"budget": "all"}), "choice.budget is"),
        (lambda data: data["choice"].update(max_kld=1e999), "choice.max_kld is"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(
    change: Callable[[dict[str, Any]], Any], message: str, recipe: Recipe, groups: list[TensorGroup]
) -> None:
    data = json.loads(json.dumps(recipe.to_dict()))
    change(data)
    with pytest.raises(InputError, match=rf"^r\.json: .*{message}"):
        parse_recipe(data, groups, "r.json")


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"null", b'{"a": 1, "a": 2}', b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_recipe_ends_in_one_line(content: bytes, groups: list[TensorGroup], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_recipe(tmp_path / "r.json", groups)
    assert "\n" not in str(error.value) and "r.json" in str(error.value)


def test_a_recipe_that_is_not_there_is_named(groups: list[TensorGroup], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "none.json", groups)


def test_an_artifact_of_floats_has_no_recipe(tiny_lfm: Path, groups: list[TensorGroup], tmp_path: Path) -> None:
    export(tiny_lfm, "-o", tmp_path / "fp16", "--precision", "fp16")
    with pytest.raises(InputError, match="not quantized"):
        read_recipe(tmp_path / "fp16", groups)


def test_formats_by_tensor_reach_the_graph_and_replay_to_the_same_bytes(
    tiny_lfm: Path, groups: list[TensorGroup], tmp_path: Path
) -> None:
    mixed = same_format(groups, BlockFormat(4, 64)) | {
        "model.embed_tokens": BlockFormat(8),
        "model.layers.0.feed_forward": BlockFormat(8, 128),
        "model.layers.2.self_attn.out_proj": BlockFormat(4, 32),
        "model.layers.3.feed_forward.experts": BlockFormat(8, 32),
    }
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(Recipe("q4", Method.RTN, mixed).to_dict()))
    export(tiny_lfm, "-o", tmp_path / "first", "--recipe", path)
    entry = Artifact.open(tmp_path / "first", verify="full").entry
    assert entry.quantization["recipe"]["formats"] == {name: fmt.name for name, fmt in mixed.items()}
    assert entry.precision["expert"]["formats"] == {BlockFormat(4, 64).name: 6, BlockFormat(8).name: 2}
    assert entry.precision["embedding"]["bits"] == 8

    import onnx

    model = onnx.load(tmp_path / "first" / entry.model, load_external_data=False)
    bits = {
        node.input[1]: next(a.i for a in node.attribute if a.name == "bits")
        for node in model.graph.node
        if node.op_type in ("QLinear", "SwiGLU")
    }
    assert bits["model.layers.0.feed_forward.gate_up.weight"] == 8
    assert bits["model.layers.2.self_attn.out_proj.weight"] == 4

    # From the manifest of what it made, too.
    for number, source in enumerate((path, tmp_path / "first", tmp_path / "first" / "lfm_manifest.json")):
        export(tiny_lfm, "-o", tmp_path / f"again{number}", "--recipe", source)
        assert contents(tmp_path / f"again{number}") == contents(tmp_path / "first")


def test_a_calibrated_recipe_asks_for_the_text_that_it_was_made_with(tiny_lfm: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Passage {n}: the mayor of the town is {n} years old." for n in range(40)))
    few = ("--calibration", text, "--calibration-tokens", "64")
    export(tiny_lfm, "-o", tmp_path / "first", "--precision", "q4", "--method", "search", *few)
    export(tiny_lfm, "-o", tmp_path / "again", "--recipe", tmp_path / "first", "--calibration", text)
    assert contents(tmp_path / "again") == contents(tmp_path / "first")

    result = CliRunner().invoke(
        main, ["export", str(tiny_lfm), "-o", str(tmp_path / "other"), "--recipe", str(tmp_path / "first")]
    )
    assert result.exit_code == 2
    assert "other calibration text" in result.stderr
    assert not (tmp_path / "other").exists()
