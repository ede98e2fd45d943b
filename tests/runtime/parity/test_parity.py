"""Parity of exported models with their checkpoints: it holds for every variant, and every kind of damage is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from click.testing import CliRunner, Result
from exported_model import export_quietly
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.precision import FP16, FP32, Precision
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.cli.main import main
from lfm_onnx.cli.parity import parity
from lfm_onnx.errors import ArtifactError, InputError
from lfm_onnx.export.ops import OpsProfile
from lfm_onnx.runtime.parity import consistency
from lfm_onnx.runtime.parity.compare import compare
from lfm_onnx.runtime.parity.onnx_model import OnnxModel, OnnxState, resolve_provider
from lfm_onnx.runtime.parity.options import ParityOptions
from lfm_onnx.runtime.parity.passages import passages_of
from lfm_onnx.runtime.parity.prompts import default_prompts, read_prompts, task_prompts
from lfm_onnx.runtime.parity.reference import BACKENDS
from lfm_onnx.runtime.parity.report.contents import ParityReport
from lfm_onnx.runtime.parity.tasks import answer_tasks, final_answer, read_tasks
from model_variants import VARIANTS
from safetensors.numpy import load_file, save_file

MakeVariant = Callable[..., Path]


def run(artifact: Path, checkpoint: Path, *, backend: str = "numpy", **options: Any) -> ParityReport:
    options = {"threads": 1, "backend": backend, **options}
    return compare(Artifact.open(artifact), Checkpoint.open(checkpoint), ParityOptions(**options))


def random_ids(vocab_size: int, lengths: Sequence[int]) -> list[list[int]]:
    random = np.random.default_rng(sum(lengths))
    return [random.integers(0, vocab_size, length).tolist() for length in lengths]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(parity, [*map(str, arguments), "--backend", "numpy"])


@pytest.mark.parametrize("ops_profile", OpsProfile)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_transformers(
    variant_checkpoint: MakeVariant, exported_artifact: ArtifactFactory, variant: str, ops_profile: OpsProfile
) -> None:
    checkpoint = variant_checkpoint(variant)
    ids = random_ids(VARIANTS[variant]["vocab_size"], [1, 2, 300, 23])
    # transformers' cache cannot decode without attention layers; tests of the reference compare numpy with it.
    backend = "numpy" if variant == "dense_conv_only" else "transformers"
    report = run(
        exported_artifact(variant, ops_profile),
        checkpoint,
        token_ids=ids,
        backend=backend,
        greedy_tokens=6,
        layers=True,
    )
    assert report.passed, report.verdict
    assert report.logits.logit_std > 0.3, "logits this small would pass whatever the model computed"
    assert report.logits.relative_max_diff <= 1e-3
    assert all(result.equal for result in report.greedy)
    assert report.first_departing_layer is None


@pytest.mark.parametrize("ops_profile", OpsProfile)
@pytest.mark.parametrize("precision", [FP32, FP16], ids=lambda p: p.name)
def test_the_sample_model_holds_parity_on_text(
    tiny_lfm: Path, exported_artifact: ArtifactFactory, ops_profile: OpsProfile, precision: Precision
) -> None:
    report = run(exported_artifact(SAMPLE, ops_profile, precision), tiny_lfm, tokens=600, greedy_prompts=3)
    assert report.passed, report.verdict
    assert report.logits.top1 >= 0.99
    assert report.logits.perplexity_model == pytest.approx(report.logits.perplexity_reference, rel=0.01)
    names = {check.name for check in report.checks}
    assert {"prefill and decode", "prefill in pieces", "padded on the left", "padded on the right"} <= names


def damaged_copy(checkpoint: Path, folder: Path, tensor: str, scale: float) -> Path:
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights[tensor] = (weights[tensor] * scale).astype(weights[tensor].dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_wrong_weight_is_seen_and_its_layer_named(
    variant_checkpoint: MakeVariant, exported_artifact: ArtifactFactory, tmp_path: Path
) -> None:
    checkpoint = variant_checkpoint("moe_fp32")
    damaged = damaged_copy(checkpoint, tmp_path / "damaged", "model.layers.2.self_attn.out_proj.weight", 1.05)
    ids = random_ids(96, [40, 9])
    artifact = export_quietly(damaged, tmp_path / "artifact").parents[1]
    report = run(artifact, checkpoint, token_ids=ids, layers=True, greedy_tokens=4)
    assert not report.passed
    assert report.first_departing_layer == "2"
    assert "first departs: 2 (attention, experts)" in [check.detail for check in report.checks]
    missed = {check.name for check in report.checks if not check.passed}
    assert {"logits", "hidden states"} <= missed
    # The artifact is wrong, but agrees with itself.
    assert "prefill and decode" not in missed and "padded on the left" not in missed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_that_the_artifact_lacks_is_seen_though_config_says_tied(
    variant_checkpoint: MakeVariant, exported_artifact: ArtifactFactory, tmp_path: Path, backend: str
) -> None:
    """The judge reads the files by another way than export does, which knows of one table only."""
    tuned = Path(shutil.copytree(variant_checkpoint("dense_fp32"), tmp_path / "tuned"))
    weights = load_file(tuned / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"][::-1].copy()
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    report = run(exported_artifact("dense_fp32"), tuned, token_ids=[[5, 6, 7]], greedy_tokens=0, backend=backend)
    assert not report.passed and report.logits.top1 < 0.5


def test_the_other_models_artifact_is_refused(
    variant_checkpoint: MakeVariant, exported_artifact: ArtifactFactory
) -> None:
    with pytest.raises(ArtifactError, match=r"was not exported from .*: its num_key_value_heads is 2.* 1"):
        run(exported_artifact("dense"), variant_checkpoint("dense_one_kv_head"))


def test_a_config_that_was_only_written_anew_is_accepted(
    variant_checkpoint: MakeVariant, exported_artifact: ArtifactFactory, tmp_path: Path
) -> None:
    checkpoint = variant_checkpoint("dense")
    shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(dict(sorted(config.items(), reverse=True))))
    assert run(exported_artifact("dense"), tmp_path / "copy", token_ids=[[5, 6]], greedy_tokens=2).passed


def test_a_model_without_tokenizer_is_compared_on_random_ids(
    variant_checkpoint: MakeVariant, exported_artifact: ArtifactFactory
) -> None:
    checkpoint = variant_checkpoint("moe")
    report = run(exported_artifact("moe"), checkpoint, tokens=80, greedy_tokens=4)
    assert report.passed and report.passages[0].label == "random ids 1"
    assert report.logits.tokens == 80


class SumOfIds:
    """Stands in for a model: logits say the sum of the ids read so far, with or without those under padding."""

    def __init__(self, *, heeds_mask: bool) -> None:
        self.heeds_mask = heeds_mask

    def forward(
        self, ids: np.ndarray, state: OnnxState | None = None, *, mask: np.ndarray | None = None, keep: int = 0
    ) -> tuple[np.ndarray, OnnxState, dict[str, np.ndarray]]:
        mask = np.ones_like(ids) if mask is None else mask
        before = state.past["sum"] if state else np.zeros((len(ids), 1))
        sums = before + np.cumsum(ids * mask if self.heeds_mask else ids, axis=1)
        last = mask.shape[1] - 1 - mask[:, ::-1].argmax(1) if self.heeds_mask else np.full(len(ids), -1)
        rows = sums if keep == 0 else sums[np.arange(len(ids)), last][:, None]
        state = OnnxState(mask, {"sum": sums[np.arange(len(ids)), last][:, None]})
        return np.stack([rows, np.ones_like(rows)], -1).astype(np.float32), state, {}

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self.forward(np.asarray(ids)[None])[0][0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_leaks_into_a_row_is_seen(side: Any) -> None:
    rows = [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10]]
    for runner, leaks in ((SumOfIds(heeds_mask=True), False), (SumOfIds(heeds_mask=False), True)):
        prefill, decode = consistency.padded_batch(runner, rows, side, 2, pad_token_id=100)  # type: ignore[arg-type]
        assert (prefill.max_abs_diff > 50) == leaks
        assert (decode.max_abs_diff > 50) == leaks


def test_a_state_that_is_lost_between_calls_is_seen() -> None:
    class Forgetful(SumOfIds):
        def forward(self, ids: np.ndarray, state: OnnxState | None = None, **options: Any) -> Any:
            return super().forward(ids, None, **options)

    ids = list(range(1, 40))
    for compare_pieces in (consistency.decode_against_prefill, consistency.pieces_against_prefill):
        assert compare_pieces(SumOfIds(heeds_mask=True), ids).max_abs_diff == 0  # type: ignore[arg-type]
        assert compare_pieces(Forgetful(heeds_mask=True), ids).max_abs_diff > 100  # type: ignore[arg-type]


def test_rows_of_a_padded_batch_differ_in_length_and_fit_their_passages() -> None:
    rows = consistency.unequal_rows([list(range(10)), list(range(100, 130))], 3)
    assert [len(row) - 3 for row in rows] == [1, 5, 18, 27]
    assert [len(row) for row in consistency.unequal_rows([[4]], 0)] == [1]


def test_prompts_fill_the_budget_in_passages_that_begin_like_a_text(tiny_lfm: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(tiny_lfm)
    (tmp_path / "long.txt").write_text("The miller of Lund lives by the river. " * 200)
    passages = passages_of(read_prompts(tmp_path / "long.txt", 150), tokenizer, tokens=150, passage_tokens=64)
    assert [len(passage.ids) for passage in passages] == [64, 64, 22]
    assert {tuple(passage.ids[: len(tokenizer.encode("", add_special=True))]) for passage in passages} == {
        tuple(tokenizer.encode("", add_special=True))
    }
    default = passages_of(default_prompts(chats=True), tokenizer, tokens=100_000, passage_tokens=256)
    assert any(passage.label == "chat, tools" for passage in default) and len(default) >= 15


def test_prompts_may_be_json_lines_of_texts_and_conversations(tiny_lfm: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"text": "One."}, {"prompt": "Two."}, {"messages": [{"role": "user", "content": "Three?"}], "id": "third"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    tokenizer = ChatTokenizer.load(tiny_lfm)
    passages = passages_of(read_prompts(path, 100), tokenizer, tokens=100, passage_tokens=64)
    assert [passage.label for passage in passages] == ["line 1", "line 2", "third"]
    assert tokenizer.decode(passages[2].ids).endswith("Three?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"txt": 1}', 'line 2: expected a "text"'),
        ("b.jsonl", b"{", "line 1: not JSON"),
        ("c.jsonl", b'{"messages": []}', r"messages is \[\], expected a list of one object or more"),
        ("d.txt", b"\xff\xfe", "not UTF-8"),
        ("e.txt", b" \n", "holds no prompt"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name, 100)


def test_the_answer_is_what_follows_the_last_thought_up_to_the_first_end(tiny_lfm: Path) -> None:
    tokenizer = ChatTokenizer.load(tiny_lfm)
    ids = tokenizer.encode("<think>one</think>two</think> Three. <|im_end|>four</think>five<|im_end|>")
    assert final_answer(tokenizer, ids, {7}) == "Three."
    assert final_answer(tokenizer, tokenizer.encode("<think>a</think>b"), {7}) == "b"


def test_tasks_are_graded_by_category(tiny_lfm: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(tiny_lfm)
    task = {"category": "a", "messages": [{"role": "user", "content": "?"}], "expected": "Yes.", "max_new_tokens": 9}
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({**task, "id": str(i), "category": "ab"[i % 2]}) + "\n" for i in range(4)))
    tasks = read_tasks(path)
    assert [prompt.label for prompt in task_prompts([*tasks[::2], tasks[1]])] == ["0", "1", "2"]
    replies = iter(["Yes.", "<think>No.</think>Yes.", "yes.", "Yes. <|im_end|>No."])
    found = answer_tasks(tasks, tokenizer, lambda *_: tokenizer.encode(next(replies)), {7}, 512, lambda _: None)
    assert found.by_category == {"a": (1, 2), "b": (2, 2)}
    assert [(wrong.task_id, wrong.answer) for wrong in found.wrong] == [("2", "yes.")]
    with pytest.raises(InputError, match="exceed the artifact's context"):
        answer_tasks(tasks, tokenizer, lambda *_: [], {7}, 8, lambda _: None)


def test_tasks_of_the_sample_model_are_answered_as_the_reference_answers_them(
    tiny_lfm: Path, exported_artifact: ArtifactFactory, tmp_path: Path
) -> None:
    lines = (tiny_lfm / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(lines[::20]), encoding="utf-8")
    report = run(exported_artifact(SAMPLE), tiny_lfm, tasks=path, tokens=200, greedy_prompts=1)
    assert report.passed, report.verdict
    assert report.tasks is not None and report.tasks.tasks == len(lines[::20])
    assert report.tasks == report.reference_tasks


def test_the_command_prints_one_json_object_and_writes_the_report(
    tiny_lfm: Path, exported_artifact: ArtifactFactory, tmp_path: Path
) -> None:
    result = command(
        exported_artifact(SAMPLE), "--reference", tiny_lfm, "--tokens", 60, "--greedy-tokens", 4, "--json",
        "--report", tmp_path / "report.md", "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["passed"] is True and data["logits"]["tokens"] == 60
    assert "passage 1 of" in result.stderr
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# Parity: passed")


def test_the_command_exits_1_when_a_limit_is_missed(tiny_lfm: Path, exported_artifact: ArtifactFactory) -> None:
    result = command(
        exported_artifact(SAMPLE), "--reference", tiny_lfm, "--tokens", 40, "--greedy-tokens", 0,
        "--max-logit-diff", 1e-12,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "parity missed" in result.stdout and "logits" in result.stdout


def test_the_command_line_exits_2_with_one_line_when_it_cannot_compare(
    variant_checkpoint: MakeVariant,
    exported_artifact: ArtifactFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = variant_checkpoint("dense")
    broken = tmp_path / "broken"
    shutil.copytree(exported_artifact("dense"), broken)
    (broken / "onnx" / "model.onnx").write_bytes(b"no model")
    for arguments in (
        [str(broken), "--reference", str(checkpoint)],
        [str(exported_artifact("dense")), "--reference", str(tmp_path)],
        [str(exported_artifact("dense")), "--reference", str(variant_checkpoint("moe"))],
        [str(exported_artifact("dense")), "--reference", str(checkpoint), "--provider", "abacus"],
        [str(exported_artifact("dense")), "--reference", str(checkpoint), "--report", "report.pdf"],
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["parity", *arguments])
        captured = capsys.readouterr()
        assert exit_.value.code == 2, arguments
        assert captured.out == "" and "Traceback" not in captured.err
        assert len(captured.err.strip().splitlines()) == 1, captured.err


def test_a_model_that_onnx_runtime_cannot_load_gives_one_line(
    variant_checkpoint: MakeVariant, exported_artifact: ArtifactFactory, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(exported_artifact("dense"), broken)
    (broken / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot load it") as error:
        OnnxModel(Artifact.open(broken, verify="none"))
    assert "\n" not in str(error.value)


def test_providers_go_by_short_or_full_name() -> None:
    assert resolve_provider(None) == resolve_provider("cpu") == resolve_provider("CPUExecutionProvider")
    with pytest.raises(InputError, match=r"provider 'abacus' is not in this ONNX Runtime; it has: .*cpu"):
        resolve_provider("abacus")
