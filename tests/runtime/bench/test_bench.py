"""A benchmark reports what it measured: its keys, its arithmetic, its limits, and a user's mistakes in one line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from artifact_factory import ArtifactFactory
from click.testing import CliRunner
from lfm_onnx.cli import bench as bench_command
from lfm_onnx.errors import ArtifactError, InputError
from lfm_onnx.hardware.memory_bandwidth import MemoryBandwidth
from lfm_onnx.runtime.bench.bench import (
    BenchOptions,
    BenchResult,
    bench,
    random_ids,
    repeated_runs,
    statistics,
)
from lfm_onnx.runtime.bench.process import BenchWorker
from lfm_onnx.runtime.inspection import inspect_artifact
from lfm_onnx.runtime.model import LfmModel
from lfm_onnx.runtime.worker_process import WorkerError

SHORT = BenchOptions(prompt_tokens=20, new_tokens=5, threads=1, repeat=2)
REPEATED = (
    "prefill_tokens_per_s", "decode_tokens_per_s", "ttft_s", "load_s", "read_bandwidth_bytes_per_s",
    "bandwidth_fraction",
)  # fmt: skip
WORKER = (sys.executable, "-m", "lfm_onnx.runtime.bench.worker")


@pytest.fixture(scope="module")
def artifact(exported_artifact: ArtifactFactory) -> Path:
    return exported_artifact("moe")


@pytest.fixture(scope="module")
def result(artifact: Path) -> BenchResult:
    return bench(artifact, SHORT)


def test_every_repetition_is_measured(result: BenchResult) -> None:
    for name in REPEATED:
        values = getattr(result, name)
        assert len(values) == SHORT.repeat, name
        assert all(value > 0 for value in values), name


def test_time_to_first_token_is_that_of_the_prompt(result: BenchResult) -> None:
    assert result.ttft_s == pytest.approx([SHORT.prompt_tokens / rate for rate in result.prefill_tokens_per_s])


def test_bytes_per_token_are_those_of_the_inspection(artifact: Path, result: BenchResult) -> None:
    assert result.bytes_per_token == inspect_artifact(artifact).touched_bytes_per_token


def test_bandwidth_fraction_compares_the_weights_read_with_what_memory_could_deliver(result: BenchResult) -> None:
    for fraction, rate, bandwidth in zip(
        result.bandwidth_fraction, result.decode_tokens_per_s, result.read_bandwidth_bytes_per_s, strict=True
    ):
        assert fraction == pytest.approx(rate * result.bytes_per_token / bandwidth)


def test_peak_memory_is_that_of_a_process_that_ran_the_model_and_nothing_else(result: BenchResult) -> None:
    # Python, numpy and ONNX Runtime take tens of megabytes; the buffer of the bandwidth (256 MiB) is not among them.
    assert 20e6 < result.peak_rss_bytes < 250e6


def test_json_holds_medians_and_percentiles_under_the_documented_keys(artifact: Path) -> None:
    arguments = [str(artifact), "--prompt-tokens", "8", "--new-tokens", "2", "--threads", "1", "--json"]
    run = CliRunner().invoke(bench_command.bench, [*arguments, "--repeat", "2"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert set(found) == {
        "peak_rss_bytes", "bytes_per_token", *(name + end for name in REPEATED for end in ("", "_p5", "_p95"))
    }  # fmt: skip
    for name in REPEATED:
        assert found[f"{name}_p5"] <= found[name] <= found[f"{name}_p95"]


def test_what_was_measured_once_has_no_percentiles() -> None:
    assert statistics("load_s", [0.5]) == {"load_s": 0.5}
    assert statistics("load_s", [3.0, 1.0, 2.0]) == pytest.approx({"load_s": 2.0, "load_s_p5": 1.1, "load_s_p95": 2.9})


def test_table_shows_conditions_and_figures(artifact: Path) -> None:
    arguments = [str(artifact), "--prompt-tokens", "8", "--new-tokens", "2", "--threads", "1", "--repeat", "1"]
    run = CliRunner().invoke(bench_command.bench, arguments)
    assert run.exit_code == 0, run.output
    for text in ("fp32", "1 thread", "8 prompt tokens", "tokens/s", "GB/s", "MB"):
        assert text in run.stdout


def test_logits_of_the_measured_process_are_the_models(artifact: Path) -> None:
    model = LfmModel.load(artifact, threads=1)
    ids = random_ids(6, model.config.vocab_size, seed=3)
    expected, _ = model.forward(ids, num_logits_to_keep=0)
    with BenchWorker(WORKER, {"folder": str(artifact), "threads": 1}) as worker:
        np.testing.assert_allclose(worker.logits(ids), expected[0], atol=1e-4)


def test_warm_up_is_not_counted_and_every_run_gets_other_tokens() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.fed: list[list[int]] = []

        def run(self, prompt_ids: list[int], next_ids: list[int]) -> dict[str, float]:
            assert (len(prompt_ids), len(next_ids)) == (4, 3)
            self.fed.append(prompt_ids + next_ids)
            return {"prefill_s": 1.0, "decode_s": float(len(self.fed)), "peak_rss_bytes": 1}

    recorder = Recorder()
    memory = MemoryBandwidth(1, buffer_bytes=1 << 20)
    runs = repeated_runs(recorder, memory, prompt_tokens=4, new_tokens=3, repeat=2, vocab_size=1000)
    assert [run.decode_s for run in runs] == [2.0, 3.0]
    assert len({tuple(ids) for ids in recorder.fed}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BenchOptions(prompt_tokens=0), "`prompt_tokens`: expected 1 or more, found 0"),
        (BenchOptions(threads=-1), r"`threads`: expected 1 to [0-9]+, found -1"),
        (BenchOptions(threads=5000), r"`threads`: expected 1 to [0-9]+, found 5000"),
        (BenchOptions(repeat=2**63), "`repeat`: expected 1 to 1000, found 9223372036854775808"),
        (BenchOptions(prompt_tokens=10**9), "do not fit into the context"),
    ],
)
def test_impossible_measurements_are_refused_before_any_model_is_loaded(
    options: BenchOptions, message: str, artifact: Path
) -> None:
    with pytest.raises(InputError, match=message):
        bench(artifact, options)


def test_a_missing_folder_ends_as_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a folder"):
        bench(tmp_path / "nowhere", SHORT)


def test_an_error_in_the_measured_process_arrives_as_one_line(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="not a folder"), BenchWorker(WORKER, {"folder": str(tmp_path / "gone")}):
        pass


def test_what_libraries_print_does_not_disturb_the_replies() -> None:
    chatty = (
        "from lfm_onnx.runtime.bench.worker import serve_engine\n"
        "import os\n"
        "def load(settings):\n"
        "    os.write(1, b'loading ...\\n'); print('hello')\n"
        "serve_engine(load)\n"
    )
    with BenchWorker((sys.executable, "-c", chatty), {}) as worker:
        assert worker.load_s >= 0


def test_read_bandwidth_is_that_of_reading_the_whole_buffer() -> None:
    size = 64 << 20
    memory = MemoryBandwidth(2, buffer_bytes=size)
    started = time.perf_counter()
    found = memory.measure()
    elapsed = time.perf_counter() - started
    # The best of several passes can be no slower than their mean, nor can memory be read at a terabyte per second.
    assert size / elapsed < found < 1e12


def test_bandwidth_with_no_thread_is_refused() -> None:
    with pytest.raises(InputError, match=r"`threads`: expected 1 to [0-9]+, found 0"):
        MemoryBandwidth(0)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_phone_estimate_takes_the_innermost_loop_with_the_dot_products() -> None:
    from phone_estimate import inner_loop

    assembly = """
