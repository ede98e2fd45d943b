"""What the owner of a Copilot+ PC runs: finds the NPU, checks, compares and measures, and writes a report to send back.

    python samples/copilot_npu_test.py NPU_DIR [--cpu-artifact DIR] [--reference CHECKPOINT] [--output copilot-npu]

NPU_DIR: folder of `lfm-onnx export CHECKPOINT -o NPU_DIR --target qnn`. Writes copilot-npu.json and copilot-npu.html.
On a machine without an NPU the compiler's emulator or the CPU takes its place, and the report says so. A step that
fails is a line in the report, never the end of the run.
"""

from __future__ import annotations

import html
import importlib.metadata
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from lfm_onnx import __version__
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.errors import LfmOnnxError

_PACKAGES = (
    "onnxruntime", "onnxruntime-windowsml", "onnxruntime-qnn", "onnxruntime-ep-openvino", "onnxruntime-openvino",
    "onnxruntime-vitisai", "numpy", "onnx",
)  # fmt: skip
# Providers of NPUs, as Windows ML's catalog and the plug-in packages call them.
_NPU_PROVIDERS = ("QNNExecutionProvider", "OpenVINOExecutionProvider", "VitisAIExecutionProvider")
_PLUG_INS = {"OpenVINOExecutionProvider": "onnxruntime_ep_openvino", "VitisAIExecutionProvider": "onnxruntime_vitisai"}
_ANSWER_TOKENS = 48


@dataclass
class Step:
    """One thing that was tried. status: "passed", "missed" (a limit), "skipped" (with why) or "failed"."""

    name: str
    status: str = "passed"
    summary: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


class Skip(Exception):
    """A step that has nothing to do here; its text says why."""


class Report:
    """Steps in the order they ran."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def run(self, name: str, work: Callable[[Step], None]) -> Step:
        """Run one step; whatever it raises becomes its status."""
        step = Step(name)
        click.echo(f"{name} …", err=True)
        started = time.perf_counter()
        try:
            work(step)
        except Skip as error:
            step.status, step.summary = "skipped", str(error)
        except LfmOnnxError as error:
            step.status, step.summary = "failed", str(error)
        except Exception as error:  # the report is the point: a defect of ours must be in it too
            step.status, step.summary = "failed", f"{type(error).__name__}: {error}"
            step.details["traceback"] = traceback.format_exc()
        step.seconds = round(time.perf_counter() - started, 2)
        click.echo(f"   {step.status}: {step.summary}", err=True)
        self.steps.append(step)
        return step


@click.command()
@click.argument("npu_dir", type=click.Path(path_type=Path))
@click.option("--cpu-artifact", type=click.Path(path_type=Path), help="The same model exported for the CPU.")
@click.option("--reference", metavar="CHECKPOINT", help="The checkpoint: compares with it in float32.")
@click.option("--soc", help="Chip whose binaries to take; what is compiled by default.")
@click.option("--tokens", type=click.IntRange(min=8), default=256, show_default=True, help="Tokens to compare.")
@click.option("--prompt", default="How much is 34 + 58?", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("copilot-npu"), show_default=True)
def main(
    npu_dir: Path, cpu_artifact: Path | None, reference: str | None, soc: str | None, tokens: int, prompt: str,
    output: Path,
) -> None:  # fmt: skip
    """Test the NPU export in NPU_DIR on this machine."""
    report = Report()
    where: dict[str, str] = {"runs on": "the CPU"}
    report.run("this machine", lambda step: _machine(step))
    report.run("providers", lambda step: _providers(step))
    report.run("NPU", lambda step: _npu(step, where))
    report.run("artifact", lambda step: _artifact(step, npu_dir))
    report.run("check: compile for the NPU", lambda step: _check(step, npu_dir, "qnn", soc=soc))
    report.run("check: windows-ml", lambda step: _check(step, cpu_artifact, "windows-ml", reference=reference))
    report.run("check: openvino", lambda step: _check(step, cpu_artifact, "openvino", reference=reference))
    for name in _NPU_PROVIDERS[1:]:
        report.run(f"static graphs on {name}", lambda step, name=name: _static_graphs(step, npu_dir, name))
    report.run("parity", lambda step: _parity(step, npu_dir, reference, soc, tokens, where))
    for plan in ("npu", "hybrid", "cpu"):
        options = {"plan": plan, "soc": soc, "cpu_artifact": str(cpu_artifact) if cpu_artifact else None}
        report.run(f"answer, plan {plan}", lambda step, options=options: _answer(step, npu_dir, options, prompt))
        report.run(f"bench, plan {plan}", lambda step, options=options: _bench(step, npu_dir, options, where))
    data = {
        "lfm_onnx": __version__,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "runs_on": where["runs on"],
        "steps": [asdict(step) for step in report.steps],
    }
    files = output.with_suffix(".json"), output.with_suffix(".html")
    files[0].write_text(json.dumps(data, indent=2, default=str), encoding="utf-8")
    files[1].write_text(_page(data), encoding="utf-8")
    click.echo(f"wrote {files[0]} and {files[1]}: please send both back")
    if any(step.status in ("missed", "failed") for step in report.steps):
        sys.exit(1)


def _machine(step: Step) -> None:
    step.summary = f"{platform.platform()}, {platform.machine()}, {platform.processor() or 'unknown processor'}"
    step.details = {"python": sys.version, "packages": _versions(_PACKAGES)}


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _providers(step: Step) -> None:
    """Registers what Windows ML's catalog and the plug-in packages offer, and lists the devices."""
    import onnxruntime
    from lfm_onnx.runtime.npu.windows_catalog import register_catalog

    notes = [*register_catalog(), *_plug_ins(onnxruntime)]
    devices = [
        {"provider": d.ep_name, "type": d.device.type.name, "vendor": d.device.vendor, "metadata": dict(d.ep_metadata)}
        for d in onnxruntime.get_ep_devices()
    ]
    step.details = {"devices": devices, "registered": notes}
    npus = [d["provider"] for d in devices if d["type"] == "NPU"]
    step.summary = f"{len(devices)} devices; NPU providers: {', '.join(npus) or 'none'}"


