"""Tokens per second to expect on a phone, without one: cycles of the ARM kernel by llvm-mca, and the memory's speed.

    python benchmarks/phone_estimate.py [--compiler aarch64-linux-gnu-g++] [--llvm-mca llvm-mca-22]

Every assumption is printed with the result. llvm-mca before LLVM 20 models these cores wrongly.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from lfm_onnx.artifact.formats import BlockFormat
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.mobile_bridge.projection import touched_bytes
from rich.console import Console
from rich.table import Table

_COMPUTE = Path(__file__).parent.parent / "runtime" / "native" / "compute"
# The kernel of decoding at int4, block 32, float16 scales, symmetric, in one function with everything inlined.
_FUNCTION = "decode_int4"
_SOURCE = f"""
#include "arm/kernels_neon_dotprod.cc"
using namespace lfm;
extern "C" __attribute__((used, flatten)) void {_FUNCTION}(
    const WeightRows& weights, int64_t begin, int64_t end, const uint8_t* packed, float* y) {{
  MultiplyVectors<DotprodDot, BlockFormat<4, 32, true, false>>(weights, begin, end, packed, 1, y, 0);
}}
"""
_WEIGHTS_PER_SDOT = 16
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-march=armv8.2-a+dotprod", "-S", "-x", "c++")
_ITERATIONS = 200
_CORES = ("cortex-x4", "cortex-a720", "cortex-x2", "cortex-a710")
_FORMAT = BlockFormat(bits=4)
_BANDWIDTHS = (60e9, 72e9, 85e9)
_REACHED = (1.0, 0.8, 0.5)

# The published configuration of LFM2.5-8B-A1B.
LFM25_8B_A1B = {
    "model_type": "lfm2_moe", "vocab_size": 128000, "hidden_size": 2048, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 7168, "moe_intermediate_size": 1792,
    "num_experts": 32, "num_experts_per_tok": 4, "num_dense_layers": 2, "conv_L_cache": 3,
    "max_position_embeddings": 128000, "norm_eps": 1e-5, "rope_theta": 5e6, "tie_word_embeddings": True,
    "use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    "layer_types": ["full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)],
}  # fmt: skip


@dataclass(frozen=True)
class Phone:
    """Cores that decode (model, GHz each), the little ones left out."""

    name: str
    cores: tuple[tuple[str, float], ...]


# Of the highest clocks, which are given below, what a phone holds for the length of an answer.
_SUSTAINED_CLOCK = 0.7
_PHONES = (
    Phone("1 x X4 3.3 GHz + 3 x A720 3.15 GHz", (("cortex-x4", 3.3), *[("cortex-a720", 3.15)] * 3)),
    Phone("4 x X4: 1 x 3.25 GHz + 3 x 2.85 GHz", (("cortex-x4", 3.25), *[("cortex-x4", 2.85)] * 3)),
    Phone("1 x X2 3.0 GHz + 3 x A710 2.5 GHz", (("cortex-x2", 3.0), *[("cortex-a710", 2.5)] * 3)),
)


@click.command()
@click.option("--compiler", default="aarch64-linux-gnu-g++", show_default=True, help="C++ compiler for ARM64.")
@click.option("--llvm-mca", "analyzer", help="llvm-mca; the newest on the path by default.")
@click.option("--config", type=click.Path(path_type=Path), help="config.json of another model than LFM2.5-8B-A1B.")
def main(compiler: str, analyzer: str | None, config: Path | None) -> None:
    """Print cycle estimates of the int4 kernel and what they and a phone's memory allow."""
    analyzer = analyzer or _newest_analyzer()
    loop, weights = inner_loop(_assembly(compiler))
    cycles = {core: _cycles(loop, core, analyzer) / weights * 32 for core in _CORES}
    model = LfmConfig.load(config.parent) if config else LfmConfig.from_dict(LFM25_8B_A1B, file="config.json")
    touched = touched_weights(model)
    _print(cycles, weights, len(loop), touched, model)


def inner_loop(assembly: str) -> tuple[list[str], int]:
    """Instructions of the innermost loop with most dot products in the kernel, and the weights that it takes."""
    lines = _function(assembly)
    labels = {line[:-1]: at for at, line in enumerate(lines) if line.endswith(":")}
    loops = []
    for at, line in enumerate(lines):
        target = re.fullmatch(r"(?:b\.?\w+\s+|cbn?z\s+\w+,\s*|tbn?z\s+\w+,\s*#?\d+,\s*)(\.L\w+)", line)
        if target and labels.get(target[1], at) < at:
            loops.append(lines[labels[target[1]] + 1 : at + 1])
    innermost = [loop for loop in loops if not any(line.endswith(":") for line in loop)]
    if not innermost:
        raise click.ClickException("no inner loop found in the kernel's assembly")
    best = max(innermost, key=_dot_products)
    if not _dot_products(best):
        raise click.ClickException("no loop with dot products found in the kernel's assembly")
    return best, _dot_products(best) * _WEIGHTS_PER_SDOT


def touched_weights(config: LfmConfig) -> int:
    """Weights of matrices that decoding one token reads, the LM head among them."""
    layers = [*range(config.num_hidden_layers), None]
    return round(sum(touched_bytes(config, 8.0, layer) for layer in layers))  # a byte each


