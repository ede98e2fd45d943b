"""Reads the compiler's own dump of a graph: in which type each matrix product is computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MATRIX_PRODUCTS = ("FullyConnected", "MatMul", "Conv1d", "Conv2d", "DepthWiseConv1d", "DepthWiseConv2d")
# A data type is 0xKKBB: kind and bits. Kinds 3 and 4 are signed and unsigned fixed point.
_FIXED_POINT = (3, 4)


@dataclass(frozen=True)
class MatrixProduct:
    """One matrix product as it is computed: types of its two factors and of the result."""

    name: str
    op_type: str
    types: tuple[str, str, str]
    integer: bool


def read_graph_dump(path: Path) -> list[MatrixProduct]:
    """Matrix products of a dumped graph, in the order of the file."""
    graph: dict[str, Any] = json.loads(path.read_text())["graph"]
    tensors = graph["tensors"]
    found = []
    for name, node in graph["nodes"].items():
        if node["type"] not in _MATRIX_PRODUCTS:
            continue
        used = [*node["input_names"][:2], *node["output_names"][:1]]
        types = [int(tensors[item]["data_type"]) for item in used if item in tensors]
        text = tuple(type_name(code) for code in types)
        integer = len(types) == 3 and all(code >> 8 in _FIXED_POINT for code in types)
        found.append(MatrixProduct(name, node["type"], (*text, "", "", "")[:3], integer))  # type: ignore[arg-type]
    return found


def type_name(code: int) -> str:
    """A data type as a word."""
    kinds = {0: "int", 1: "uint", 2: "float", 3: "sfixed", 4: "ufixed", 5: "bool"}
    # The bits are written as decimal digits: 0x16 is 16.
    return f"{kinds.get(code >> 8, 'type')}{code & 0xFF:x}"