def _plug_ins(onnxruntime: Any) -> list[str]:
    notes = []
    for name, module in _PLUG_INS.items():
        if any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
            continue
        try:
            package = __import__(module)
            onnxruntime.register_execution_provider_library(name, package.get_library_path())
            notes.append(f"{module}: registered")
        except Exception as error:  # not installed is the ordinary case
            notes.append(f"{module}: {type(error).__name__}: {error}")
    return notes


def _npu(step: Step, where: dict[str, str]) -> None:
    from lfm_onnx.runtime.npu.provider import NpuUnavailable, device, versions

    try:
        found = device()
    except NpuUnavailable as error:
        raise Skip(f"{error}. What follows runs on the CPU.") from error
    where["runs on"] = found.name
    step.details = {"emulator": found.emulator, **versions().to_dict()}
    step.summary = found.name
    if found.emulator:
        step.summary += ": no NPU in this machine, so speeds below say nothing of one"


def _artifact(step: Step, npu_dir: Path) -> None:
    from lfm_onnx.artifact.npu_manifest import NpuManifest

    manifest = NpuManifest.read(Artifact.open(npu_dir, "qnn", verify="full"))
    step.summary = f"{len(manifest.parts)} parts, {sum(p.file_bytes for p in manifest.parts) / 1e6:.0f} MB of weights"
    step.details = {"precision": manifest.precision, "contexts": list(manifest.context_lengths)}


def _check(step: Step, folder: Path | None, target: str, **options: Any) -> None:
    from lfm_onnx.mobile_bridge.check.run import run_check
    from lfm_onnx.mobile_bridge.check.worker_process import CheckError
    from lfm_onnx.runtime.npu.provider import NpuUnavailable

    if folder is None:
        raise Skip("needs --cpu-artifact")
    try:
        report = run_check(folder, target, **options)
    except (CheckError, NpuUnavailable) as error:
        raise Skip(str(error)) from error
    step.status, step.summary = "passed" if report.passed else "missed", report.verdict
    step.details = report.to_dict()


def _static_graphs(step: Step, npu_dir: Path, provider: str) -> None:
    """How much of the quantized graphs another NPU provider takes."""
    import onnxruntime
    from lfm_onnx.artifact.npu_manifest import NpuManifest

    npu = [d for d in onnxruntime.get_ep_devices() if d.ep_name == provider and d.device.type.name == "NPU"]
    if not npu:
        raise Skip(f"no NPU of {provider} here")
    manifest = NpuManifest.read(Artifact.open(npu_dir, "qnn"))
    counts = [0, 0]
    for part in manifest.parts:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.add_provider_for_devices(npu[:1], {})
        graph = part.graph("decode", manifest.context_lengths[0])
        session = onnxruntime.InferenceSession(str(npu_dir / graph.file), options)
        for piece in session.get_provider_graph_assignment_info():
            counts[0] += len(piece.get_nodes()) if piece.ep_name == provider else 0
            counts[1] += len(piece.get_nodes())
    step.summary = f"{counts[0]} of {counts[1]} nodes of the decode graphs on the NPU"
    step.status = "passed" if counts[0] == counts[1] else "missed"