def _assembly(compiler: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernel.s"
        command = [*compiler.split(), *_FLAGS, "-I", str(_COMPUTE), "-", "-o", str(target)]
        try:
            subprocess.run(command, input=_SOURCE, text=True, check=True)
        except FileNotFoundError:
            raise click.ClickException(f"{compiler} is not installed: name an ARM64 compiler by --compiler") from None
        except subprocess.CalledProcessError:
            raise click.ClickException(f"{compiler} could not compile the kernel") from None
        return target.read_text()


def _function(assembly: str) -> list[str]:
    lines = [line.strip().partition("//")[0].rstrip() for line in assembly.splitlines()]
    starts = [at for at, line in enumerate(lines) if line == f"{_FUNCTION}:"]
    if not starts:
        raise click.ClickException("the kernel's function is not in the assembly")
    end = next(at for at in range(starts[0], len(lines)) if lines[at].startswith(".size"))
    # Labels and instructions; no directives.
    return [line for line in lines[starts[0] : end] if line and (line.endswith(":") or not line.startswith("."))]


def _dot_products(loop: list[str]) -> int:
    return sum(line.startswith("sdot") for line in loop)


def _cycles(loop: list[str], core: str, analyzer: str) -> float:
    command = [analyzer, "-mtriple=aarch64", f"-mcpu={core}", "-mattr=+dotprod", f"-iterations={_ITERATIONS}"]
    done = subprocess.run(command, input="\n".join(loop), capture_output=True, text=True, check=True)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if found is None:
        raise click.ClickException(f"{analyzer} printed no cycles: {done.stderr[:300]}")
    return int(found[1]) / _ITERATIONS


def _newest_analyzer() -> str:
    names = [f"llvm-mca-{major}" for major in range(40, 19, -1)] + ["llvm-mca"]
    for name in names:
        if shutil.which(name):
            return name
    raise click.ClickException("llvm-mca is not installed: it comes with LLVM, from version 20 on for these cores")


def _print(cycles: dict[str, float], weights: int, instructions: int, touched: int, model: LfmConfig) -> None:
    console = Console(highlight=False, width=140)
    size = touched * _FORMAT.bits_per_weight / 8
    kv_layers = model.layer_types.count("full_attention")
    kv = 2 * kv_layers * model.kv_dim * 4
    console.print(f"Inner loop: {instructions} instructions for {weights} weights of {_FORMAT.name}.")
    table = Table("core")
    for heading in ("cycles per 32 weights", "bytes per cycle", "GB/s of weights per GHz"):
        table.add_column(heading, justify="right")
    for core, found in cycles.items():
        speed = 32 * _FORMAT.bits_per_weight / 8 / found
        table.add_row(core, f"{found:.2f}", f"{speed:.1f}", f"{speed:.1f}")
    console.print(table)
    console.print(
        f"One token reads {touched / 1e9:.3f} G weights of {_FORMAT.bits_per_weight} bits = {size / 1e9:.3f} GB, "
        f"and {kv / 1e3:.1f} kB of KV cache (float32) for each token of context."
    )
    result = Table(title="tokens/s = 1 / max(memory time, compute time)", title_justify="left")
    for heading in ("cores", "compute, top clock", "sustained", "memory", *(f"{share:.0%}" for share in _REACHED)):
        result.add_column(heading, justify="left" if heading == "cores" else "right")
    for phone in _PHONES:
        compute = sum(ghz * 1e9 / cycles[core] * 32 for core, ghz in phone.cores) / touched
        sustained = compute * _SUSTAINED_CLOCK
        for bandwidth in _BANDWIDTHS:
            rates = [min(sustained, share * bandwidth / size) for share in _REACHED]
            cells = (
                f"{compute:.0f}",
                f"{sustained:.0f}",
                f"{bandwidth / 1e9:.0f} GB/s",
                *(f"{rate:.0f}" for rate in rates),
            )
            result.add_row(phone.name, *cells)
        result.add_section()
    console.print(result)
    console.print(
        f"30 tokens/s need {30 * size / 1e9:.0f} GB/s of weights: {30 * size / _BANDWIDTHS[0]:.0%} of the slowest "
        f"memory above, {30 * size / _BANDWIDTHS[-1]:.0%} of the fastest."
    )
    for line in (
        "Assumptions:",
        "- llvm-mca counts instructions whose data are in the first-level cache; the kernel prefetches the rows ahead,",
        "  so that loads overlap with arithmetic and the slower of the two decides.",
        "- Rows are handed out in small ranges: cores of different speed finish together.",
        f"- Sustained: {_SUSTAINED_CLOCK:.0%} of the top clocks, held for the length of an answer. The rates use it.",
        "- 100%, 80%, 50%: share of the memory bandwidth that is reached. 80% is what the kernels are made to reach on",
        "  x86-64; 50% leaves room for other users of the memory and for throttling.",
        "- Attention, norms, convolutions and the sampler are left out: at a short context they are a small part.",
        "- Not measured on a phone.",
    ):
        console.print(line, markup=False)


if __name__ == "__main__":
    main()
