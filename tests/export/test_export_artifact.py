"""An artifact says exactly what it holds, comes out the same every time, and tells when it was changed since."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from click.testing import CliRunner, Result
from exported_model import ExportedModel, export_quietly
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.files import SAMPLE_BLOCK, SAMPLE_BLOCKS
from lfm_onnx.artifact.precision import FP16, FP32, PRECISIONS
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.cli.main import main
from lfm_onnx.errors import ArtifactError, CheckpointError, InputError, LfmOnnxError, OutputError
from lfm_onnx.export import ExportOptions, OpsProfile, export_checkpoint, plan, resolve_export
from lfm_onnx.export.data_files import CACHE_LINE, LARGE_TENSOR, PAGE, plan_data_files
from safetensors.numpy import load_file, save_file

VariantCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def sample_artifact(exported_artifact: ArtifactFactory) -> Path:
    """The sample model's export; shared, so read only."""
    return exported_artifact(SAMPLE)


@pytest.fixture
def copy(sample_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_artifact, tmp_path / "copy"))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file by its path, hidden ones included."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "lfm_manifest.json").read_text(encoding="utf-8"))
    return manifest


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = manifest_of(folder)
    edit(manifest)
    (folder / "lfm_manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


# --- what is in it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=list(PRECISIONS))
@pytest.mark.parametrize("variant", ["dense", "moe", "sample"])
def test_the_manifest_lists_every_file_with_size_and_sha256(
    variant: str, precision: Any, variant_checkpoint: VariantCheckpoint, tiny_lfm: Path, tmp_path: Path
) -> None:
    checkpoint = tiny_lfm if variant == "sample" else variant_checkpoint(variant)
    export_quietly(checkpoint, tmp_path / "out", precision=precision)
    listed = {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in manifest_of(tmp_path / "out")["files"]}
    found = {
        name: (len(data), hashlib.sha256(data).hexdigest())
        for name, data in contents(tmp_path / "out").items()
        if name != "lfm_manifest.json"
    }
    assert listed == found
    assert os.listdir(tmp_path) == ["out"]


def test_the_manifest_says_where_the_model_comes_from_and_what_it_needs(sample_artifact: Path, tiny_lfm: Path) -> None:
    manifest = manifest_of(sample_artifact)
    weights = (tiny_lfm / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    assert manifest["source"] == {
        "checkpoint": "tiny_lfm",
        "content_sha256": hashlib.sha256(digest.encode()).hexdigest(),
        "config_sha256": hashlib.sha256((tiny_lfm / "config.json").read_bytes()).hexdigest(),
        "files": [{"path": "model.safetensors", "bytes": len(weights), "sha256": digest}],
    }
    stored = load_file(tiny_lfm / "model.safetensors")
    assert manifest["model"]["parameters"] == sum(array.size for array in stored.values())
    assert manifest["model"]["layer_types"] == json.loads((tiny_lfm / "config.json").read_text())["layer_types"]
    # 2 attention layers of 2 KV heads x 32, 4 conv layers of 128 x 3, all float32.
    assert manifest["memory_bytes_by_context"] == {
        "1024": {"kv_cache": 2 * 2 * 2 * 32 * 1024 * 4, "conv": 4 * 128 * 3 * 4},
        "2048": {"kv_cache": 2 * 2 * 2 * 32 * 2048 * 4, "conv": 4 * 128 * 3 * 4},
    }
    variant = manifest["variants"]["fp32"]
    assert {entry["dtype"] for entry in variant["precision"].values()} == {"float32"}
    on_disk = sum((sample_artifact / name).stat().st_size for name in variant["files"])
    assert 0 < variant["weight_bytes"] <= on_disk


def test_fp16_keeps_router_norms_and_convolutions_in_float32(exported_artifact: ArtifactFactory) -> None:
    precision = manifest_of(exported_artifact(SAMPLE, precision=FP16))["variants"]["fp16"]["precision"]
    assert {kind: entry["dtype"] for kind, entry in precision.items() if kind != "rotary"} == {
        "embedding": "float16",
        "linear": "float16",
        "expert": "float16",
        "router": "float32",
        "norm": "float32",
        "conv": "float32",
    }


# --- the same every time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ops_profile", OpsProfile)
def test_a_second_export_writes_the_same_bytes(
    ops_profile: OpsProfile, tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is started from, and however the paths are spelled."""
    assert run("export", tiny_lfm.absolute(), "-o", tmp_path / "first", "--ops", ops_profile.value).exit_code == 0
    monkeypatch.chdir(tiny_lfm)
    second = os.path.relpath(tmp_path / "second" / "deeper")
    assert run("export", ".", "-o", second, "--ops", ops_profile.value).exit_code == 0
    assert contents(tmp_path / "second" / "deeper") == contents(tmp_path / "first")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_files_as_windows_writes_them_come_out_in_plain_utf_8(
    encoding: str, sample_artifact: Path, tiny_lfm: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_lfm, tmp_path / "checkpoint"))
    for path in checkpoint.glob("*.json"):
        path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    export_quietly(checkpoint, tmp_path / "out")
    written, expected = contents(tmp_path / "out"), contents(sample_artifact)
    assert written.keys() == expected.keys()
    naming_their_source = {"lfm_manifest.json", "onnx/model.onnx"}
    assert {name for name in expected if written[name] != expected[name]} <= naming_their_source


def test_nothing_of_the_machine_is_in_the_artifact(sample_artifact: Path, tiny_lfm: Path) -> None:
    for name, data in contents(sample_artifact).items():
        for secret in (str(sample_artifact.parent), str(tiny_lfm.parent)):
            assert secret.encode() not in data, name


# --- the options ------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_write_and_writes_nothing(tiny_lfm: Path, tmp_path: Path) -> None:
    result = run("export", tiny_lfm, "-o", tmp_path / "deep" / "out", "--dry-run", "--json")
    assert result.exit_code == 0
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(result.stdout)
    assert plan["dry_run"] is True

    done = run("export", tiny_lfm, "-o", tmp_path / "out", "--json")
    summary = json.loads(done.stdout)
    assert {name: summary[name] for name in plan if name not in ("dry_run", "output")} == {
        name: value for name, value in plan.items() if name not in ("dry_run", "output")
    }
    for file in plan["data_files"]:
        assert (tmp_path / "out" / file["path"]).stat().st_size == file["bytes"]


def test_json_output_is_one_object_on_stdout(tiny_lfm: Path, tmp_path: Path) -> None:
    result = run("export", tiny_lfm, "-o", tmp_path / "out", "--precision", "fp16", "--ops", "standard", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    summary = json.loads(result.stdout)
    assert (summary["precision"], summary["ops"]) == ("fp16", "standard")
    assert Path(summary["model"]) == tmp_path / "out" / "onnx" / "model_fp16.onnx"
    total = sum(len(data) for name, data in contents(tmp_path / "out").items() if name != "lfm_manifest.json")
    assert summary["bytes"] == total


def test_context_length_is_what_the_graph_can_address(tiny_lfm: Path, tmp_path: Path) -> None:
    assert run("export", tiny_lfm, "-o", tmp_path / "out", "--context-length", "33").exit_code == 0
    assert Artifact.open(tmp_path / "out").context_length == 33
    assert json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["context_length"] == 33
    model = ExportedModel(tmp_path / "out" / "onnx" / "model.onnx")
    logits, _ = model.feed(range(33))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("length", [0, -1, 2049])
def test_context_length_beyond_the_models_is_refused(length: int, tiny_lfm: Path) -> None:
    with pytest.raises(InputError, match=r"1 to 2048 positions"):
        resolve_export(Checkpoint.open(tiny_lfm), ExportOptions(context_length=length))


def test_a_weight_beyond_float16_is_refused_by_name(variant_checkpoint: VariantCheckpoint, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(variant_checkpoint("dense_fp32"), tmp_path / "checkpoint"))
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.2.feed_forward.w2.weight"][3, 5] = -1e6
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.feed_forward\.w2\.weight holds .*float16's range"):
        export_quietly(checkpoint, tmp_path / "parent" / "out", precision=FP16)
    assert os.listdir(tmp_path) == ["checkpoint"]
    export_quietly(checkpoint, tmp_path / "out", precision=FP32)


# --- replacing --------------------------------------------------------------------------------------------------------


def test_an_artifact_is_replaced_only_when_asked(copy: Path, tiny_lfm: Path) -> None:
    before = contents(copy)
    refused = run("export", tiny_lfm, "-o", copy, "--ops", "standard")
    assert refused.exit_code == 2 and "--force" in refused.stderr
    assert contents(copy) == before

    assert run("export", tiny_lfm, "-o", copy, "--ops", "standard", "--force").exit_code == 0
    assert Artifact.open(copy, verify="full").ops_profile == "standard"
    assert os.listdir(copy.parent) == ["copy"]


def test_an_empty_folder_is_filled(tiny_lfm: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run("export", tiny_lfm, "-o", tmp_path / "out").exit_code == 0
    Artifact.open(tmp_path / "out", verify="full")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_a_folder_of_something_else_is_never_replaced(force: list[str], tiny_lfm: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    result = run("export", tiny_lfm, "-o", tmp_path / "out", *force)
    assert result.exit_code == 2 and "not empty" in result.stderr
    assert contents(tmp_path) == {"out/thesis.txt": b"years of work"}


@pytest.mark.parametrize("name", ["notes.txt", "onnx/model_of_my_own.onnx", ".git/HEAD"])
def test_a_file_that_no_export_wrote_is_not_deleted_with_the_artifact(name: str, copy: Path, tiny_lfm: Path) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("mine")
    result = run("export", tiny_lfm, "-o", copy, "--force")
    assert result.exit_code == 2 and name in result.stderr
    assert (copy / name).read_text() == "mine"


# --- weights in several files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ops_profile", OpsProfile)
def test_weights_split_over_files_run_alike(
    ops_profile: OpsProfile, tiny_lfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ExportedModel(export_quietly(tiny_lfm, tmp_path / "whole", ops_profile))
    monkeypatch.setattr(plan, "plan_data_files", partial(plan_data_files, max_bytes=1_000_000))
    path = export_quietly(tiny_lfm, tmp_path / "split", ops_profile)

    files = sorted(name for name in os.listdir(path.parent) if name != "model.onnx")
    assert len(files) > 3 and files[:2] == ["model.onnx_data", "model.onnx_data_1"]
    config = json.loads((tmp_path / "split" / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": len(files)}
    Artifact.open(tmp_path / "split", verify="full")
    ids = [1, 17, 256, 3]
    np.testing.assert_array_equal(ExportedModel(path).feed(ids, keep=0)[0], whole.feed(ids, keep=0)[0])


def test_tensors_lie_aligned_and_apart_within_their_file(tiny_lfm: Path) -> None:
    resolved = resolve_export(Checkpoint.open(tiny_lfm), ExportOptions())
    external = [placed.tensor for file in resolved.data_files for placed in file.tensors]
    for limit in (100_000, 300_000, 10**9):
        files = plan_data_files(external, FP32.data_file, limit)
        assert [placed.tensor for file in files for placed in file.tensors] == external
        for file in files:
            end = 0
            for placed in file.tensors:
                assert placed.offset >= end
                assert placed.offset % (PAGE if placed.tensor.nbytes >= LARGE_TENSOR else CACHE_LINE) == 0
                end = placed.offset + placed.tensor.nbytes
            assert file.nbytes == end
            assert end <= limit or len(file.tensors) == 1


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["none", "quick", "full"])
def test_a_whole_artifact_opens(verify: Any, sample_artifact: Path) -> None:
    artifact = Artifact.open(sample_artifact, verify=verify)
    assert (artifact.variant, artifact.ops_profile, artifact.context_length) == ("fp32", "custom", 2048)
    assert artifact.model_path == sample_artifact / "onnx" / "model.onnx"
    assert [file.path for file in artifact.model_files] == ["onnx/model.onnx", "onnx/model.onnx_data"]
    assert artifact.config.num_experts == 8


def refusal(folder: Path, **options: Any) -> str:
    """The one line with which the folder is refused."""
    with pytest.raises(LfmOnnxError) as caught:
        Artifact.open(folder, **options)
    assert isinstance(caught.value, ArtifactError)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_a_newer_manifest_is_left_to_a_newer_version(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest.update(manifest_version=2))
    assert "manifest version 2" in refusal(copy)
    assert "update lfm-onnx" in refusal(copy)


@pytest.mark.parametrize("verify", ["quick", "full"])
@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx/model.onnx_data"])
def test_a_model_file_that_was_replaced_is_noticed(name: str, verify: Any, copy: Path) -> None:
    """Same size, other content: as after copying another model's weights over it."""
    path = copy / name
    path.write_bytes(bytes(byte ^ 0x55 for byte in path.read_bytes()))
    assert f"{path} is not the file that was exported" in refusal(copy, verify=verify)


def test_one_changed_byte_is_noticed_in_full_and_its_block_by_sample(copy: Path) -> None:
    path = copy / "onnx" / "model.onnx_data"
    size = path.stat().st_size
    assert size > 2 * SAMPLE_BLOCK * SAMPLE_BLOCKS
    between = SAMPLE_BLOCK + (size // SAMPLE_BLOCKS - SAMPLE_BLOCK) // 2
    for position, sampled in ((0, True), (size - 1, True), (between, False)):
        original = path.read_bytes()
        path.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        assert "is not the file that was exported" in refusal(copy, verify="full")
        if sampled:
            assert "is not the file that was exported" in refusal(copy)
        path.write_bytes(original)
    Artifact.open(copy, verify="full")


def test_a_file_that_may_not_be_read_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "tokenizer.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)  # root, who may run the tests, reads everything
    assert refusal(copy) == f"{copy / 'tokenizer.json'}: cannot be read: Permission denied"


@pytest.mark.parametrize("verify", ["none", "quick", "full"])
def test_a_truncated_file_is_noticed(verify: Any, copy: Path) -> None:
    path = copy / "onnx" / "model.onnx_data"
    os.truncate(path, path.stat().st_size - 1)
    assert f"{path} has {path.stat().st_size} bytes, the manifest says" in refusal(copy, verify=verify)


@pytest.mark.parametrize("verify", ["none", "quick", "full"])
@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json"])
def test_a_missing_file_is_noticed(name: str, verify: Any, copy: Path) -> None:
    (copy / name).unlink()
    assert f"{copy / name} is missing" in refusal(copy, verify=verify)


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "onnx/../../secret", "..", "C:\\secret", "onnx\\..\\..\\secret", "", "."]
)
def test_a_path_that_leaves_the_folder_is_refused(path: str, copy: Path) -> None:
    (copy.parent / "secret").write_text("x")
    edit_manifest(copy, lambda manifest: manifest["files"][0].update(path=path))
    assert "stays in the folder" in refusal(copy)

    edit_manifest(copy, lambda manifest: manifest["files"][0].update(path="onnx/model.onnx"))
    edit_manifest(copy, lambda manifest: manifest["variants"]["fp32"].update(model=path))
    assert "stays in the folder" in refusal(copy)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda manifest: manifest.update(manifest_version="1"), "manifest_version"),
        (lambda manifest: manifest.update(manifest_version=True), "manifest_version"),
        (lambda manifest: manifest.update(manifest_version=0), "manifest_version"),
        (lambda manifest: manifest.pop("manifest_version"), "manifest_version"),
        (lambda manifest: manifest.pop("files"), "files"),
        (lambda manifest: manifest.update(files={}), "files"),
        (lambda manifest: manifest["files"].append("onnx/model.onnx"), "files"),
        (lambda manifest: manifest["files"][0].pop("sha256"), "sha256"),
        (lambda manifest: manifest["files"][0].update(bytes="many"), "bytes"),
        (lambda manifest: manifest["files"].pop(0), "fp32 names files that are not listed"),
        (lambda manifest: manifest.pop("variants"), "variants"),
        (lambda manifest: manifest.update(variants={}), "no variant"),
        (lambda manifest: manifest.update(variants={"fp32": 3}), "variants.fp32 is 3, expected an object"),
        (lambda manifest: manifest["variants"]["fp32"].update(files="all"), "files"),
        (lambda manifest: manifest["variants"]["fp32"].update(model="tokenizer.json"), "fp32"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(
    edit: Callable[[dict[str, Any]], object], named: str, copy: Path
) -> None:
    edit_manifest(copy, edit)
    message = refusal(copy)
    assert "lfm_manifest.json" in message and named in message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(data: bytes, copy: Path) -> None:
    (copy / "lfm_manifest.json").write_bytes(data)
    assert str(copy / "lfm_manifest.json") in refusal(copy)


def test_a_context_length_that_is_no_count_is_refused(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["model"].update(context_length="long"))
    with pytest.raises(ArtifactError, match="context_length"):
        _ = Artifact.open(copy).context_length


def test_what_is_no_artifact_is_refused(tiny_lfm: Path, tmp_path: Path, sample_artifact: Path) -> None:
    assert "no lfm_manifest.json" in refusal(tiny_lfm)
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    assert "is not a folder" in refusal(tiny_lfm / "config.json")
    assert "no variant 'int4'; it has: fp32" in refusal(sample_artifact, variant="int4")


def test_a_mount_point_or_link_is_refused_before_any_work(tiny_lfm: Path, tmp_path: Path) -> None:
    """Neither can be replaced by a rename, which is found out now rather than after hours of writing."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    checkpoint = Checkpoint.open(tiny_lfm)
    with pytest.raises(OutputError, match="is not a folder"):
        export_checkpoint(checkpoint, tmp_path / "link")
    mounts = [path for path in ("/dev/shm", "/sys", "/proc") if os.path.ismount(path)]
    for mount in mounts:
        with pytest.raises(OutputError):
            export_checkpoint(checkpoint, mount)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link"]