def _parity(
    step: Step, npu_dir: Path, reference: str | None, soc: str | None, tokens: int, where: dict[str, str]
) -> None:
    from lfm_onnx.checkpoint.checkpoint import Checkpoint
    from lfm_onnx.runtime.parity.compare import compare
    from lfm_onnx.runtime.parity.options import ParityOptions

    if reference is None:
        raise Skip("needs --reference CHECKPOINT")
    backend = "cpu" if where["runs on"] == "the CPU" else "qnn"
    options = ParityOptions(
        tokens=tokens, passage_tokens=128, greedy_prompts=2, greedy_tokens=8, npu_backend=backend, soc=soc
    )
    report = compare(Artifact.open(npu_dir, "qnn"), Checkpoint.open(reference), options)
    step.status = "passed" if report.passed else "missed"
    step.summary = f"{report.verdict}; top-1 {report.logits.top1:.1%}, KLD {report.logits.kld_mean:.2e} nats"
    step.details = report.to_dict()


def _answer(step: Step, npu_dir: Path, options: dict[str, Any], prompt: str) -> None:
    from lfm_onnx.runtime.model import LfmModel
    from lfm_onnx.runtime.npu.run_options import NpuRunOptions

    if options["plan"] == "hybrid" and options["cpu_artifact"] is None:
        raise Skip("needs --cpu-artifact")
    notes: list[str] = []
    model = LfmModel.load(npu_dir, npu=NpuRunOptions(**options, notice=notes.append))
    result = model.generate([{"role": "user", "content": prompt}], max_new_tokens=_ANSWER_TOKENS, seed=0).result
    step.summary = f"{result.text!r:.300}" + (f" ({'; '.join(notes)})" if notes else "")
    step.details = {"providers": model.session.providers, "notices": notes, **result.to_dict()}


def _bench(step: Step, npu_dir: Path, options: dict[str, Any], where: dict[str, str]) -> None:
    from lfm_onnx.runtime.bench.bench import BenchOptions, bench

    if options["plan"] == "hybrid" and options["cpu_artifact"] is None:
        raise Skip("needs --cpu-artifact")
    emulated = "emulator" in where["runs on"] and options["plan"] != "cpu"
    amount = (
        {"prompt_tokens": 16, "new_tokens": 2, "repeat": 1} if emulated else {"prompt_tokens": 128, "new_tokens": 64}
    )
    result = bench(npu_dir, BenchOptions(**amount, npu=options)).to_dict()
    step.details = result
    step.summary = (
        f"prefill {result['prefill_tokens_per_s']:.1f}, decode {result['decode_tokens_per_s']:.1f} tokens/s"
        + (" (emulator: not the speed of an NPU)" if emulated else "")
    )


def _page(data: dict[str, Any]) -> str:
    """The report as one HTML file."""
    rows = "".join(
        f"<tr class='{step['status']}'><td>{html.escape(step['name'])}</td><td>{step['status']}</td>"
        f"<td>{step['seconds']:.1f} s</td><td>{html.escape(step['summary'])}<details><summary>details</summary><pre>"
        f"{html.escape(json.dumps(step['details'], indent=1, default=str)[:20000])}</pre></details></td></tr>"
        for step in data["steps"]
    )
    style = (
        "body{font:15px sans-serif;margin:2em;max-width:75em}td{padding:.3em .7em;vertical-align:top}"
        "table{border-collapse:collapse}tr{border-top:1px solid #ccc}.failed,.missed{background:#fdd}"
        ".skipped{color:#777}pre{white-space:pre-wrap;font-size:12px}"
    )
    return (
        f"<!doctype html><meta charset='utf-8'><title>lfm-onnx on this PC's NPU</title><style>{style}</style>"
        f"<h1>lfm-onnx {html.escape(data['lfm_onnx'])}: NPU test</h1><p>Made {data['made']}. The NPU's graphs ran on "
        f"<b>{html.escape(data['runs_on'])}</b>.</p><table>{rows}</table>"
    )


if __name__ == "__main__":
    main()
