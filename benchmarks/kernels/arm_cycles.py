"""Cycles of the ARM kernels' inner loops on phone cores, as llvm-mca models them.

usage: arm_cycles.py [COMPILER [LLVM_MCA]]      (default: aarch64-linux-gnu-g++ and llvm-mca-22)

A loop's cycles are those of the core alone: its data in the first-level cache. Older versions of llvm-mca model these
cores wrongly.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COMPUTE = Path(__file__).parents[2] / "runtime" / "native" / "compute"
CLOCKS = {"cortex-x4": 3.3, "cortex-a720": 3.0, "cortex-x2": 3.0, "cortex-a78": 2.4}
"""Core to a clock in GHz that phones give it."""
ITERATIONS = 300
PRODUCT = re.compile(r"\s+(sdot|smmla|smull2?|smlal2?)\s")
BRANCH = re.compile(r"\s+(?:b\.?\w*|cbn?z\s+\w+,)\s+(\.L\w+)")


@dataclass(frozen=True)
class Table:
    """One instruction set's kernels and how they are compiled."""

    name: str
    file: str
    dot: str
    flags: tuple[str, ...]


TABLES = [
    Table("neon", "arm/kernels_neon.cc", "NeonDot", ()),
    Table("dotprod", "arm/kernels_neon_dotprod.cc", "DotprodDot", ("-march=armv8.2-a+dotprod",)),
    Table("i8mm", "arm/kernels_neon_i8mm.cc", "I8mmDot", ("-march=armv8.2-a+dotprod+i8mm",)),
]

LOOPS = {"vector_int4": (8, 18), "vector_int8": (8, 34), "tile_int4": (32, 0), "tile_int8": (32, 0)}
"""Function to how often 32 weights meet 32 activations in one turn, and the bytes that 32 weights take in memory."""


def assembly(table: Table, compiler: str) -> list[str]:
    command = [compiler, "-std=c++17", "-O3", "-ffp-contract=off", f"-I{COMPUTE}", *table.flags, "-S", "-o", "-"]
    command += [
        f'-DLFM_KERNELS="{table.file}"',
        f"-DLFM_DOT={table.dot}",
        str(Path(__file__).with_name("hot_loops.cc")),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def hot_loop(lines: list[str], function: str) -> str:
    """The loop of ``function`` with the most products, without labels and directives."""
    start = lines.index(next(line for line in lines if line.startswith(f"{function}:")))
    end = next(i for i in range(start, len(lines)) if lines[i].lstrip().startswith(".size"))
    body = lines[start:end]
    labels = {match[1]: i for i, line in enumerate(body) if (match := re.match(r"(\.L\w+):", line))}
    best: list[str] = []
    for i, line in enumerate(body):
        match = BRANCH.match(line)
        if match and labels.get(match[1], i) < i:
            loop = body[labels[match[1]] + 1 : i + 1]
            if sum(map(bool, map(PRODUCT.match, loop))) > sum(map(bool, map(PRODUCT.match, best))):
                best = loop
    return "\n".join(line for line in best if re.match(r"\s+[a-z]", line))


def cycles_per_turn(loop: str, core: str, analyzer: str) -> float:
    command = [analyzer, "-mtriple=aarch64", f"-mcpu={core}", "-mattr=+dotprod,+i8mm", f"-iterations={ITERATIONS}"]
    report = subprocess.run(command, check=True, input=loop, capture_output=True, text=True).stdout
    match = re.search(r"Total Cycles:\s+(\d+)", report)
    assert match is not None
    return int(match[1]) / ITERATIONS


def main() -> None:
    compiler, analyzer = (*sys.argv[1:], *["aarch64-linux-gnu-g++", "llvm-mca-22"][len(sys.argv) - 1 :])
    print("cycles per 32 products (decode: also the weights' GB/s at the core's clock)")
    print(f"{'table':8} {'loop':12}", *(f"{f'{core} {clock} GHz':>22}" for core, clock in CLOCKS.items()))
    for table in TABLES:
        lines = assembly(table, compiler)
        for function, (products, weight_bytes) in LOOPS.items():
            loop, cells = hot_loop(lines, function), []
            for core, clock in CLOCKS.items():
                cycles = cycles_per_turn(loop, core, analyzer) / products
                rate = f" ({weight_bytes / cycles * clock:.1f} GB/s)" if weight_bytes else ""
                cells.append(f"{f'{cycles:.2f}{rate}':>22}")
            print(f"{table.name:8} {function:12}", *cells)


if __name__ == "__main__":
    main()