decode_int4:
    mov x1, x2
.L2:
    ldr q0, [x1]
.L3:
    sdot v0.4s, v1.16b, v2.16b
    sdot v3.4s, v1.16b, v2.16b
    subs x4, x4, #1
    bne .L3
.L4:
    add x5, x5, #1
    cbnz x5, .L4
    b.ne .L2
    ret
    .size decode_int4, .-decode_int4
"""
    loop, weights = inner_loop(assembly)
    assert loop == [
        "sdot v0.4s, v1.16b, v2.16b", "sdot v3.4s, v1.16b, v2.16b", "subs x4, x4, #1", "bne .L3",
    ]  # fmt: skip
    assert weights == 32


@pytest.mark.usefixtures("benchmarks")
def test_phone_estimate_counts_the_weights_that_a_token_touches() -> None:
    from lfm_onnx.checkpoint.config import LfmConfig
    from phone_estimate import LFM25_8B_A1B, touched_weights

    hidden, expert, dense = 2048, 3 * 2048 * 1792, 3 * 2048 * 7168
    conv, attention = 4 * hidden * hidden, 2 * hidden * hidden + 2 * hidden * 512
    expected = 128000 * hidden + 18 * conv + 6 * attention + 2 * dense + 22 * 4 * expert
    assert touched_weights(LfmConfig.from_dict(LFM25_8B_A1B, file="config.json")) == expected


@pytest.mark.usefixtures("benchmarks")
def test_comparison_with_peers_states_how_much_faster_the_native_library_is(capsys: pytest.CaptureFixture[str]) -> None:
    from peers_report import Measured, print_report

    def measured(key: str, prefill: float, decode: float) -> Measured:
        found = {
            "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode, "read_bandwidth_bytes_per_s": 2e10,
            "bandwidth_fraction": 0.5, "peak_rss_bytes": 1e9,
        }  # fmt: skip
        return Measured(key, f"engine {key}", {"load_s": 0.5}, 10**8, 10**9, 0.01, {32: found})

    print_report([measured("native", 500.0, 60.0), measured("peer", 100.0, 40.0)], threads=2)
    assert "engine native / engine peer, context 32: decode 1.50 x, prefill 5.00 x" in capsys.readouterr().out
